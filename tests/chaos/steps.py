"""Rows 5, 6 and 8: numbers that are not finite, files that can't be read, a disk that is full, parts of a batch."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sfumato.codecs import Pixels
from sfumato.core import CondShape, DenoisingLoss, Flow, NetDenoiser, Velocity
from sfumato.data import Folder, Order
from sfumato.model import Model
from sfumato.tensorfile import StoredTensors
from sfumato.train import DiffusionTask
from sfumato.train.checkpoint import Checkpoints
from tests.chaos.lives import BATCH, KINDS, Prepare, digests, intact, live, metrics, settings
from tests.chaos.row import Row
from tests.train.tiny import TinyNet, make_task, make_trainer

# ---------------------------------------------------------------- not finite

BAD = {7: "data", 12: "loss", 19: "gradient"}  # step -> what is not finite in it


def spoil(trainer: Any, rank: int) -> None:
    """NaN in the data, the loss and a gradient of known steps, on the last rank alone."""
    if rank < trainer.parallel.size - 1:
        return
    task, real = trainer.task, trainer.task.loss

    def loss(batch: Any, draws: Any) -> Any:
        what = BAD.get(draws.start // BATCH + 1)
        if what == "data":
            batch = replace(batch, media=batch.media * math.nan)
        found = real(batch, draws)
        if what == "loss":
            return found._replace(value=found.value * math.nan)
        if what == "gradient":  # the value of the root is 0, its slope is not finite
            weight = next(p for p in task.parameters() if p.requires_grad)
            return found._replace(value=found.value + (0 * weight).sum().sqrt())
        return found

    task.loss = loss


def leave_out(trainer: Any, rank: int) -> None:
    """The same run without those steps: nothing is done in them."""
    optimizer, real, made = trainer.optimizer, trainer.optimizer.step, [0]

    def step(lr: Any, loss: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        made[0] += 1
        if made[0] in BAD:
            return torch.ones_like(loss), torch.ones_like(loss)
        found: tuple[torch.Tensor, torch.Tensor] = real(lr, loss)
        return found

    optimizer.step = step


def row5(folder: Path, full: bool) -> Row:
    """NaN at known steps changes nothing."""
    row = Row(5, "NaN in data, loss, gradient = without those batches")
    kinds = list(KINDS) if full else ["1 process"]
    for kind in kinds:
        asked = {**settings(40), **KINDS[kind], "checkpoint_minutes": 1e6}
        lives = [live(folder / kind / name, asked, act) for name, act in (("nan", spoil), ("without", leave_out))]
        row.check(all(life.code == 0 for life in lives), f"{kind}: ended with {[life.codes for life in lives]}")
        nan, without = digests(folder / kind / "nan"), digests(folder / kind / "without")
        for name in ("weights", "ema", "optimizer"):
            row.check(nan[name] == without[name], f"{kind}: {name} differ")
        skipped = max(line.get("skipped", 0) for line in metrics(folder / kind / "nan"))
        row.check(skipped == len(BAD), f"{kind}: {skipped} steps counted as left out instead of {len(BAD)}")
    row.facts = {"steps": BAD, "kinds": kinds}
    row.figure = f"weights, ema and optimizer bit-equal for {len(kinds)} kinds of run, {len(BAD)} steps counted"
    return row


# ---------------------------------------------------------------- unreadable files


def pictures(folder: Path, n: int, broken: list[int]) -> Path:
    """n pictures; broken ones keep their header, so that only decoding notices."""
    folder.mkdir(parents=True)
    for i in range(n):
        file = folder / f"{i:04}.png"
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (8, 8, 3), np.uint8)).save(file)
        if i in broken:
            file.write_bytes(file.read_bytes()[:90])
    return folder


def trainer_on(pictures: Path) -> Any:
    """Makes a trainer on a folder of pictures."""

    def make(folder: Path, **asked: Any) -> Any:
        data = Folder(path=str(pictures), held_out=0)
        torch.manual_seed(0)
        asked.pop("dropout")
        network = TinyNet(data.info.shape, CondShape(), width=16)
        model = Model(NetDenoiser(network, Flow(), Velocity()), Pixels(data.info), None, data.info)
        return make_trainer(folder, data=data, task=DiffusionTask(model, DenoisingLoss()), **asked)

    return make


def row6(folder: Path, full: bool) -> Row:
    """Broken files and a full disk."""
    row = Row(6, "broken files; a full disk")
    n = 400
    few, many = [17, 250], list(range(7, n, 20))
    asked = settings(60)
    half = pictures(folder / "half", n, few)
    row.check(live(folder / "few", asked, make=trainer_on(half)).code == 0, "0.5% broken: the run failed")
    want = sum(i in few for i in Order(n, 0)(np.arange(BATCH * 60)).tolist())
    counted = max(line.get("replaced", 0) for line in metrics(folder / "few"))
    row.check(counted == want, f"0.5% broken: {counted} counted instead of {want}")
    five = pictures(folder / "five", n, many)
    life = live(folder / "many", asked, make=trainer_on(five))
    said = (folder / "many" / "said-0.txt").read_text()
    row.check(life.code not in (0, 70, 75), f"5% broken: ended with {life.code}")
    row.check("items can't be read, more than 1%" in said and ".png (" in said, f"5% broken: it said {said[-300:]}")
    row.facts = {"replaced": counted, "five_percent_exit": life.code}
    row.figure = f"0.5%: {counted} replaced, exact; 5%: exit {life.code} with the list"
    for later in (False, True) if full else (True,):
        _full_disk(row, folder / f"disk {later}", later)
    return row


def _full_disk(row: Row, folder: Path, later: bool) -> None:
    what = f"full disk, {'async' if later else 'sync'}"
    asked = {**settings(400, keep=99, log_every=100, save_async=later), "task": None}
    with small_disk(folder, 900) as disk:
        if disk is None:
            row.facts[what] = "skipped: mounting a small file system needs root"
            row.figure += f"; {what}: skipped, needs root"
            return
        run = disk / "run"

        def make(where: Path, **settings: Any) -> Any:
            settings.pop("task")
            return make_trainer(where, task=make_task(width=120), **settings)  # a checkpoint of about 340 kB

        life = live(run, asked, make=make)
        left, said = intact(run), (run / "said-0.txt").read_text()
        row.check(life.code == 1, f"{what}: ended with {life.code} instead of 1")
        row.check(len(left) == 2, f"{what}: intact {left}")
        row.check("training goes on and will try again" in said, f"{what}: no warning")
        (disk / "filler").unlink(missing_ok=True)
        for file in (run / "checkpoints").glob("*/weights.safetensors"):
            file.write_bytes(b"")
        damaged = live(run, asked, make=make)
        row.check(damaged.code == 3, f"{what}: with no valid checkpoint left it ended with {damaged.code} instead of 3")
        row.facts[what] = {"exit": life.code, "intact": len(left), "exit_when_none_is_left": damaged.code}
        row.figure += f"; {what}: exit {life.code}, {len(left)} good checkpoints left, exit {damaged.code} without them"


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path | None]:
    """A file system of that size; None where it can't be had."""
    folder.mkdir(parents=True)
    mount = shutil.which("mount")
    command = [mount or "", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if mount is None or os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


# ---------------------------------------------------------------- parts of a batch


def row8(folder: Path, full: bool) -> Row:
    """A step is the same however it is shared out."""
    row = Row(8, "DDP 2 x 8 = 1 x 16 = FSDP2 = accumulation")
    ways: dict[str, dict[str, Any]] = {
        "1 x 16": {}, "accumulate 2": {"accumulate": 2},
        "DDP 2 x 8": {"processes": 2, "parallel": "ddp"}, "FSDP2 2 x 8": {"processes": 2, "parallel": "fsdp"},
    }  # fmt: skip
    if full:
        ways["FSDP2, accumulate 2"] = {"processes": 2, "parallel": "fsdp", "accumulate": 2}
    asked = {**settings(20, dropout=0.0), "checkpoint_minutes": 1e6}
    found = {}
    for way, how in ways.items():
        row.check(live(folder / way, {**asked, **how}).code == 0, f"{way}: failed")
        newest = Checkpoints(folder / way / "checkpoints").all()[-1]
        found[way] = StoredTensors(newest, "weights")
    whole = found["1 x 16"]
    apart = {}
    for way, stored in found.items():
        apart[way] = max(float((stored[k] - whole[k]).norm() / (whole[k].norm() + 1e-12)) for k in whole)
        row.check(apart[way] <= 1e-5, f"{way}: differs by {apart[way]:.1e}")
    row.facts = {"relative_difference": apart}
    row.figure = f"relative difference at most {max(apart.values()):.1e} over 20 steps"
    return row


__all__ = ["Prepare", "row5", "row6", "row8"]
