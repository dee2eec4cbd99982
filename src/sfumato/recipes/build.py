"""From a recipe to a trainer that is ready to fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from sfumato import modelfolder
from sfumato.codecs import Arrays, Codec, Pixels
from sfumato.core import DataInfo
from sfumato.core.random import keys
from sfumato.data import Data
from sfumato.errors import UserError
from sfumato.model import Model, ModelSpec
from sfumato.recipes.base import Recipe
from sfumato.spec import Spec, as_spec
from sfumato.train import DiffusionTask, Display, Estimate, Hook, Run, Trainer, estimate, standard_hooks

_MEASURED = 4096  # items that the codec is measured on: 1% of a deviation or better
_FETCHED = 256


@final
@dataclass(frozen=True)
class Prepared:
    """The parts of a run, built: what `trainer` hands to the `Trainer`, and what a dry run looks at."""

    recipe: Recipe
    data: Data
    spec: ModelSpec
    task: DiffusionTask

    def estimate(self, device: str = "auto") -> Estimate:
        """Parameters, memory and time, from two real steps."""
        return estimate(self.task, self.data, self.recipe.train, seed=self.recipe.seed, device=device)


def prepare(spec: Spec[Recipe], run: Run | None = None) -> Prepared:
    """Open the data and build the model of a recipe: a function of the recipe and the data, bit for bit.

    With a `run` that has checkpoints, the codec is not measured and `init` is not read: the checkpoint has both.
    """
    recipe = spec.build()
    data = recipe.data.build()
    model_spec = model_spec_of(recipe, data.info)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(keys(recipe.seed, "init", [0])[0]) >> 1)
        model = model_spec.build()
    if run is None or run.checkpoints().newest_info() is None:
        if recipe.init is not None:
            start_from(model, model_spec, recipe.init)
        else:
            model.codec.measure(_media(data.split("train")))
    return Prepared(recipe, data, model_spec, DiffusionTask(model, recipe.objective, drop=recipe.train.drop))


def trainer(
    spec: Spec[Recipe],
    folder: str | Path,
    *,
    device: str = "auto",
    hooks: Sequence[Hook] = (),
    display: Display | None = None,
) -> Trainer:
    """A trainer for a recipe in a run folder; `fit()` starts it or goes on. `hooks` are called after the standard ones."""
    run = Run(folder, spec)
    check_init(spec, run.folder)
    return start(prepare(spec, run), run, device=device, hooks=hooks, display=display)


def start(
    prepared: Prepared, run: Run, *, device: str = "auto", hooks: Sequence[Hook] = (), display: Display | None = None
) -> Trainer:
    """The trainer of what `prepare` made."""
    recipe = prepared.recipe
    standard = standard_hooks(prepared.data, recipe.train, prepared.spec, recipe.sampling)
    return Trainer(
        prepared.task,
        prepared.data,
        recipe.train,
        run=run,
        seed=recipe.seed,
        device=device,
        hooks=[*standard, *hooks],
        display=display,
    )


def model_spec_of(recipe: Recipe, info: DataInfo) -> ModelSpec:
    """The settings of the model that a recipe trains on data of this shape."""
    codec: Spec[Codec] = recipe.codec or Spec(Pixels if info.kind == "image" else Arrays)
    return ModelSpec(
        info,
        recipe.network,
        recipe.process,
        as_spec(recipe.parameterization),
        codec,
        recipe.conditioner,
        learned_variance=recipe.objective.learns_variance,
    )


def check_init(spec: Spec[Recipe], folder: Path) -> None:
    """A run can't start from itself: starting over would delete what it starts from."""
    if spec.init is not None and Path(spec.init).resolve().is_relative_to(folder.resolve()):
        raise UserError(f"init={spec.init}: a run can't start from itself; choose another name= for the new run")


def start_from(model: Model, spec: ModelSpec, init: str) -> None:
    """Take over all weights, and the codec's measurements that they were trained with, of a run or model folder.

    The condition may be asked for new things (other captions, say) as long as the conditioner has the same weights; whatever
    does not fit is named.
    """
    stored = modelfolder.load(init)
    old, new = stored.spec.parameterization, spec.parameterization
    if old != new:
        raise UserError(
            f"init={init}: its network was trained to give parameterization={old.cls.kind} and this recipe asks for "
            f"{new.cls.kind}; set parameterization={old.cls.kind}"
        )
    if stored.spec.codec != spec.codec:
        raise UserError(
            f"init={init}: its codec is {stored.spec.codec.cls.kind} with other settings than this recipe's "
            f"{spec.codec.cls.kind}; give both the same codec"
        )
    modelfolder.fit(model, stored.model.state_dict(), f"init={init}")


def _media(data: Data) -> Iterator[Tensor]:
    """Up to `_MEASURED` items from all over the set, without augmentation."""
    count = min(len(data), _MEASURED)
    chosen = np.arange(count) * len(data) // max(count, 1)
    for first in range(0, count, _FETCHED):
        yield data.fetch(chosen[first : first + _FETCHED]).media
