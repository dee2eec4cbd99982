"""From a recipe to a trainer that is ready to fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from sfumato import modelfolder
from sfumato.codecs import Codec, Latent, load_weights
from sfumato.core import DataInfo
from sfumato.core.random import keys
from sfumato.data import Data
from sfumato.errors import UserError
from sfumato.kinds import kind_of
from sfumato.model import Model, ModelSpec
from sfumato.recipes.autoencoder import AutoencoderRecipe, PreparedAutoencoder, prepare_autoencoder
from sfumato.recipes.base import Recipe
from sfumato.spec import Spec, as_spec, parse
from sfumato.train import Alignment, DiffusionTask, Display, Estimate, Hook, Run, Trainer, estimate, standard_hooks

_FETCHED = 64


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

    def hooks(self) -> list[Hook]:
        """What the run does besides training."""
        return standard_hooks(self.data, self.recipe.train, self.spec, self.recipe.sampling)


AnyPrepared = Prepared | PreparedAutoencoder


def prepare_any(spec: Spec[Any], run: Run | None = None) -> AnyPrepared:
    """`prepare` for a recipe of any kind."""
    return prepare_autoencoder(spec, run) if spec.cls is AutoencoderRecipe else prepare(spec, run)


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
            measure(model.codec, recipe, data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(keys(recipe.seed, "align", [0])[0]) >> 1)
        align = None if recipe.align is None else Alignment(recipe.align, model)
    task = DiffusionTask(model, recipe.objective, drop=recipe.train.drop, align=align)
    return Prepared(recipe, data, model_spec, task)


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
    return start(prepare_any(spec, run), run, device=device, hooks=hooks, display=display)


def start(
    prepared: AnyPrepared, run: Run, *, device: str = "auto", hooks: Sequence[Hook] = (), display: Display | None = None
) -> Trainer:
    """The trainer of what `prepare` made."""
    recipe = prepared.recipe
    return Trainer(
        prepared.task,
        prepared.data,
        recipe.train,
        run=run,
        seed=recipe.seed,
        device=device,
        hooks=[*prepared.hooks(), *hooks],
        display=display,
    )


def model_spec_of(recipe: Recipe, info: DataInfo) -> ModelSpec:
    """The settings of the model that a recipe trains on data of this shape."""
    codec: Spec[Codec] = recipe.codec or parse(Codec, kind_of(info).codec, path="codec")
    check_encoded(info, codec)
    if codec.cls is Latent:
        codec = codec.with_(path=None)  # of this machine; a model has its autoencoder in its own folder
    return ModelSpec(
        replace(info, encoded=""),
        recipe.network,
        recipe.process,
        as_spec(recipe.parameterization),
        codec,
        recipe.conditioner,
        learned_variance=recipe.objective.learns_variance,
        self_conditioned=recipe.objective.self_conditions,
    )


def check_encoded(info: DataInfo, codec: Spec[Codec]) -> None:
    """Latents on disk are of use to the autoencoder that made them alone."""
    if not info.encoded:
        return
    if codec.cls is not Latent:
        raise UserError(
            f"the data holds latents of an autoencoder ({info.encoded[:8]}), which codec={codec.cls.kind} can't read; set "
            "codec= to the run or folder of that autoencoder"
        )
    if codec.sha256 != info.encoded:
        raise UserError(
            f"the data holds latents of another autoencoder ({info.encoded[:8]}) than codec= names "
            f"({str(codec.sha256)[:8]}); set codec= to the one that made them, or encode again with `sfumato data encode`"
        )


def measure(codec: Codec, recipe: Recipe, data: Data) -> None:
    """Read the weights of a codec that has some, and measure it on the training data, on a GPU if there is one."""
    if isinstance(codec, Latent):
        if recipe.codec is None or recipe.codec.path is None:
            raise UserError(
                "codec=latent: names no autoencoder; set codec= to a run of `sfumato train ae` or to its folder"
            )
        load_weights(codec, recipe.codec.path)
        codec.to("cuda" if torch.cuda.is_available() else "cpu")
    codec.measure(_media(data.split("train"), codec.measured))
    codec.to("cpu")


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


def _media(data: Data, most: int) -> Iterator[Tensor]:
    """Up to `most` items from all over the set, without augmentation."""
    count = min(len(data), most)
    chosen = np.arange(count) * len(data) // max(count, 1)
    for first in range(0, count, _FETCHED):
        yield data.fetch(chosen[first : first + _FETCHED]).media
