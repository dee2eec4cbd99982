"""Averages of the weights that nobody kept, put together after training from those that were.

The average of relative deviation s after step t weighs the weights at step tau of the way with the profile

    p(tau; gamma, t) = (gamma + 1) tau^gamma / t^(gamma + 1)   for 0 <= tau <= t, else 0

(`sfumato.train.ema`). Snapshots of two or more averages, taken now and then, are as many profiles. Any other profile q is
nearly a sum of theirs, and the average that belongs to it is, as nearly, the same sum of the snapshots:

    minimize || sum_i x_i p_i - q ||^2   with   sum_i x_i = 1;      theta_q ~ sum_i x_i theta_i.

The products of two profiles are known in closed form: with a the earlier of the two times and b the later,

    <p_a, p_b> = (gamma_a + 1) (gamma_b + 1) / ((gamma_a + gamma_b + 1) b) * (a / b)^gamma_b.

Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models" (EDM2), 2024, section 3.2, appendix C,
algorithm 3. https://arxiv.org/abs/2312.02696
The condition on the sum is added here: weights that stood still are then given back exactly, whatever their size, and by
Cauchy and Schwarz the error of a weight theta is at most

    | theta_q - sum_i x_i theta_i | <= || sum_i x_i p_i - q ||  || theta - c ||     for any constant c.

`runs/NAME/averages/step-00001200/` holds the averages after a step: `ema.safetensors` (names as in a checkpoint: 0.NAME is of
the first deviation), `averages.json`, `MANIFEST.json`.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sfumato.errors import UserError
from sfumato.files import CorruptError, disk_errors, make_folder, remove_leftovers, replacing_folder, verify_manifest
from sfumato.train.ema import power_gamma

FORMAT = 1
TENSORS, FACTS = "ema.safetensors", "averages.json"
_NAME = re.compile(r"step-(\d{8,})")
_HALF = torch.finfo(torch.float16)
Vector = NDArray[np.float64]


@final
@dataclass(frozen=True)
class Profile:
    """A power-function profile: std, its relative deviation, and t, the step that it ends with."""

    std: float
    t: float

    def __call__(self, tau: Vector) -> Vector:
        """Its density at steps tau."""
        gamma = power_gamma(self.std)
        inside = np.clip(tau, 0, None) / self.t
        return np.where((tau >= 0) & (tau <= self.t), (gamma + 1) / self.t * inside**gamma, 0.0)


def products(first: Sequence[Profile], second: Sequence[Profile]) -> Vector:
    """Inner products (len(first), len(second)) of profiles, in closed form."""
    g, h = (np.array([power_gamma(p.std) for p in row]) for row in (first, second))
    t, s = (np.array([p.t for p in row], np.float64) for row in (first, second))
    g, h, t, s = g[:, None], h[None], t[:, None], s[None]
    late, early = np.maximum(t, s), np.minimum(t, s)
    of_late = np.where(t > s, g, h)
    return np.asarray((g + 1) * (h + 1) / ((g + h + 1) * late) * (early / late) ** of_late)


@final
@dataclass(frozen=True)
class Combination:
    """weights: of each profile, with the sum 1. error: ||sum - target|| / ||target||. gain: the sum of the weights' sizes, by
    which rounding errors of the snapshots may grow."""

    weights: tuple[float, ...]
    error: float

    @property
    def gain(self) -> float:
        return float(np.abs(self.weights).sum())


def combine(profiles: Sequence[Profile], target: Profile) -> Combination:
    """The weights of profiles whose sum comes closest to the target.

    Solved for profiles of unit length, in the space of weights whose sum is 1, by singular values: profiles that are nearly
    alike do no harm.
    """
    if not profiles:
        raise UserError("there are no averages to put together; train with train.snapshots=20 to have some")
    length = np.sqrt(np.diag(products(profiles, profiles)))
    gram = products(profiles, profiles) / np.outer(length, length)
    goal = products(profiles, [target])[:, 0] / length
    # y = x * length; the condition is sum(y / length) = 1.
    normal = 1 / length
    start = normal / (normal @ normal)
    free = np.linalg.svd(normal[None])[2][1:].T  # directions that keep the condition
    z, *_ = np.linalg.lstsq(free.T @ gram @ free, free.T @ (goal - gram @ start), rcond=1e-13)
    y = start + free @ z
    x = y / length
    x /= x.sum()
    size = float(products([target], [target])[0, 0])
    square = float(y @ gram @ y - 2 * y @ goal + size)
    return Combination(tuple(float(v) for v in x), float(np.sqrt(max(0.0, square) / size)))


# ---------------------------------------------------------------- snapshots on disk


@final
@dataclass(frozen=True)
class Snapshot:
    """The averages after a step, as `averages.json` has them. step, samples: of the run. stds: relative deviations."""

    folder: Path
    step: int
    samples: int
    stds: tuple[float, ...]

    @property
    def profiles(self) -> list[Profile]:
        """Of each of its averages."""
        return [Profile(std, float(self.step)) for std in self.stds]


@final
class Snapshots:
    """The folder `averages/` of a run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(
        self, step: int, samples: int, stds: Sequence[float], averages: Mapping[str, Tensor], dtype: str = "fp16"
    ) -> Path:
        """Write the averages (`Ema.state`) after a step, as a whole or not at all. Raises DiskFullError.

        dtype: `fp16`, half the bytes and rounded by 2^-12; a tensor with values that have no place in it, as always all with
        `fp32`, stays as it is.
        """
        final_path = self.folder / f"step-{step:08d}"
        make_folder(self.folder)
        remove_leftovers(self.folder)
        facts = {"format": FORMAT, "step": step, "samples": samples, "stds": list(stds), "dtype": dtype}
        narrow = {k: _narrow(v) if dtype == "fp16" else v.detach().contiguous() for k, v in averages.items()}
        with replacing_folder(final_path) as inside:
            save_file(narrow, inside / TENSORS)
            (inside / FACTS).write_text(json.dumps(facts, indent=1), encoding="utf-8")
        return final_path

    def truncate(self, step: int) -> None:
        """Delete snapshots after `step`: of steps that a resumed run, or one that went back, makes again."""
        for path, number in self._folders():
            if number > step:
                with disk_errors(path):
                    shutil.rmtree(path)

    def all(self, warn: Callable[[str], object] = lambda text: None) -> list[Snapshot]:
        """Those whose facts can be read, oldest first; tensors are not looked at. Others are named to `warn`."""
        found = []
        for path, _ in self._folders():
            try:
                verify_manifest(path, [FACTS])
                found.append(_read(path))
            except CorruptError as error:
                warn(f"the averages in {path.name} are damaged and left out ({error})")
        return found

    def _folders(self) -> list[tuple[Path, int]]:
        if not self.folder.is_dir():
            return []
        numbers = ((path, _NAME.fullmatch(path.name)) for path in self.folder.iterdir())
        return sorted(((path, int(m[1])) for path, m in numbers if m), key=lambda found: found[1])


def _read(path: Path) -> Snapshot:
    try:
        facts: dict[str, Any] = json.loads((path / FACTS).read_text(encoding="utf-8"))
        number = int(facts["format"])
        if number > FORMAT:
            raise UserError(
                f"{path / FACTS}: format {number} is newer than this sfumato reads ({FORMAT}); run `pip install -U sfumato`"
            )
        return Snapshot(path, int(facts["step"]), int(facts["samples"]), tuple(map(float, facts["stds"])))
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError):
        raise CorruptError(path / FACTS, "can't be read") from None


def _narrow(tensor: Tensor) -> Tensor:
    """In float16 where that keeps the values to its precision: not too large, and next to nothing lost below its range."""
    found = tensor.detach().contiguous()
    if not found.is_floating_point() or not found.numel():
        return found
    if float(found.abs().max()) > _HALF.max:
        return found
    half = found.to(torch.float16)
    lost = (half.to(found.dtype) - found).norm()
    return half if float(lost) <= 2**-11 * float(found.norm()) else found


# ---------------------------------------------------------------- putting together


@final
@dataclass(frozen=True)
class Rebuilt:
    """An average that was put together. averages: by the model's names. step: that it ends with. used: snapshots."""

    averages: dict[str, Tensor]
    combination: Combination
    step: int
    used: tuple[Snapshot, ...]


def choose(snapshots: Sequence[Snapshot], step: int | None = None) -> tuple[list[Snapshot], int]:
    """(snapshots up to a step, the step): the last one's if none is given.

    Raises UserError for a step after which none was kept: nothing would stand for the way from the one before it.
    """
    if not snapshots:
        raise UserError("the run has kept no averages; train with train.snapshots=20 to have some")
    end = snapshots[-1].step if step is None else step
    nearest = min((snapshot.step for snapshot in snapshots), key=lambda there: abs(there - end))
    if nearest != end:
        raise UserError(f"step={end}: no averages were kept after this step; the nearest ones are of step={nearest}")
    return [snapshot for snapshot in snapshots if snapshot.step <= end], end


def fit(snapshots: Sequence[Snapshot], std: float, step: int) -> Combination:
    """The combination of the snapshots' averages that comes closest to that of deviation `std` after `step`."""
    return combine([profile for snapshot in snapshots for profile in snapshot.profiles], Profile(std, float(step)))


def rebuild(
    snapshots: Sequence[Snapshot],
    std: float,
    step: int | None = None,
    warn: Callable[[str], object] = lambda text: None,
) -> Rebuilt:
    """The average of deviation `std` after `step`, the last snapshot's if none is given.

    Every file is checked against its manifest first; damaged ones are named to `warn` and left out. Holds one model in
    float32 and one tensor of a snapshot at a time. Raises UserError if there is nothing to build from.
    """
    intact = [snapshot for snapshot in snapshots if _intact(snapshot, warn)]
    used, end = choose(intact, step)
    found = fit(used, std, end)
    weights = iter(found.weights)
    total: dict[str, Tensor] = {}
    for snapshot in used:
        own = [next(weights) for _ in snapshot.stds]
        with safe_open(snapshot.folder / TENSORS, framework="pt") as stored:
            for key in stored.keys():  # noqa: SIM118 - not a mapping
                number, _, name = key.partition(".")
                part = stored.get_tensor(key)
                wide = part.to(torch.float32) if part.dtype == torch.float16 else part
                if name not in total:
                    total[name] = torch.zeros_like(wide)
                total[name].add_(wide, alpha=own[int(number)])
    return Rebuilt(total, found, end, tuple(used))


def _intact(snapshot: Snapshot, warn: Callable[[str], object]) -> bool:
    try:
        verify_manifest(snapshot.folder)
        with safe_open(snapshot.folder / TENSORS, framework="pt") as stored:
            stored.keys()
        return True
    except (CorruptError, SafetensorError, OSError) as error:
        warn(f"the averages in {snapshot.folder.name} are damaged and left out ({error})")
        return False
