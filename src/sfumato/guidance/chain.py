"""Two guidances, one around the other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

from sfumato.core import Denoiser
from sfumato.errors import UserError
from sfumato.guidance.base import Given, Guidance


@final
@dataclass(frozen=True)
class Chain(Guidance, name="chain"):
    """Two guidances: `first` around the network, `second` around both. For three, let `second` be another chain.

    A scale of a call goes to the first member that compares with "anything" (cfg, apg, ...), or to `first` if none does;
    the others keep their settings. Cost: that of both.
    """

    first: Guidance
    second: Guidance

    def __post_init__(self) -> None:
        if self.first.models and self.second.by_condition:
            raise UserError(
                f"guidance=chain: {self.second.kind} can't be around {self.first.kind}, whose worse model is given one "
                "condition a sample; let it be first and the other second"
            )

    @property
    def _leads(self) -> bool:
        """Whether a call's scale is for `first`."""
        return self.first.by_condition or not self.second.by_condition

    @property
    def scale(self) -> float:
        return self._leader.scale

    @property
    def neutral(self) -> float | None:
        other = self.second if self._leads else self.first
        return self._leader.neutral if other.scale == other.neutral else None

    @property
    def by_condition(self) -> bool:
        return self.first.by_condition or self.second.by_condition

    @property
    def models(self) -> tuple[str, ...]:
        return (*self.first.models, *self.second.models)

    @property
    def _leader(self) -> Guidance:
        return self.first if self._leads else self.second

    def check(self, scale: float) -> None:
        self._leader.check(scale)

    def around(self, denoiser: Denoiser, given: Given) -> Denoiser:
        plain = replace(given, scale=None)
        denoiser = self.first.around(denoiser, given if self._leads else plain)
        return self.second.around(denoiser, plain if self._leads else given)
