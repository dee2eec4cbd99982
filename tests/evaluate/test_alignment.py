"""Judges of words: who is first among captions, the loss that brings pairs together, CLIP as transformers computes it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.commands.ranked import check_styles, ranked
from sfumato.errors import UserError
from sfumato.evaluate import Aligner, ContrastiveJudge, ConvJudge, JudgeAligner, open_aligner
from sfumato.evaluate.alignment import choices
from sfumato.evaluate.contrastive import classes_of
from sfumato.evaluate.judge import Judge
from sfumato.recipes.contrastive import Lessons, changed, paired

SMALL = {"width": 4, "embedding": 8, "text_width": 16, "buckets": 64}
CLASSES = classes_of({"style": ("noto", "fluent"), "skin tone": ("none", "light", "dark")})


class Brightness(Aligner):
    """Fits a picture of one value v to a caption that is a number: the nearer the angles v and caption, the better."""

    name, sha256 = "brightness", "0"

    def pictures(self, media: Tensor) -> Tensor:
        return _angle(media.float().flatten(1).mean(1))

    def captions(self, texts: Sequence[str]) -> Tensor:
        return _angle(torch.tensor([float(text) for text in texts]))

    def to(self, device: torch.device | str) -> Brightness:
        return self


def _angle(values: Tensor) -> Tensor:
    return torch.stack([(values / 255).cos(), (values / 255).sin()], 1)


def flat(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)


def judge() -> ContrastiveJudge:
    torch.manual_seed(0)
    return ContrastiveJudge((3, 16, 16), CLASSES, **SMALL).eval()  # type: ignore[arg-type]


def test_first_is_the_nearest_and_a_tie_is_not() -> None:
    found = Brightness().first(flat(10, 20, 30, 40), [["12", "30"], ["30", "22"], ["30", "30"], ["40", "0", "99"]])
    assert found.tolist() == [True, False, False, True]


def test_fit_is_the_cosine() -> None:
    found = Brightness().fit(flat(0, 255), ["255", "255"])
    assert torch.allclose(found, torch.tensor([np.cos(1.0), 1.0]).float(), atol=1e-6)


def test_choices_begin_with_their_own_and_repeat_nothing() -> None:
    others = [str(k % 40) for k in range(80)]
    made = choices(["3", "99"], others, 20)
    assert [row[0] for row in made] == ["3", "99"] and all(len(set(row)) == len(row) == 20 for row in made)
    assert made == choices(["3", "99"], others, 20) != choices(["3", "99"], others, 20, seed=1)
    with pytest.raises(UserError, match="40 different captions are too few to choose among 41"):
        choices(["3"], others, 41)


def test_the_best_of_each_prompt_come_first() -> None:
    media, texts = flat(9, 2, 30, 100, 99, 150), ["0"] * 3 + ["100"] * 3
    kept, fits = ranked(Brightness(), media, texts, 3)
    assert kept == [1, 3] and fits[1] == pytest.approx(1.0)
    assert ranked(Brightness(), media[:4], ["0"] * 2 + ["100"] * 2, 2)[0] == [1, 3]
    assert ranked(Brightness(), flat(5, 1, 7, 3), ["0"] * 4, 2)[0] == [1, 3]


def test_an_unknown_design_is_named_and_free_text_is_not() -> None:
    trained = {"styles": ["noto", "fluent-flat"]}
    fine = [
        "red apple, noto emoji",
        "a cat, Fluent Flat emoji",
        "red apple emoji",
        "noto emoji of a cat",
        "cat, dog",
        "",
    ]
    check_styles(trained, fine)
    check_styles({}, ["a cat, pixel emoji"])
    with pytest.raises(
        UserError, match=r"asks for the design 'notto', which this model does not know; did you mean 'noto'"
    ):
        check_styles(trained, ["a cat, notto emoji"])
    with pytest.raises(UserError, match="asks for the design 'pixel'"):
        check_styles(trained, ["pixel emoji of a cat"])


def test_the_loss_of_single_pairs_is_that_of_clip() -> None:
    similar = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    at = torch.arange(6)
    expected = (F.cross_entropy(similar, at) + F.cross_entropy(similar.T, at)) / 2
    assert torch.allclose(paired(similar, torch.eye(6, dtype=torch.bool)), expected)


def test_the_loss_is_the_entropy_of_the_matches_at_its_least() -> None:
    match = torch.block_diag(torch.ones(2, 2), torch.ones(1, 1), torch.ones(3, 3)).bool()
    perfect = torch.where(match, 0.0, -1e4)
    expected = (2 * np.log(2) + 3 * np.log(3)) / 6
    assert float(paired(perfect, match)) == pytest.approx(expected, abs=1e-6)
    assert float(paired(torch.zeros(6, 6), match)) == pytest.approx(np.log(6), abs=1e-6)


def test_changes_of_nothing_change_nothing_and_a_hole_is_grey() -> None:
    media = torch.randint(0, 256, (3, 3, 16, 16), generator=torch.Generator().manual_seed(0)).float()
    still = Lessons(turn=0, scale=0, shift=0, cut=0)
    assert torch.allclose(changed(media, still, torch.Generator().manual_seed(0)), media, atol=1e-3)
    holed = changed(media, Lessons(turn=0, scale=0, shift=0, cut=0.25), torch.Generator().manual_seed(0))
    other = (holed - media).abs() > 1e-3
    assert bool((holed[other] == 127).all()) and bool(other.any())
    assert int(other.any(1).flatten(1).sum(1).max()) <= 25  # a quarter of the side, at most one position more


def test_attributes_are_classifiers_of_their_own() -> None:
    made = judge()
    assert made.attributes == {"style": ("noto", "fluent"), "skin tone": ("none", "light", "dark")}
    logits = torch.arange(10.0).view(2, 5)
    assert made.logits_of(logits, "style").tolist() == [[0, 1], [5, 6]]
    assert made.logits_of(logits, "skin tone").tolist() == [[2, 3, 4], [7, 8, 9]]
    with pytest.raises(UserError, match="knows no attribute 'colour'"):
        made.logits_of(logits, "colour")
    with torch.no_grad():
        made.head.bias += torch.tensor([0.0, 1e3, 0.0, 0.0, 1e3])
    assert made.values(flat(1, 2).repeat(1, 1, 8, 8), "style") == ["fluent"] * 2
    assert made.values(flat(1, 2).repeat(1, 1, 8, 8), "skin tone") == ["dark"] * 2


@pytest.mark.parametrize("compact", [False, True])
def test_a_judge_folder_gives_the_same_vectors(tmp_path: Path, compact: bool) -> None:
    made, media, texts = judge(), torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8), ["a cat", "", "Ωμέγα"]
    made.save(tmp_path / "judge", compact=compact)
    found = open_aligner(str(tmp_path / "judge"))
    assert (
        isinstance(found, JudgeAligner)
        and found.sha256 == json.loads((tmp_path / "judge/judge.json").read_text())["trained"]["sha256"]
    )
    tolerance = 0.05 if compact else 1e-6
    assert torch.allclose(found.pictures(media), made.embed(media), atol=tolerance)
    assert torch.allclose(found.captions(texts), made.embed_words(texts), atol=tolerance)
    assert torch.allclose(found.pictures(media).norm(dim=1), torch.ones(4), atol=1e-5)


def test_folders_that_are_no_judges_of_words_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"judge=nowhere: there is no judge in this folder"):
        open_aligner("nowhere")
    torch.manual_seed(0)
    ConvJudge((1, 8, 8), ("a", "b"), width=2).save(tmp_path / "conv")
    assert isinstance(Judge.load(tmp_path / "conv"), ConvJudge)
    with pytest.raises(UserError, match="this judge is of kind 'conv' and reads no words"):
        open_aligner(str(tmp_path / "conv"))


def test_clip_of_a_local_folder_as_transformers_computes_it(tmp_path: Path) -> None:
    transformers: Any = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": 300, "max_position_embeddings": 16, "eos_token_id": 299, "bos_token_id": 298}
    config = transformers.CLIPConfig(
        text_config=text, vision_config={**sizes, "image_size": 32, "patch_size": 8}, projection_dim=12
    )
    network = transformers.CLIPModel(config).eval()
    network.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="there is no tokenizer that can be read; add the tokenizer files"):
        open_aligner(f"clip:{tmp_path}")
    alphabet = [*map(chr, range(97, 123)), *(f"{chr(k)}</w>" for k in range(97, 123))]
    vocabulary = {token: k for k, token in enumerate(alphabet)} | {"<|startoftext|>": 298, "<|endoftext|>": 299}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    tokenizer.save_pretrained(tmp_path)
    found = open_aligner(f"clip:{tmp_path}")
    media = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    texts = ["a cat", "dog", "a red apple on a table that is far too long"]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (config_mean(), config_std()))
    tokens = tokenizer(texts, padding=True, truncation=True, max_length=16, return_tensors="pt")
    with torch.no_grad():
        whole = network(pixel_values=(media.float() / 255 - mean) / std, **tokens)
    expected = whole.logits_per_image / network.logit_scale.exp()
    assert torch.allclose(found.pictures(media) @ found.captions(texts).T, expected, atol=1e-5)


def config_mean() -> list[float]:
    return [0.48145466, 0.4578275, 0.40821073]


def config_std() -> list[float]:
    return [0.26862954, 0.26130258, 0.27577711]
