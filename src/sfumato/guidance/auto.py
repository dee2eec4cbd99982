"""Autoguidance: away from what a worse version of the model believes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from sfumato.core import Cond, Denoiser, Process
from sfumato.errors import UserError
from sfumato.guidance.base import Given, check_interval, check_scale
from sfumato.guidance.contrast import Contrast, Pair


@final
@dataclass(frozen=True)
class Autoguidance(Contrast, name="auto"):
    """Autoguidance: D = D_worse + w (D - D_worse), with a smaller or less trained model of the same data as the worse one.

    model: a model folder, a run, or a checkpoint of a run (its averaged weights), as a path. In Python any denoiser of the
    same process will do: `Autoguidance("small").wrap(denoiser, models={"small": worse})`.
    w = 1 is no guidance, w = 0 the worse model. Works without a condition; around classifier-free guidance (`second` in a
    `chain`) D is the guided one.
    interval: guide only where low <= log-SNR <= high.

    Karras et al., "Guiding a Diffusion Model with a Bad Version of Itself", 2024, eq. 3. Both models must err alike:
    the same data, process and codec, less width or less training.
    Cost: a pass of each model over a batch of B where guidance acts.
    """

    model: str = ""
    scale: float = 2.0
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_scale(self.scale)
        check_interval(self.interval)
        if not self.model:
            raise UserError(
                "guidance=auto needs a worse model; set guidance.model= to a run, a model folder or a checkpoint"
            )

    @property
    def by_condition(self) -> bool:
        return False

    @property
    def models(self) -> tuple[str, ...]:
        return (self.model,)

    def around(self, denoiser: Denoiser, given: Given) -> Denoiser:
        if self.model not in given.models:
            raise UserError(
                f"guidance=auto has no denoiser for '{self.model}'; give wrap models={{'{self.model}': worse}}"
            )
        worse = given.models[self.model]
        if worse.process != denoiser.process:
            raise UserError(
                f"guidance.model = {self.model}: its process is {worse.process} and not {denoiser.process}; "
                "the worse model must have been trained with the same one"
            )
        return _ModelPair(denoiser, self, self.scales(given), given.times, worse)


@final
@dataclass(frozen=True)
class _ModelPair(Pair):
    worse: Denoiser

    def other(self, x_t: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        return self.worse(x_t, t, cond)

    def both(self, x_t: Tensor, t: Tensor, cond: Cond | None) -> tuple[Tensor, Tensor]:
        return self.inner(x_t, t, cond), self.worse(x_t, t, cond)


@final
@dataclass(frozen=True)
class Bound:
    """A denoiser that brings its own condition, whatever it is called with: another model reads a prompt in its own way."""

    denoiser: Denoiser
    cond: Cond | None

    @property
    def process(self) -> Process:
        """That of the denoiser."""
        return self.denoiser.process

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        return self.denoiser(x_t, t, self.cond)
