"""Frozen text encoders: parity with transformers on tiny random models, windows, cache, weights, and what they refuse."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfumato.conditioners import T5, ClipText, Conditioner, Frozen, Label, LanguageModel, SiglipText, Together
from sfumato.conditioners.encoder import Embedder, windows
from sfumato.conditioners.prompt import parse, reweigh
from sfumato.core import DataInfo
from sfumato.errors import UserError
from sfumato.spec import Spec

transformers = pytest.importorskip("transformers", reason='needs transformers, of the extra "text"')

INFO = DataInfo((1, 8, 8), labels=("cat", "dog"), captions=True)
TEXTS = ["a red fox", "a", "a small blue dog runs"]
WORDS = ["a", "red", "blue", "small", "fox", "dog", "runs"]


def _words_tokenizer(*, end: bool) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    known = {"<pad>": 0, "</s>": 1, "<unk>": 2, **{word: 3 + i for i, word in enumerate(WORDS)}}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if end:
        tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def _clip(folder: Path) -> None:
    letters = [chr(c) for c in range(97, 123)]
    pieces = [*letters, *(c + "</w>" for c in letters), "re", "red</w>", "<|startoftext|>", "<|endoftext|>"]
    known = {piece: i for i, piece in enumerate(pieces)}
    first, last = known["<|startoftext|>"], known["<|endoftext|>"]
    config = transformers.CLIPTextConfig(
        vocab_size=len(known), hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        max_position_embeddings=24, bos_token_id=first, eos_token_id=last, pad_token_id=last,
    )  # fmt: skip
    transformers.CLIPTextModel(config).save_pretrained(folder)
    transformers.CLIPTokenizer(vocab=known, merges=[("r", "e"), ("re", "d</w>")]).save_pretrained(folder)


def _t5(folder: Path) -> None:
    config = transformers.T5Config(
        vocab_size=16, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu"
    )
    transformers.T5EncoderModel(config).save_pretrained(folder)
    _words_tokenizer(end=True).save_pretrained(folder)


def _siglip(folder: Path) -> None:
    config = transformers.SiglipTextConfig(
        vocab_size=16, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=12, pad_token_id=0, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    transformers.SiglipTextModel(config).save_pretrained(folder)
    _words_tokenizer(end=True).save_pretrained(folder)


def _lm(folder: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=16, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=256,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    _words_tokenizer(end=False).save_pretrained(folder)


MAKERS: dict[str, Callable[[Path], None]] = {"clip-text": _clip, "t5": _t5, "siglip-text": _siglip, "lm": _lm}
KINDS: dict[str, type[Frozen]] = {"clip-text": ClipText, "t5": T5, "siglip-text": SiglipText, "lm": LanguageModel}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {kind: tmp_path_factory.mktemp("encoders") / kind for kind in MAKERS}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for kind, folder in made.items():
            MAKERS[kind](folder)
    return made


def built(folders: dict[str, Path], kind: str, **settings: Any) -> Frozen:
    torch.manual_seed(0)
    return Spec(KINDS[kind], path=str(folders[kind]), **settings).build(INFO)


def expected(kind: str, folder: Path) -> tuple[list[Tensor], Tensor]:
    """Tokens and pooled vectors by transformers, as each encoder's own pipelines call it."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    loader = {"clip-text": "CLIPTextModel", "t5": "T5EncoderModel", "siglip-text": "SiglipTextModel", "lm": "AutoModel"}
    model = getattr(transformers, loader[kind]).from_pretrained(folder).eval()
    filled = {"padding": "max_length", "max_length": 24 if kind == "clip-text" else 12}
    asked = tokenizer(
        TEXTS, return_tensors="pt", **(filled if kind in ("clip-text", "siglip-text") else {"padding": True})
    )
    ids, mask = asked["input_ids"], asked["attention_mask"]
    with torch.no_grad():
        if kind in ("clip-text", "siglip-text"):  # neither is given the mask
            out = model(input_ids=ids, output_hidden_states=True)
            states, pooled = out.last_hidden_state, out.pooler_output
        else:
            out = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
            states = out.hidden_states[-2] if kind == "lm" else out.last_hidden_state
            pooled = torch.stack([s[m.bool()].mean(0) for s, m in zip(states, mask)])
    return [s[m.bool()] for s, m in zip(states, mask)], pooled


every = pytest.mark.parametrize("kind", list(KINDS))


@every
def test_equals_transformers(folders: dict[str, Path], kind: str) -> None:
    tokens, pooled = expected(kind, folders[kind])
    for row, want, vector in zip(built(folders, kind).embedder(TEXTS, torch.device("cpu")), tokens, pooled):
        torch.testing.assert_close(row.tokens, want, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(row.pooled, vector, rtol=1e-5, atol=1e-5)


def test_the_last_but_one_layer_of_clip(folders: dict[str, Path]) -> None:
    model = transformers.CLIPTextModel.from_pretrained(folders["clip-text"]).eval()
    asked = transformers.AutoTokenizer.from_pretrained(folders["clip-text"])(TEXTS[:1], return_tensors="pt")
    with torch.no_grad():
        want = model(**asked, output_hidden_states=True).hidden_states[-2][0]
    got = built(folders, "clip-text", layer=-2).embedder(TEXTS[:1], torch.device("cpu"))[0]
    torch.testing.assert_close(got.tokens, want, rtol=1e-5, atol=1e-5)


def rows(cond: Any, i: int) -> tuple[Tensor, Tensor]:
    return cond.tokens[i][cond.mask[i]], cond.vector[i]


@every
def test_a_text_does_not_depend_on_what_is_asked_beside_it(folders: dict[str, Path], kind: str) -> None:
    """Bit for bit: each batch of the encoder is filled up to one size."""
    together, alone = built(folders, kind), built(folders, kind)
    whole = together(together.prepare({"caption": TEXTS}))
    for i, text in enumerate(TEXTS):
        single = alone(alone.prepare({"caption": [text]}))
        for got, want in zip(rows(single, 0), rows(whole, i)):
            assert torch.equal(got, want)


@every
def test_blank_is_anything_and_every_weight_of_ours_learns(folders: dict[str, Path], kind: str) -> None:
    conditioner = built(folders, kind, width=8)
    cond, null = conditioner(conditioner.prepare({"caption": ["a red fox", " \n"]})), conditioner.null(2)
    for got, want in zip(rows(cond, 1), rows(null, 0)):
        assert torch.equal(got, want)
    assert cond.tokens is not None and cond.vector is not None
    (cond.tokens.square().sum() + cond.vector.square().sum()).backward()
    assert [n for n, p in conditioner.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert len(list(conditioner.parameters())) == 4  # projection, its offset, and the two that mean 'anything'


def test_the_encoder_is_in_no_state_and_shared_by_copies(folders: dict[str, Path]) -> None:
    conditioner = built(folders, "t5")
    assert set(conditioner.state_dict()) == {"anything", "any_vector", "fingerprint"}
    twin = copy.deepcopy(conditioner)
    assert twin.embedder is conditioner.embedder


def test_a_model_with_another_encoder_does_not_load(folders: dict[str, Path], tmp_path: Path) -> None:
    stored = nn.ModuleDict({"conditioner": built(folders, "t5")}).state_dict()
    nn.ModuleDict({"conditioner": built(folders, "t5")}).load_state_dict(stored)
    other = tmp_path / "t5"
    shutil.copytree(folders["t5"], other)
    raw = bytearray((other / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (other / "model.safetensors").write_bytes(raw)
    changed = Spec(T5, path=str(other)).build(INFO)
    with pytest.raises(UserError, match="not the text encoder that the model was trained with"):
        nn.ModuleDict({"conditioner": changed}).load_state_dict(stored)


def test_weights_that_are_copied_in_place_are_verified_too(folders: dict[str, Path]) -> None:
    """As a trainer resumes: the first text asks for an encoder that is not there."""
    conditioner = built(folders, "t5")
    conditioner.prepare({"caption": TEXTS})
    with torch.no_grad():
        conditioner.fingerprint.copy_(built(folders, "lm").fingerprint)
    with pytest.raises(UserError, match="not the text encoder"):
        conditioner.prepare({"caption": TEXTS})


def test_a_file_that_lacks_weights_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "lm"
    shutil.copytree(folders["lm"], folder)
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 of the weights can't be read, such as layers\.1\.mlp"):
        LanguageModel(INFO, path=str(folder)).prepare({"caption": TEXTS})


# ---------------------------------------------------------------- windows


def test_a_long_prompt_is_its_windows_one_after_the_other(folders: dict[str, Path]) -> None:
    """Windows of 4 tokens with the mark: three words each, encoded alone."""
    long = built(folders, "t5", length=4, windows=3)
    short = built(folders, "t5", length=4)
    (whole,) = long.embedder(["a red fox a blue dog runs"], torch.device("cpu"))
    parts = short.embedder(["a red fox", "a blue dog", "runs"], torch.device("cpu"))
    torch.testing.assert_close(whole.tokens, torch.cat([p.tokens for p in parts]))
    torch.testing.assert_close(whole.pooled, torch.stack([p.pooled for p in parts]).mean(0))
    with pytest.raises(UserError, match=r"is 10 tokens long and this model reads 8 .*conditioner.windows=3"):
        built(folders, "t5", length=4, windows=2).prepare({"caption": ["a red fox a blue dog runs"]})


def test_windows_are_cut_between_words(folders: dict[str, Path]) -> None:
    """Letters are tokens here, but for `red`: a word that does not fit goes to the next window as a whole."""
    reader = built(folders, "clip-text").embedder.encoder.reader
    text = "cat dog red"
    found = windows(reader, text, 7)  # five beside the marks
    said = ["".join(text[a:b] for a, b in w.spans if b > a) for w in found]
    assert said == ["cat", "dogred"]
    word = "catdogred"
    assert ["".join(word[a:b] for a, b in w.spans) for w in windows(reader, word, 7)] == ["catdo", "gred"]
    assert all((w.ids[0], w.ids[-1]) == (reader.before[0], reader.after[0]) for w in found)


# ---------------------------------------------------------------- weights


@every
def test_weights_of_a_prompt(folders: dict[str, Path], kind: str) -> None:
    conditioner = built(folders, kind)
    prepared = conditioner.prepare({"caption": [parse("a (red:2) fox"), "a"]})
    assert sorted(set(prepared["weights"][0].tolist())) == [1, 2] and prepared["weights"][1].tolist() == [1] * 8
    plain = conditioner(conditioner.prepare({"caption": ["a red fox", "a"]}))
    cond = conditioner(prepared)
    assert plain.tokens is not None and plain.mask is not None
    torch.testing.assert_close(cond.tokens, reweigh(plain.tokens, prepared["weights"], plain.mask))
    assert conditioner.embedder.made == 2  # weights are not a part of what is kept


# ---------------------------------------------------------------- cache


def test_embeddings_are_kept_on_disk_and_only_their_own_are_found(folders: dict[str, Path], tmp_path: Path) -> None:
    first = built(folders, "lm", cache=str(tmp_path / "cache"))
    want = first(first.prepare({"caption": TEXTS}))
    again = built(folders, "lm", cache=str(tmp_path / "cache"))
    again.embedder.encoder.run = None  # type: ignore[method-assign,assignment]
    got = again(again.prepare({"caption": TEXTS[::-1]}))
    assert torch.equal(rows(got, 2)[0], rows(want, 0)[0]) and torch.equal(got.vector[0], want.vector[2])
    assert (again.embedder.made, again.embedder.found) == (0, 3)
    for settings in ({"layer": -1}, {"length": 32}, {"dtype": "bfloat16"}):
        other = built(folders, "lm", cache=str(tmp_path / "cache"), **settings)
        other.prepare({"caption": TEXTS})
        assert (other.embedder.made, other.embedder.found) == (3, 0), settings


def test_a_cache_of_another_encoder_is_not_used(folders: dict[str, Path], tmp_path: Path) -> None:
    other = tmp_path / "t5"
    with torch.random.fork_rng():
        torch.manual_seed(1)
        _t5(other)
    made = [Spec(T5, path=str(f), cache=str(tmp_path / "cache")).build(INFO) for f in (folders["t5"], other)]
    tokens = [c.embedder(TEXTS, torch.device("cpu"))[0].tokens for c in made]
    assert made[1].embedder.found == 0 and not torch.allclose(tokens[0], tokens[1], atol=1e-3)


def test_a_damaged_entry_is_made_again(folders: dict[str, Path], tmp_path: Path) -> None:
    first = built(folders, "t5", cache=str(tmp_path))
    (want,) = first.embedder(TEXTS[:1], torch.device("cpu"))
    for file in tmp_path.rglob("*.tensor"):
        raw = bytearray(file.read_bytes())
        raw[-1] ^= 1
        file.write_bytes(raw)
    again = built(folders, "t5", cache=str(tmp_path))
    assert torch.equal(again.embedder(TEXTS[:1], torch.device("cpu"))[0].tokens, want.tokens)
    assert (again.embedder.made, again.embedder.found) == (1, 0)


def test_memory_is_bounded(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfumato.conditioners.encoder._ROOM", 700)  # about two texts of 4 x 16 floats and their vectors
    embedder = Embedder(built(folders, "t5").embedder.encoder)
    for text in ("a red fox", "a red dog", "a red fox", "a blue fox", "a red fox", "a red dog"):
        embedder([text], torch.device("cpu"))
    assert embedder.made == 4  # the fox was asked for often enough to stay, the dog was not


# ---------------------------------------------------------------- several at once


def test_two_encoders_and_a_label(folders: dict[str, Path]) -> None:
    both = Spec(
        Together,
        first=Spec(ClipText, path=str(folders["clip-text"]), width=12),
        second=Spec(Together, first=Spec(T5, path=str(folders["t5"]), width=12), second=Spec(Label, width=4)),
    ).build(INFO)
    assert both.columns == ("caption", "label") and (both.shape.tokens, both.shape.vector) == (12, 16 + 16 + 4)
    cond = both(both.prepare({"caption": TEXTS, "label": ["dog", "cat", "dog"]}))
    first, second = both.first, both.second.first
    counts = [int(c(c.prepare({"caption": TEXTS})).mask.sum()) for c in (first, second)]
    assert int(cond.mask.sum()) == sum(counts)
    assert isinstance(first, Conditioner) and cond.mask.any(1).all()


# ---------------------------------------------------------------- what is refused


def _without(*names: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        for name in names:
            for file in folder.glob(name):
                file.unlink()

    return remove


def _other_config(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_without("tokenizer*", "vocab*", "merges*"), "has no tokenizer .*name their folder"),
        (_without("*.safetensors"), r"has no \*.safetensors"),
        (_without("config.json"), "has no config.json"),
        (_other_config, "can't be read by the transformers library"),
    ],
)
def test_folders_that_lack_something(
    folders: dict[str, Path], tmp_path: Path, spoil: Callable[[Path], None], says: str
) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(folders["clip-text"], folder)
    spoil(folder)
    with pytest.raises(UserError, match=says):
        Spec(ClipText, path=str(folder)).build(INFO)


def test_a_tokenizer_in_a_folder_of_its_own(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["clip-text"], tmp_path / "text_encoder")
    _without("tokenizer*", "vocab*", "merges*")(tmp_path / "text_encoder")
    apart = ClipText(INFO, path=str(tmp_path / "text_encoder"), tokenizer=str(folders["clip-text"]))
    torch.manual_seed(0)
    cpu = torch.device("cpu")
    assert torch.equal(
        apart.embedder(TEXTS[:1], cpu)[0].tokens, built(folders, "clip-text").embedder(TEXTS[:1], cpu)[0].tokens
    )


def test_an_encoder_that_has_moved_is_found_by_its_name(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFUMATO_ENCODERS", str(folders["t5"].parent))
    moved = T5(INFO, path="/some/other/machine/t5").embedder.encoder
    assert moved.fingerprint == built(folders, "t5").embedder.encoder.fingerprint


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda f: T5(INFO, path="/no/such/folder"), "there is no such folder, and no model of that name"),
        (lambda f: T5(INFO, path=""), "needs conditioner.path"),
        (lambda f: T5(INFO, path=str(f["t5"] / "config.json")), "give the folder"),
        (lambda f: T5(INFO, path=str(f["t5"]), length=513), "length = 513 must be 1 to 512"),
        (lambda f: T5(INFO, path=str(f["t5"]), length=1), "leaves no room"),
        (lambda f: T5(INFO, path=str(f["t5"]), windows=0), "windows = 0 must be at least 1"),
        (lambda f: T5(INFO, path=str(f["t5"]), width=-1), "width = -1"),
        (lambda f: ClipText(INFO, path=str(f["clip-text"]), layer=-4), "layer = -4 must be -1, the last, to -3"),
        (lambda f: LanguageModel(INFO, path=str(f["lm"]), layer=0), "layer = 0 must be"),
        (lambda f: T5(DataInfo((1, 8, 8)), path=str(f["t5"])), "the data has no captions"),
        (lambda f: built(f, "t5").prepare({"caption": "a fox"}), r"write \['a fox'\]"),
        (lambda f: built(f, "t5").prepare({"caption": ["\ud800"]}), "not valid Unicode"),
        (lambda f: built(f, "t5").prepare({}), "needs a 'caption'"),
    ],
)
def test_refused(folders: dict[str, Path], build: Callable[[dict[str, Path]], Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        build(folders)


@every
def test_any_text_is_taken(folders: dict[str, Path], kind: str) -> None:
    """Other languages, pictures and control characters: words that the tokenizer does not know, never an error."""
    conditioner = built(folders, kind, windows=4)
    strange = ["ένα κόκκινο", "👩\u200d🚀", "a\x00red\x1bfox", "中文"]
    cond = conditioner(conditioner.prepare({"caption": strange}))
    want = conditioner(conditioner.prepare({"caption": ["a red fox"]}))
    assert bool(torch.isfinite(cond.tokens).all())
    torch.testing.assert_close(rows(cond, 2)[0], rows(want, 0)[0])
