"""Narrow networks are asked for x0, and a user who asks one for the noise is told what that does."""

from __future__ import annotations

import pytest
from torch import nn

from sfumato.commands.train import _narrow
from sfumato.core import X0, DenoisingLoss, Karras, Parameterization, Unit, Velocity, VelocityError
from sfumato.data import Tones
from sfumato.nn import MLP, DiT, UNet
from sfumato.recipes import prepare
from sfumato.recipes.aim import aim
from sfumato.recipes.oneshots import sounds
from sfumato.recipes.tones import tones
from sfumato.spec import Spec


@pytest.mark.parametrize(
    ("channels", "width", "kind", "weighting"),
    [
        (64, 64, X0(), VelocityError()),
        (64, 127, X0(), VelocityError()),
        (64, 128, Velocity(), Unit()),
        (3, 64, Velocity(), Unit()),
    ],
)
def test_what_is_twice_as_wide_as_its_field_gives_the_velocity(
    channels: int, width: int, kind: Parameterization, weighting: object
) -> None:
    found = aim(channels, width)
    assert found["parameterization"] == kind
    assert isinstance(found["objective"], DenoisingLoss) and found["objective"].weighting == weighting


def test_recipes_of_sounds_take_x0_where_the_network_is_narrow() -> None:
    data = Spec(Tones, count=64)
    assert sounds(data=data, size="xs").build().parameterization == X0()
    assert sounds(data=data, size="m").build().parameterization == Velocity()


@pytest.mark.parametrize(
    ("network", "parameterization", "told"),
    [
        (Spec(UNet, width=48, mults=(1,)), Velocity(), "40 numbers a position and their noise go through 48 channels"),
        (Spec(UNet, width=48, mults=(1,)), Karras(), "network.width=80"),
        (Spec(UNet, width=48, mults=(1,)), X0(), None),
        (Spec(UNet, width=80, mults=(1,)), Velocity(), None),
        (Spec(DiT, width=64, depth=1, heads=2, patch=1), Velocity(), "network.width=80"),
        (Spec(MLP, width=32, depth=1), Velocity(), "numbers a position"),
    ],
)
def test_a_narrow_network_that_gives_the_noise_back_is_a_problem(
    network: Spec, parameterization: Parameterization, told: str | None
) -> None:
    spec = tones().with_(network=network, parameterization=parameterization).override("data.count", 64)
    said = _narrow(prepare(spec))
    assert said is None if told is None else said is not None and told in said


def test_what_is_told_beside_the_field_does_not_count() -> None:
    """Self-conditioning doubles what goes into the network, and not what has to come out."""
    network = Spec(UNet, width=80, mults=(1,))
    spec = tones().with_(network=network, parameterization=Velocity(), objective=DenoisingLoss(self_conditioning=0.5))
    made = prepare(spec.override("data.count", 64))
    stem = made.task.model.denoiser.network.stem
    assert isinstance(stem, nn.Module) and stem.weight.shape[1] == 80 and _narrow(made) is None
