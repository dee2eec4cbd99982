"""The model folder: what is saved comes back, and nothing that was changed, cut or forged is read."""

from __future__ import annotations

import errno
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sfumato import modelfolder
from sfumato.core import KarrasGrid
from sfumato.errors import SfumatoError, UserError
from sfumato.files import CorruptError, write_manifest
from sfumato.guidance import ClassifierFree
from sfumato.pipeline import Pipeline, Sampling
from sfumato.samplers import Heun
from tests.tiny import tiny_pipeline

FILES = ("MANIFEST.json", "README.md", "config.json", "model.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_pipeline().save_pretrained(tmp_path / "mine")


@pytest.mark.parametrize("conditioner", ["none", "label", "number", "text", "text+label"])
@pytest.mark.parametrize("network", ["dit", "unet"])
def test_what_is_saved_comes_back_bit_for_bit(tmp_path: Path, conditioner: str, network: str) -> None:
    old = tiny_pipeline(conditioner, network)
    sampling = Sampling(
        Heun(frame="flow"), KarrasGrid(rho=5.0), 4, ClassifierFree(2.0, interval=(-4.0, 4.0), rescale=0.5)
    )
    trained = {"samples": 640, "loss": float("nan"), "data": {"path": Path("digits")}}
    old = Pipeline(old.model, old.spec, sampling, trained=trained)
    old.save_pretrained(tmp_path / "mine")
    new = Pipeline.from_pretrained(tmp_path / "mine")
    assert sorted(file.name for file in (tmp_path / "mine").iterdir()) == sorted(FILES)
    mine, theirs = old.model.state_dict(), new.model.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)
    assert "codec.whitening.std" in theirs
    assert (new.sampling, new.spec) == (sampling, old.spec)
    assert new.trained["samples"] == 640 and new.trained["loss"] is None and new.trained["data"] == {"path": "digits"}
    assert not any(module.training for module in new.model.modules())
    wanted = {"label": 3} if conditioner in ("label", "text+label") else {}
    wanted |= {"prompt": "seven"} if "text" in conditioner else {}
    wanted |= {"number": 0.5} if conditioner == "number" else {}
    assert torch.equal(new(**wanted, n=2).media, old(**wanted, n=2).media)


def test_loading_leaves_the_global_generator_as_it_was(folder: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    Pipeline.from_pretrained(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_folder_stands_for_its_model(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "run" / "model")
    (tmp_path / "run" / "recipe.yaml").write_text("type: diffusion\n")
    assert modelfolder.find_folder(tmp_path / "run") == tmp_path / "run" / "model"
    assert torch.equal(Pipeline.load(tmp_path / "run")("7").media, tiny_pipeline()("7").media)


def test_the_card_says_what_it_is_and_no_path_of_the_machine(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    assert "image of shape 1 x 8 x 8" in card and "asked by | caption" in card and 'from_pretrained("mine")' in card
    assert str(folder.parent) not in card
    tiny_pipeline().save_pretrained(folder, card="my own words")
    assert (folder / "README.md").read_text() == "my own words"


def test_a_card_is_text_whatever_the_names_in_it(tmp_path: Path) -> None:
    pipeline = tiny_pipeline()
    pipeline.trained["data"] = "<script>alert(1)</script> | x\n| y"
    pipeline.save_pretrained(tmp_path / "a|b")
    card = (tmp_path / "a|b" / "README.md").read_text()
    assert "<script>" not in card and "&lt;script>alert(1)&lt;/script> \\| x \\| y" in card


# ---------------------------------------------------------------- what is not read


def _flip(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def _empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [_flip, _cut, _empty, Path.unlink])
def test_a_damaged_file_is_named(folder: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(folder / name)
    with pytest.raises(SfumatoError) as caught:
        Pipeline.from_pretrained(folder)
    # a bit of the manifest may be a digit of the sum of another file
    assert str(folder / name) in str(caught.value) or (name == FILES[0] and "its sha256 differs" in str(caught.value))
    assert isinstance(caught.value, CorruptError) and caught.value.exit_code == 1


def _forge(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change config.json and make the manifest agree."""
    config = json.loads((folder / "config.json").read_text())
    changed = change(config)
    (folder / "config.json").write_text(json.dumps(config if changed is None else changed))
    write_manifest(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.update(format=2), "format 2 is newer than this sfumato reads (1); run `pip install -U sfumato`"),
        (lambda c: c.pop("format"), "has no 'format'"),
        (lambda c: c.pop("model"), "has no 'model.info'"),
        (lambda c: c["model"].pop("network"), "has no 'model.network'"),
        (lambda c: c["model"]["network"].update(type="os.system"), "network: there is no network 'os.system'"),
        (
            lambda c: c["model"]["network"].update(type="ditt"),
            "did you mean 'dit'?; a type of your own is made known by --import",
        ),
        (
            lambda c: c["model"]["network"].update(widht=3),
            "network.widht: dit has no setting 'widht'; did you mean 'width'?",
        ),
        (lambda c: c["model"]["info"].update(shape="big"), "'model.info.shape' can't be read"),
        (lambda c: c["model"]["info"].update(kind="film"), "there is no media 'film'"),
        (lambda c: c["model"].update(codec={"type": "arrays", "x": 1}), "codec.x: arrays has no setting 'x'"),
        (lambda c: c["sampling"].update(steps=0), "at least 1, not 0"),
        (
            lambda c: c["sampling"].update(solver="hun"),
            "sampling.solver: there is no solver 'hun'; did you mean 'heun'?",
        ),
        (lambda c: [1, 2], "has no 'format'"),
    ],
)
def test_a_forged_config_is_refused_and_named(folder: Path, change: Callable[[dict[str, Any]], Any], said: str) -> None:
    def apply(config: dict[str, Any]) -> Any:
        made = change(config)
        return made if isinstance(made, list) and made == [1, 2] else None

    _forge(folder, apply)
    with pytest.raises(SfumatoError) as caught:
        Pipeline.from_pretrained(folder)
    assert said in str(caught.value) and str(folder / "config.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_each_tensor_that_does_not_fit_is_named(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["denoiser.network.stem.bias"] = torch.zeros(7)
    tensors["extra"] = torch.zeros(2, 3)
    del tensors["codec.whitening.std"]
    save_file(tensors, file)
    write_manifest(folder)
    with pytest.raises(UserError) as caught:
        Pipeline.from_pretrained(folder)
    for said in (
        f"{file}: these weights belong to other settings",
        "codec.whitening.std is missing",
        "extra is not part of the model",
        "denoiser.network.stem.bias is 7 and should be 16",
    ):
        assert said in str(caught.value)


def test_a_file_that_is_no_safetensors_is_named(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not a tensor in sight")
    write_manifest(folder)
    with pytest.raises(CorruptError, match=r"model\.safetensors: is not a safetensors file"):
        Pipeline.from_pretrained(folder)


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("exploded").touch, ())


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".pkl"])
def test_pickles_are_refused_unopened(folder: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    file = folder.parent / f"weights{suffix}"
    file.write_bytes(pickle.dumps(_Bomb()))
    said = r"a pickle can run any code when it is loaded and is not read here; convert it to \.safetensors"
    with pytest.raises(UserError, match=said):
        Pipeline.from_pretrained(file)
    (folder.parent / "other").mkdir()
    file.rename(folder.parent / "other" / file.name)
    with pytest.raises(UserError, match=said):
        Pipeline.from_pretrained(folder.parent / "other")
    (folder.parent / "other" / file.name).rename(folder / file.name)
    write_manifest(folder)
    with pytest.raises(UserError, match=said):
        Pipeline.from_pretrained(folder)
    assert not Path("exploded").exists()


def test_places_without_a_model_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: there is no such model or run; `sfumato runs list` shows"):
        Pipeline.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"not a model or run folder, it has no config\.json"):
        Pipeline.from_pretrained(tmp_path)
    (tmp_path / "recipe.yaml").write_text("type: diffusion\n")
    with pytest.raises(UserError, match="this run has saved no model yet; let `sfumato train"):
        Pipeline.from_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(UserError, match="give the folder, not a file of it"):
        Pipeline.from_pretrained(file)


# ---------------------------------------------------------------- writing


def test_saving_replaces_an_older_model_and_nothing_else(folder: Path) -> None:
    other = tiny_pipeline("label")
    other.save_pretrained(folder)
    assert Pipeline.from_pretrained(folder).spec == other.spec
    photos = folder.parent / "photos"
    photos.mkdir()
    other.save_pretrained(photos)  # an empty folder is free
    (folder.parent / "notes").mkdir()
    (folder.parent / "notes" / "a.txt").write_text("mine")
    (folder.parent / "file").write_text("mine")
    for name in ("notes", "file"):
        with pytest.raises(UserError, match="something else is there, not an older model; choose another folder"):
            other.save_pretrained(folder.parent / name)
    assert (folder.parent / "notes" / "a.txt").read_text() == "mine"


def test_a_full_disk_leaves_the_older_model_and_no_rubbish(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(modelfolder, "save_file", full)
    with pytest.raises(SfumatoError, match="no space left on the disk"):
        tiny_pipeline("label").save_pretrained(folder)
    monkeypatch.undo()
    assert [entry.name for entry in folder.parent.iterdir()] == ["mine"]
    assert torch.equal(Pipeline.from_pretrained(folder)("7").media, tiny_pipeline()("7").media)
