"""The contract of every guidance: settings that make a denoiser of a denoiser.

All act on E[x0 | x_t], know no solver, and nest. What is decided for a sample (which passes are needed, how strong) is
decided from times and scales, which are on the CPU: no call waits for the device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from sfumato.core import Cond, Denoiser, Process, lift
from sfumato.errors import UserError
from sfumato.registry import Registered


@final
@dataclass(frozen=True)
class Given:
    """What a guidance may use beside the denoiser, for a batch of B.

    null: what "anything" is, or negative prompts; None for an unconditional model.
    scale: (B,) float64 on the CPU, one a sample; None for the guidance's own setting.
    times: the sampling grid, (N + 1,) or (N + 1, *prefix of x's shape); None if it is not known.
    models: the other denoisers that `Guidance.models` names.
    """

    null: Cond | None = None
    scale: Tensor | None = None
    times: Tensor | None = None
    models: Mapping[str, Denoiser] = field(default_factory=dict)


class Guidance(Registered, ABC, family="guidance"):
    """Settings of a guidance. A new one has a `scale` and writes `around`; everybody else calls `wrap`."""

    @property
    @abstractmethod
    def scale(self) -> float:
        """The strength where a call names none."""

    @property
    def neutral(self) -> float | None:
        """The scale at which nothing changes, bit for bit; None if there is none."""
        return 1.0

    @property
    def by_condition(self) -> bool:
        """Whether it compares what was asked with "anything": it then needs a conditional model, and scale 0 no prompt."""
        return True

    @property
    def models(self) -> tuple[str, ...]:
        """Model folders of other denoisers that it needs, to be handed to `wrap` by these names."""
        return ()

    @abstractmethod
    def around(self, denoiser: Denoiser, given: Given) -> Denoiser:
        """The guided denoiser."""

    @final
    def wrap(
        self,
        denoiser: Denoiser,
        null: Cond | None = None,
        scale: Tensor | None = None,
        *,
        times: Tensor | None = None,
        models: Mapping[str, Denoiser] | None = None,
    ) -> Denoiser:
        """The guided denoiser of one batch; see `Given` for the arguments. Raises UserError for what is missing or wrong."""
        return self.around(denoiser, Given(null, scale, times, models or {}))

    def check(self, scale: float) -> None:
        """Raise UserError for a scale that means nothing."""
        check_scale(scale, self.neutral)

    @final
    def scales(self, given: Given) -> Tensor:
        """(B,) float64 on the CPU, checked; (1,) if a call names none."""
        scale = torch.tensor([self.scale]) if given.scale is None else given.scale
        scale = scale.detach().to("cpu", torch.float64)
        for value in scale.tolist():
            self.check(value)
        return scale

    @final
    def null(self, given: Given) -> Cond:
        """The null condition; raises UserError for an unconditional model."""
        if given.null is None:
            raise UserError(
                f"guidance={self.kind} compares what was asked with anything, and this model is unconditional; "
                "use guidance=auto or pag, or none"
            )
        return given.null


def check_scale(scale: float, neutral: float | None = 1.0) -> None:
    """Raise UserError for a guidance scale that is negative or not finite."""
    if not 0 <= scale < float("inf"):
        usual = "1 is no guidance, 2 to 8 are usual" if neutral == 1 else "0 is no guidance, 0.5 to 5 are usual"
        raise UserError(f"guidance={scale} is not a scale; {usual}, and it can't be negative")


@dataclass(frozen=True)
class Wrapped:
    """A denoiser around `inner`. Everything given per sample is for B samples; a call may have a multiple of them.

    An outer guidance asks for several passes as one batch [x, x]: row i of it belongs to sample i modulo B.
    """

    inner: Denoiser

    @property
    def process(self) -> Process:
        """That of the inner denoiser."""
        return self.inner.process


def innermost(denoiser: Denoiser) -> Denoiser:
    """The denoiser inside all guidance."""
    while isinstance(denoiser, Wrapped):
        denoiser = denoiser.inner
    return denoiser


def tile(values: Tensor, rows: int) -> Tensor:
    """(B, ...) to (rows, ...) for a batch of `rows` that is B samples, or several times them. (1, ...) goes with any."""
    if len(values) == rows:
        return values
    if rows % len(values):
        raise UserError(f"guidance for {len(values)} samples does not fit a batch of {rows}; give one scale a sample")
    return values.repeat(rows // len(values), *[1] * (values.ndim - 1))


def spread(scale: Tensor, t: Tensor) -> Tensor:
    """A scale for every sample, (B,) or (1,), as a scale for every time, of t's shape."""
    return tile(scale, len(t)).reshape(-1, *[1] * (t.ndim - 1)).expand(t.shape)


def lift_mask(mask: Tensor, x: Tensor) -> Tensor:
    """A bool mask of a shape that is a prefix of x's, to broadcast against x on its device."""
    return lift(mask, x).bool()


def check_interval(interval: tuple[float, float] | None) -> None:
    """Raise UserError unless (low, high) with low < high."""
    if interval is not None and not interval[0] < interval[1]:
        raise UserError(f"the guidance interval must be (low, high) in log-SNR with low < high, not {interval}")
