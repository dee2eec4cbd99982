"""A recipe: every setting of one training, as data. Functions return recipes; files hold them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, final

from sfumato.codecs import Codec
from sfumato.conditioners import Conditioner
from sfumato.core import DenoisingLoss, Flow, Network, Objective, Parameterization, Process, Velocity
from sfumato.data import Data
from sfumato.errors import UserError, did_you_mean
from sfumato.pipeline import Sampling
from sfumato.registry import Registered
from sfumato.spec import Spec
from sfumato.train import Align, Training


@final
@dataclass(frozen=True)
class Recipe(Registered, family="recipe", name="diffusion"):
    """One training of one model, complete: with the data it is all that a run needs to be made again.

    title: also the name of the run folder. data: what is learned from. network: what learns it.
    codec: how media become tensors; none for `pixels` or `arrays`, by the kind of the data.
    conditioner: what samples can be asked by; none for nothing.
    process, parameterization, objective: the mathematics of the training. sampling: how the model is sampled by default.
    train: budget, optimiser, averages. seed: of weights, order and noise.
    init: a run or model folder whose weights training starts from (fine-tuning).
    align: a term of the loss that makes inner features alike those of an encoder; none for none.
    """

    title: str
    data: Spec[Data]
    network: Spec[Network]
    codec: Spec[Codec] | None = None
    conditioner: Spec[Conditioner] | None = None
    process: Spec[Process] = field(default_factory=lambda: Spec(Flow))
    parameterization: Parameterization = field(default_factory=Velocity)
    objective: Objective = field(default_factory=DenoisingLoss)
    sampling: Sampling = field(default_factory=Sampling)
    train: Training = field(default_factory=Training)
    seed: int = 0
    init: str | None = None
    align: Align | None = None

    def __post_init__(self) -> None:
        if not self.title.strip():
            raise UserError("title = '' names no run; give the recipe a title")
        if not 0 <= self.seed < 1 << 62:
            raise UserError(f"seed = {self.seed}: must lie in 0 ... 2^62 - 1")


RecipeFunction = Callable[..., Spec[Any]]
F = TypeVar("F", bound=RecipeFunction)
_FUNCTIONS: dict[str, RecipeFunction] = {}


def recipe(name: str) -> Callable[[F], F]:
    """Register a function that returns a recipe: `sfumato train NAME dial=value`. Its keyword arguments are its dials."""

    def register(function: F) -> F:
        old = _FUNCTIONS.get(name)
        if old is not None and (old.__module__, old.__qualname__) != (function.__module__, function.__qualname__):
            raise UserError(f"the recipe name '{name}' is already taken by {old.__module__}.{old.__qualname__}")
        for dial in inspect.signature(function).parameters.values():
            if dial.kind is not inspect.Parameter.KEYWORD_ONLY:
                raise UserError(f"recipe '{name}': the dial '{dial.name}' must be a keyword-only argument (after a *)")
        _FUNCTIONS[name] = function
        return function

    return register


def recipes() -> dict[str, RecipeFunction]:
    """All recipe functions by name."""
    return dict(sorted(_FUNCTIONS.items()))


def find_recipe(name: str) -> RecipeFunction:
    """The recipe function of a name; raises UserError with the nearest one."""
    if name not in _FUNCTIONS:
        raise UserError(f"there is no recipe '{name}'; {did_you_mean(name, _FUNCTIONS)}")
    return _FUNCTIONS[name]


def slug(text: str) -> str:
    """A title as the name of a folder: letters, digits, dots and dashes."""
    made = re.sub(r"[^\w.-]+", "-", text.strip()).strip("-.")
    return made or "run"


def dials(function: RecipeFunction) -> dict[str, Any]:
    """The dials of a recipe function with their defaults; `inspect.Parameter.empty` for one that must be given."""
    return {name: dial.default for name, dial in inspect.signature(function).parameters.items()}
