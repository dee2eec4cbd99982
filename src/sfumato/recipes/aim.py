"""What a network is asked for: the velocity, or the clean data where the noise would not fit through it."""

from __future__ import annotations

from typing import Any

from sfumato.core import X0, DenoisingLoss, LogitNormalTimes, Velocity, VelocityError


def roomy(channels: int, width: int) -> bool:
    """Whether so many channels carry a field and its noise: twice as many as it has, a rule of thumb."""
    return width >= 2 * channels


def aim(channels: int, width: int) -> dict[str, Any]:
    """`parameterization` and `objective` for fields of so many channels and a U-Net of such a width.

    The velocity where the network is twice as wide as the field. Else x0, with the same loss, and more of the times far up
    in the noise: a direction that a narrow network does not carry keeps its noise with velocity, and with x0 becomes the mean
    (docs/processes.md, "Blind directions").
    """
    if roomy(channels, width):
        return {"parameterization": Velocity(), "objective": DenoisingLoss(times=LogitNormalTimes())}
    times = LogitNormalTimes(mean=0.5, std=1.3)
    return {"parameterization": X0(), "objective": DenoisingLoss(times=times, weighting=VelocityError())}
