"""Rows 1 to 3: kills at any time, kills at every point of a save, files that are damaged."""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sfumato.errors import SfumatoError
from sfumato.train.checkpoint import Checkpoints
from tests.chaos.lives import (
    BATCH,
    KINDS,
    Prepare,
    at,
    digests,
    intact,
    kill_after,
    kill_now,
    kill_points,
    live,
    settings,
)
from tests.chaos.row import Row

POINTS = (
    *("begin", "write", "written", "synced", "info", "manifest", "rename", "renamed"),
    *("latest", "latest written", "prune", "pruning", "pruned"),
)
SHORT = {"1 process": (60, 4), "2 ranks, DDP": (40, 1), "2 ranks, FSDP2": (40, 1)}  # steps and kills


def row1(folder: Path, full: bool) -> Row:
    """A run killed at random points equals one that was not."""
    row = Row(1, "killed by SIGKILL at random points = never killed")
    lives = 0
    for seed, (kind, how) in enumerate(KINDS.items()):
        steps, kills = (300, 20) if full else SHORT[kind]
        asked = {**settings(steps), **how}
        straight, broken = folder / f"straight {seed}", folder / f"killed {seed}"
        row.check(live(straight, asked).code == 0, f"{kind}: the run that is left alone failed")
        for i, (step, delay, victim) in enumerate(kill_points(kills, steps, how["processes"], seed)):
            life = live(broken, {**asked, "save_async": i % 2 == 1}, kill_after(step, delay, victim))
            killed = life.codes[victim] == -9
            row.check(killed, f"{kind}: life {i} ended with {life.codes} and not by its kill of rank {victim}")
            lives += killed
        row.check(live(broken, asked).code == 0, f"{kind}: the last life failed")
        ours, theirs = digests(broken), digests(straight)
        for name in theirs:
            row.check(ours.get(name) == theirs[name], f"{kind}: sha256 of {name} differs")
        row.facts[kind] = {"steps": steps, "kills": kills, "sha256": theirs}
    row.figure = f"{lives} kills, sha256 of weights, ema, optimizer and metrics equal for {len(KINDS)} kinds of run"
    if row.verdict == "fail":
        row.figure = f"{lives} kills"
    return row


def row2(folder: Path, full: bool) -> Row:
    """Killed at every point of a save."""
    row = Row(2, "killed at every point inside a save")
    asked = {**settings(40), "checkpoint_minutes": 1e6}  # lives that are not to be killed save at their end
    cases: list[tuple[str, bool, str, int]] = [
        ("1 process", later, point, 0) for later in (False, True) for point in POINTS
    ]
    if full:
        two = itertools.product(("2 ranks, DDP", "2 ranks, FSDP2"), (False, True), ("written", "manifest", "renamed"))
        cases += [(kind, later, point, 0) for kind, later, point in two]
        cases += [(kind, later, "written", 1) for kind in ("2 ranks, DDP", "2 ranks, FSDP2") for later in (False, True)]
    else:
        cases = cases[::3] + cases[1:13:4]
    straight: dict[str, Mapping[str, str]] = {}
    most = 0
    for i, (kind, later, point, victim) in enumerate(cases):
        what = f"{kind}, {'async' if later else 'sync'}, {point}, rank {victim}"
        if kind not in straight:
            live(folder / kind, {**asked, **KINDS[kind]})
            straight[kind] = digests(folder / kind)
        run = folder / f"run {i}"
        often = {**asked, **KINDS[kind], "save_async": later, "checkpoint_minutes": 1e-9}
        life = live(run, often, _noting(run, at(point, 3, kill_now, victim), 0.01 * later))
        row.check(life.codes[victim] == -9, f"{what}: ended with {life.codes}")
        begun, left = [int(step) for step in (run / "begun.txt").read_text().split()], intact(run)
        if not row.check(bool(left), f"{what}: no intact checkpoint is left"):
            continue
        lost = len([step for step in begun if step > left[-1]])
        most = max(most, lost)
        row.check(
            lost <= 1, f"{what}: saves of the steps {begun} had begun and {left[-1]} is the newest that is intact"
        )
        row.check(live(run, {**asked, **KINDS[kind]}).code == 0, f"{what}: did not go on")
        row.check(digests(run) == straight[kind], f"{what}: what came of it differs")
        row.check(not list((run / "checkpoints").glob(".*")), f"{what}: leftovers")
        shutil.rmtree(run)
    row.facts = {"kills": len(cases), "points": len(POINTS), "intervals_lost_at_most": most}
    row.figure = (
        f"{len(cases)} kills at {len(POINTS)} points, sync and async: all went on, at most {most} interval lost"
    )
    return row


def _noting(run: Path, then: Prepare, slow: float) -> Prepare:
    """Write down the step of each save that begins. slow: seconds that a step takes longer, so that there are several."""

    def prepare(trainer: Any, rank: int) -> None:
        real = trainer.checkpoints.begin

        def begin(step: int, size: int) -> Path:
            handle = os.open(run / "begun.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(handle, f"{step}\n".encode())
            os.close(handle)
            found: Path = real(step, size)
            return found

        def loss(*arguments: Any) -> Any:
            time.sleep(slow)
            return learn(*arguments)

        learn, trainer.task.loss = trainer.task.loss, loss
        trainer.checkpoints.begin = begin
        then(trainer, rank)

    return prepare


# ---------------------------------------------------------------- damage


def flip(file: Path, other: Path) -> None:
    """One bit, in the middle."""
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)


def truncate(file: Path, other: Path) -> None:
    """The last byte is gone."""
    file.write_bytes(file.read_bytes()[:-1])


def empty(file: Path, other: Path) -> None:
    """Nothing is left in it."""
    file.write_bytes(b"")


def delete(file: Path, other: Path) -> None:
    """It is gone."""
    file.unlink()


def swap(file: Path, other: Path) -> None:
    """Its content and another file's have changed places."""
    ours, theirs = file.read_bytes(), other.read_bytes()
    file.write_bytes(theirs)
    other.write_bytes(ours)


DAMAGES: Sequence[Callable[[Path, Path], None]] = (flip, truncate, empty, delete, swap)


def row3(folder: Path, full: bool) -> Row:
    """Each file of the newest checkpoint is damaged in each way."""
    row = Row(3, "each file of the newest checkpoint damaged")
    done = named = found = 0
    for kind in KINDS if full else ("1 process",):
        source = folder / kind
        live(source, {**settings(10, keep=2, checkpoint_minutes=1e-9), **KINDS[kind]})
        newest = Checkpoints(source / "checkpoints").all()[-1].name
        names = sorted(path.name for path in (source / "checkpoints" / newest).iterdir())
        for (i, name), damage in itertools.product(enumerate(names), DAMAGES):
            broken = folder / "broken"
            shutil.copytree(source, broken)
            place = broken / "checkpoints" / newest
            other = names[(i + 1) % len(names)]
            damage(place / name, place / other)
            said: list[str] = []
            what = f"{kind}, {name}, {damage.__name__}"
            done += 1
            try:
                loaded = Checkpoints(broken / "checkpoints").load(said.append)
            except SfumatoError as error:
                row.check(False, f"{what}: {error}")
            else:
                good = loaded is not None and loaded.folder.name != newest and len(said) == 1
                found += row.check(good, f"{what}: not noticed")
                either = (name, other, "MANIFEST.json") if damage is swap else (name,)
                named += row.check(any(one in " ".join(said) for one in either), f"{what}: it said {said}")
            shutil.rmtree(broken)
        for name in names if full else ():  # and the run goes on to the same end
            broken = folder / "broken"
            shutil.copytree(source, broken)
            flip(broken / "checkpoints" / newest / name, Path())
            life = live(broken, {**settings(10, keep=2), **KINDS[kind]})
            row.check(
                life.code == 0 and digests(broken) == digests(source), f"{kind}, {name}: did not come to the same"
            )
            shutil.rmtree(broken)
    row.facts = {"damages": done, "detected": found, "named": named}
    row.figure = f"{found} of {done} damages detected ({100 * found / max(done, 1):.0f}%), {named} named, all fell back"
    return row


__all__ = ["BATCH", "DAMAGES", "POINTS", "row1", "row2", "row3"]
