"""Voxel models from files: what is read is what was written; symmetries follow the draw; bad files are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sfumato.data import Solids, Voxels, check, open_data, pack
from sfumato.data.voxel_files import write_stored
from sfumato.errors import UserError
from sfumato.solid.grid import symmetry
from sfumato.solid.vox import write_vox

SOLIDS = Solids(count=24)
MODELS = SOLIDS.fetch(np.arange(24)).media.numpy()
CAPTIONS = [str(text) for text in SOLIDS.columns(np.arange(24))["caption"]]
NAMES = [text.split(" ", 1)[1] for text in CAPTIONS]
KINDS = ["odd" if i % 2 else "even" for i in range(24)]


def stored(folder: Path, **columns: Any) -> Path:
    file = folder / "models.npz"
    write_stored(file, MODELS, **columns)
    return file


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    split = ["test" if i < 5 else "train" for i in range(24)]
    return stored(tmp_path, caption=CAPTIONS, name=NAMES, category=KINDS, split=split)


def test_an_npz_gives_back_what_was_written(whole: Path) -> None:
    spec = open_data(str(whole))
    data = spec.build()
    assert spec.cls is Voxels
    assert data.info.shape == (4, 16, 16, 16)
    assert data.info.labels == ("even", "odd")
    batch = data.fetch(np.arange(24))
    assert np.array_equal(batch.media.numpy(), MODELS)
    assert batch.conditions["caption"] == CAPTIONS
    assert [data.info.labels[int(k)] for k in torch.as_tensor(batch.conditions["label"])] == KINDS
    assert data.held_out_mask().nonzero()[0].tolist() == [0, 1, 2, 3, 4]


def test_a_draw_turns_the_model_and_says_so(whole: Path) -> None:
    data = Voxels(path=str(whole))
    seen = set()
    for draw in np.linspace(0.001, 0.999, 60):
        batch = data.fetch([7], np.asarray([draw]))
        caption = str(batch.conditions["caption"][0])
        matching = [n for n in range(8) if torch.equal(batch.media[0], symmetry(torch.from_numpy(MODELS[7]), n))]
        turn = next((k for k, word in enumerate(("left", "around", "right"), 1) if f", turned {word}" in caption), 0)
        assert any(n % 4 == turn for n in matching)
        seen.add(caption)
    again = [data.fetch([7], np.asarray([0.37])) for _ in range(2)]
    assert torch.equal(again[0].media, again[1].media)
    assert {
        f"{words}{turn}" for words in (CAPTIONS[7], NAMES[7], f"a {NAMES[7]}") for turn in ("", ", turned left")
    } <= seen


def test_symmetries_by_setting(whole: Path) -> None:
    draws = np.linspace(0.001, 0.999, 40)
    index = np.zeros(40, np.int64)
    bare = {k: len(np.unique(Voxels(path=str(whole), symmetries=k).fetch(index, draws).media.numpy(), axis=0)) for k in
            ("none", "mirror", "all")}  # fmt: skip
    assert bare["none"] == 1
    assert bare["mirror"] <= 2
    assert not any(
        "turned" in str(c) for c in Voxels(path=str(whole), symmetries="all").columns(index, draws)["caption"]
    )


def test_sizes(whole: Path) -> None:
    double = Voxels(path=str(whole), size=32).fetch([3]).media[0].numpy()
    assert np.array_equal(double[:, ::2, ::2, ::2], MODELS[3])
    assert np.array_equal(double[:, 1::2, 1::2, 1::2], MODELS[3])
    half = Voxels(path=str(whole), size=8).fetch([3]).media[0].numpy()
    assert half.shape == (4, 8, 8, 8)
    assert half[3].any()


def test_a_folder_of_vox_files(tmp_path: Path) -> None:
    for i in range(12):
        place = tmp_path / ("test" if i < 2 else "train") / KINDS[i]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i:02}.vox").write_bytes(write_vox(MODELS[i]))
        (place / f"{i:02}.txt").write_text(CAPTIONS[i] + "\n")
    spec = open_data(str(tmp_path))
    assert spec.cls is Voxels
    data = spec.with_(size=16).build()
    assert len(data) == 12
    assert data.info.labels == ("even", "odd")
    assert data.held_out_mask().sum() == 2
    batch = data.fetch(np.arange(12))
    for model, caption in zip(batch.media.numpy(), batch.conditions["caption"]):
        original = MODELS[CAPTIONS.index(str(caption))]
        assert (model[3] > 0).sum() == (original[3] > 0).sum()
        assert model[3, :, :, 0].any()  # it stands on the ground


def test_a_folder_of_meshes_is_voxelised(tmp_path: Path) -> None:
    pytest.importorskip("trimesh")
    from sfumato.solid.mesh import encode

    for i, suffix in enumerate((".glb", ".obj", ".ply", ".stl")):
        (tmp_path / f"{i}{suffix}").write_bytes(encode(MODELS[i], suffix))
    data = Voxels(path=str(tmp_path), size=16)
    media = data.fetch(np.arange(4)).media
    assert (media[:, 3] > 0).flatten(1).any(1).all()
    assert data.info.captions is False


def test_unreadable_models_are_replaced_and_counted(tmp_path: Path) -> None:
    for i in range(8):
        (tmp_path / f"{i}.vox").write_bytes(write_vox(MODELS[i]) if i != 3 else b"VOX broken")
    (tmp_path / "9.vox").write_bytes(write_vox(np.zeros((4, 5, 5, 5), np.uint8)))
    data = Voxels(path=str(tmp_path), size=16, broken=0.5)
    media = data.fetch(np.arange(9)).media
    assert (media[:, 3] > 0).flatten(1).any(1).all()
    assert set(data.unreadable()) == {3, 8}
    assert "empty" in data.problems[0]
    assert not check(Voxels(path=str(tmp_path), size=16, broken=1.0)).good
    with pytest.raises(UserError, match=r"2 of|can't be read"):
        strict = Voxels(path=str(tmp_path), size=16)
        strict.fetch(np.arange(9))


def test_packed_models_are_the_same(whole: Path, tmp_path: Path) -> None:
    pack(Voxels(path=str(whole)), tmp_path / "packed")
    data = open_data(str(tmp_path / "packed")).build()
    assert data.info.kind == "voxels"
    assert np.array_equal(data.fetch(np.arange(24)).media.numpy(), MODELS)


def test_dense_arrays_are_read_too(tmp_path: Path) -> None:
    np.savez(tmp_path / "last.npz", voxels=np.moveaxis(MODELS, 1, -1))
    np.savez(tmp_path / "bool.npz", voxels=MODELS[:, 3] > 0)
    assert np.array_equal(open_data(str(tmp_path / "last.npz")).build().fetch([4]).media[0].numpy(), MODELS[4])
    grey = open_data(str(tmp_path / "bool.npz")).build().fetch([4]).media[0].numpy()
    assert np.array_equal(grey[3] > 0, MODELS[4, 3] > 0)


def bad_arrays() -> dict[str, tuple[dict[str, Any], str]]:
    bits = np.packbits((MODELS[:, 3] > 0).reshape(24, -1), axis=1)
    full = int((MODELS[:, 3] > 0).sum())
    ink = np.zeros((full, 3), np.uint8)
    return {
        "colours are missing": ({"occupancy": bits, "colors": ink[:-1]}, "occupied cells need colors"),
        "no cube": ({"occupancy": np.zeros((3, 9), np.uint8), "colors": np.zeros((0, 3), np.uint8)}, "no cube"),
        "not cubic": ({"voxels": np.zeros((3, 4, 5, 6, 4), np.uint8)}, "not cubes"),
        "floats": ({"voxels": np.zeros((3, 4, 4, 4, 4))}, "uint8"),
        "captions are missing": ({"occupancy": bits, "colors": ink, "caption": np.asarray(["one"])}, "one a model"),
        "no models": ({"voxels": np.zeros((0, 4, 4, 4, 4), np.uint8)}, "uint8|voxels"),
    }


@pytest.mark.parametrize("name", bad_arrays())
def test_bad_arrays_are_named(name: str, tmp_path: Path) -> None:
    arrays, said = bad_arrays()[name]
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UserError, match=said):
        Voxels(path=str(tmp_path / "bad.npz"))


def test_other_bad_inputs(tmp_path: Path, whole: Path) -> None:
    with pytest.raises(UserError, match=r"no \.npz and no folder"):
        Voxels(path=str(tmp_path / "nothing"))
    (tmp_path / "one.vox").write_bytes(write_vox(MODELS[0]))
    with pytest.raises(UserError, match="put several into a folder"):
        open_data(str(tmp_path / "one.vox"))
    with pytest.raises(UserError, match="2 to 256"):
        Voxels(path=str(whole), size=100_000)
    file = stored(tmp_path)
    with pytest.raises(UserError, match="there are no captions"):
        Voxels(path=str(file), symmetries="told")
    whole.write_bytes(whole.read_bytes()[:300])
    with pytest.raises(UserError, match=r"can't be read as an \.npz"):
        Voxels(path=str(whole))
