"""Checkpoints of several processes: slices, agreement, saving behind the training's back, which ones are kept."""

from __future__ import annotations

import errno
import itertools
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sfumato import files
from sfumato.errors import NoCheckpointError, SfumatoError
from sfumato.files import CorruptError, DiskFullError, sha256, verify_manifest
from sfumato.tensorfile import Slice, StoredTensors, part_name, write_tensors
from sfumato.train import saving
from sfumato.train.checkpoint import Checkpoints
from sfumato.train.saving import Saver
from tests.train.table import Seat, rows, together

INFO = {"step": 3, "settings": {}}


def state(seed: int = 0) -> dict[str, dict[str, Tensor]]:
    g = torch.Generator().manual_seed(seed)
    big = {"a": torch.randn(7, 3, generator=g), "b": torch.randn(1, generator=g), "e": torch.zeros(0, 4)}
    return {
        "weights": big,
        "optimizer": {"first.a": torch.randn(7, 3, generator=g).bfloat16(), "count": torch.ones(())},
    }


def cut(groups: dict[str, dict[str, Tensor]], seat: Seat) -> dict[str, dict[str, Slice]]:
    """Each tensor by its rows, one without axes by the first process."""
    return {
        group: {
            name: rows(tensor, seat.rank, seat.size) if tensor.ndim else Slice.whole(tensor)
            for name, tensor in tensors.items()
            if tensor.ndim or seat.rank == 0
        }
        for group, tensors in groups.items()
    }


def same(found: Any, want: dict[str, dict[str, Tensor]]) -> bool:
    return found.keys() == want.keys() and all(
        found[g].keys() == want[g].keys() and all(torch.equal(found[g][k], v) for k, v in want[g].items()) for g in want
    )


# ---------------------------------------------------------------- files of tensors


def test_a_file_is_an_ordinary_safetensors_file_with_its_hash(tmp_path: Path) -> None:
    tensors = {
        "f": torch.randn(3, 5),
        "h": torch.randn(7).bfloat16(),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "none": torch.zeros(0, 3),
        "flags": torch.tensor([True, False, True]),
        "turned": torch.arange(6).reshape(2, 3).t(),
    }
    points: list[str] = []
    written = write_tensors(tmp_path / "x.safetensors", {k: Slice.whole(v) for k, v in tensors.items()}, points.append)
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys() and all(torch.equal(found[k], v) for k, v in tensors.items())
    assert (written.size, written.sha256) == (
        (tmp_path / "x.safetensors").stat().st_size,
        sha256(tmp_path / "x.safetensors"),
    )
    assert points == ["write", "written", "synced"]


@pytest.mark.parametrize(("writers", "readers"), list(itertools.product((1, 2, 3, 5), (1, 2, 4))))
def test_what_any_number_wrote_any_number_reads(tmp_path: Path, writers: int, readers: int) -> None:
    want = {"a": torch.randn(7, 3), "b": torch.randn(1), "c": torch.randn(4, 2).half(), "e": torch.zeros(0, 4)}
    for rank in range(writers):
        part = {name: rows(tensor, rank, writers) for name, tensor in want.items()}
        write_tensors(tmp_path / part_name("g", rank, writers), part)
    stored = StoredTensors(tmp_path, "g")
    assert all(torch.equal(stored[name], tensor) for name, tensor in want.items())
    for rank in range(readers):
        for name, tensor in want.items():
            own = rows(tensor, rank, readers)
            assert torch.equal(stored.rows(name, own.start, own.start + len(own.tensor)), own.tensor)
            assert stored.shape(name) == tuple(tensor.shape)


def test_files_that_do_not_belong_together_are_named(tmp_path: Path) -> None:
    x = torch.randn(6, 2)
    for rank in range(3):
        write_tensors(tmp_path / part_name("g", rank, 3), {"x": rows(x, rank, 3)})
    (tmp_path / part_name("g", 1, 3)).unlink()
    with pytest.raises(CorruptError, match="has 2 files of 'g', which do not belong together or are not all there"):
        StoredTensors(tmp_path, "g")
    write_tensors(tmp_path / part_name("g", 1, 3), {"x": rows(x, 0, 3)})
    with pytest.raises(CorruptError, match="do not hold all rows of 'x'"):
        StoredTensors(tmp_path, "g")
    write_tensors(tmp_path / part_name("g", 1, 3), {"x": rows(torch.randn(6, 3), 1, 3)})
    with pytest.raises(CorruptError, match=r"g\.0000[12]-of-00003.*another shape"):
        StoredTensors(tmp_path, "g")
    with pytest.raises(CorruptError, match="is missing"):
        StoredTensors(tmp_path, "h")


# ---------------------------------------------------------------- several processes


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_checkpoint_of_several_processes_comes_back_on_any_number(tmp_path: Path, size: int, behind: bool) -> None:
    want = state()

    def save(seat: Seat) -> Any:
        saver = Saver(Checkpoints(tmp_path / "checkpoints"), seat)
        if behind:
            assert saver.start(3, cut(want, seat), INFO, lambda folder: None) and saver.busy
        else:
            saver.save(3, cut(want, seat), INFO)
        saver.wait()
        return saver.failed

    assert together(size, save) == [0] * size
    folder = tmp_path / "checkpoints" / "step-00000003"
    verify_manifest(folder)
    assert (tmp_path / "LATEST").read_text() == "step-00000003\n"
    assert len(list(folder.glob("*.safetensors"))) == 2 * size
    assert [entry.name for entry in folder.parent.iterdir()] == [folder.name]
    for readers in (1, 2):
        loaded = together(readers, lambda seat: Saver(Checkpoints(tmp_path / "checkpoints"), seat).load(print))
        assert all(same(one.groups, want) and one.info["step"] == 3 for one in loaded)


def test_what_changes_while_it_is_written_does_not_leak_in(tmp_path: Path) -> None:
    groups, want = state(), state()
    go = threading.Event()
    checkpoints = Checkpoints(tmp_path / "c", reached=lambda point: go.wait(10) and None if point == "write" else None)
    saver = Saver(checkpoints, Seat(0, 1, threading.Barrier(1), [None]))
    done: list[str] = []
    saver.start(3, cut(groups, saver.parallel), INFO, lambda folder: done.append(folder.name))  # type: ignore[arg-type]
    for tensor in groups["weights"].values():
        tensor.fill_(7.0)
    assert not saver.poll() and saver.busy
    go.set()
    saver.wait()
    assert done == ["step-00000003"]
    assert same(checkpoints.read("step-00000003").groups, want)
    saver.start(4, cut(groups, saver.parallel), INFO, lambda folder: None)  # type: ignore[arg-type]
    saver.wait()
    assert same(checkpoints.read("step-00000004").groups, groups)


def test_a_save_falls_due_while_another_is_under_way(tmp_path: Path) -> None:
    saver = Saver(Checkpoints(tmp_path / "c", keep=9), Seat(0, 1, threading.Barrier(1), [None]))
    for step in range(1, 6):
        saver.start(step, cut(state(step), saver.parallel), INFO, lambda folder: None)  # type: ignore[arg-type]
    saver.save(6, cut(state(6), saver.parallel), INFO)  # type: ignore[arg-type]
    assert [path.name for path in saver.checkpoints.all()] == [f"step-{step:08d}" for step in range(1, 7)]


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("who", [0, 1])
def test_a_disk_that_is_full_for_one_process_is_a_failure_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: int, behind: bool
) -> None:
    broken = threading.Event()

    def save(seat: Seat) -> list[str]:
        def reached(point: str) -> None:
            if point == "written" and seat.rank == who and broken.is_set():
                raise OSError(errno.ENOSPC, "No space left on device")

        saver = Saver(Checkpoints(tmp_path / "checkpoints", reached=reached), seat)
        said = []
        for step in (1, 2, 3):
            if seat.rank == 0:
                broken.set() if step == 2 else broken.clear()
            seat.everyone(None)
            try:
                if behind:
                    saver.start(step, cut(state(step), seat), INFO, lambda folder: None)
                    saver.wait()
                else:
                    saver.save(step, cut(state(step), seat), INFO)
            except DiskFullError as error:
                said.append(str(error))
        assert not saver.busy and saver.failed == 1
        return said

    said = together(2, save)
    assert said[0] == said[1] and len(said[0]) == 1
    assert f"0000{who}-of-00002.safetensors: no space left" in said[0][0]
    found = Checkpoints(tmp_path / "checkpoints").all()
    assert [path.name for path in found] == ["step-00000001", "step-00000003"]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_a_disk_that_is_not_shared_is_said(tmp_path: Path) -> None:
    def save(seat: Seat) -> None:
        checkpoints = Checkpoints(tmp_path / "checkpoints")
        if seat.rank == 1:
            real = checkpoints.write

            def write(inside: Path, *rest: Any) -> Any:
                elsewhere = tmp_path / "elsewhere"
                elsewhere.mkdir()
                return real(elsewhere, *rest)

            object.__setattr__(checkpoints, "write", write)
        Saver(checkpoints, seat).save(3, cut(state(), seat), INFO)

    found = together(2, save)
    assert all(isinstance(error, SfumatoError) for error in found)
    assert "must be on a disk that all processes share" in str(found[0]) == str(found[1])


def test_processes_that_find_damage_in_their_share_fall_back_together(tmp_path: Path) -> None:
    def save(seat: Seat) -> None:
        saver = Saver(Checkpoints(tmp_path / "checkpoints"), seat)
        for step in (1, 2):
            saver.save(step, cut(state(step), seat), {"step": step})

    together(2, save)
    said: list[str] = []

    def load(seat: Seat) -> Any:
        return Saver(Checkpoints(tmp_path / "checkpoints"), seat).load(said.append)

    victims = sorted((tmp_path / "checkpoints" / "step-00000002").glob("*.safetensors"))
    raw = bytearray(victims[-1].read_bytes())
    raw[-1] ^= 1
    victims[-1].write_bytes(raw)
    assert [loaded.info["step"] for loaded in together(3, load)] == [1, 1, 1]
    assert len(said) == 1 and victims[-1].name in said[0] and "its sha256 differs" in said[0]
    victims = sorted((tmp_path / "checkpoints" / "step-00000001").glob("*.safetensors"))
    victims[0].unlink()
    found = together(2, load)
    assert all(isinstance(error, NoCheckpointError) and error.exit_code == 3 for error in found)


def test_no_memory_for_a_copy_means_no_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "free_memory", lambda: 100)
    saver = Saver(Checkpoints(tmp_path / "c"), Seat(0, 1, threading.Barrier(1), [None]))
    assert not saver.start(3, cut(state(), saver.parallel), INFO, lambda folder: None)  # type: ignore[arg-type]
    assert not saver.busy and saver.checkpoints.all() == []


# ---------------------------------------------------------------- which ones are kept


def saved(folder: Path, scores: dict[int, float | None], **how: Any) -> list[int]:
    checkpoints = Checkpoints(folder / "checkpoints", **how)
    for step, score in scores.items():
        checkpoints.save(step, {"weights": {"w": torch.zeros(1)}}, {"score": score})
    return [int(path.name[5:]) for path in checkpoints.all()]


def test_every_so_many_steps_one_is_kept_for_good(tmp_path: Path) -> None:
    steps = dict.fromkeys((30, 70, 110, 150, 190, 230, 270, 310, 350, 390))
    # The first at or after 100, 200, 300; and the newest two.
    assert saved(tmp_path, steps, keep=2, every=100) == [110, 230, 310, 350, 390]


def test_the_best_is_kept_until_there_is_a_better_one(tmp_path: Path) -> None:
    assert saved(tmp_path / "a", {1: None, 2: 0.5, 3: 0.3, 4: 0.4, 5: 0.6}, keep=1, best=True) == [3, 5]
    assert saved(tmp_path / "b", {1: 0.5, 2: 0.4, 3: 0.3}, keep=1, best=True) == [3]


# ---------------------------------------------------------------- every moment of a save


def test_at_every_point_of_a_save_one_is_intact_and_none_is_half_there(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    checkpoints.save(1, state(1), INFO)
    seen: list[str] = []

    def look(point: str) -> None:
        seen.append(point)
        found = checkpoints.all()
        assert found, point
        for folder in found:
            verify_manifest(folder)
        assert (tmp_path / "LATEST").read_text().strip() in {folder.name for folder in found}, point

    checkpoints.reached = look
    checkpoints.save(2, state(2), INFO)
    assert seen == [
        *("begin", "write", "written", "synced", "write", "written", "synced", "info", "manifest", "rename", "renamed"),
        *("latest", "latest written", "prune", "pruning", "pruned"),
    ]


def test_one_that_is_made_again_is_never_gone(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    checkpoints.save(1, state(1), INFO)

    def stop(point: str) -> None:
        if point == "moved aside":
            raise KeyboardInterrupt  # as far as the disk can tell: killed

    checkpoints.reached = stop
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(1, state(2), INFO)
    loaded = Checkpoints(tmp_path / "checkpoints").load(print)
    assert loaded is not None and same(loaded.groups, state(1))


def test_a_file_that_can_not_be_read_counts_as_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (1, 2):
        checkpoints.save(step, state(step), {"step": step})
    real = files.sha256

    def unreadable(file: Path) -> str:
        if file.parent.name == "step-00000002" and file.name == "weights.safetensors":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(file)

    monkeypatch.setattr(files, "sha256", unreadable)
    said: list[str] = []
    loaded = checkpoints.load(said.append)
    assert loaded is not None and loaded.info["step"] == 1
    assert "weights.safetensors: can't be read (Input/output error)" in said[0]


@pytest.mark.parametrize("where", range(0, 400, 7))
def test_every_flipped_bit_of_a_manifest_is_its_own(tmp_path: Path, where: int) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    folder = checkpoints.save(1, {"weights": {"w": torch.zeros(1)}}, INFO)
    manifest = folder / "MANIFEST.json"
    raw = bytearray(manifest.read_bytes())
    raw[where % len(raw)] ^= 1 << (where % 7)
    manifest.write_bytes(raw)
    with pytest.raises(CorruptError) as caught:
        verify_manifest(folder)
    assert caught.value.file == manifest
    assert json.loads((folder / "trainer.json").read_text())["step"] == 3
