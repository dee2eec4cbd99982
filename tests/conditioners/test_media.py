"""Conditions that are media: a picture of what is wanted, another item to be like."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml

from sfumato.conditioners import Conditioner, Label, Picture, Reference, Together
from sfumato.core.cond import Cond, CondShape
from sfumato.core.media import DataInfo
from sfumato.errors import UserError
from sfumato.nn import UNet
from sfumato.spec import Spec, dump_yaml, parse

VOXELS = DataInfo((4, 8, 8, 8), "voxels", labels=("a", "b"))
SOUND = DataInfo((1, 4000), "audio", rate=8000)
FIELD = DataInfo((3, 21, 13), "image")


def made(name: str) -> Conditioner:
    torch.manual_seed(0)
    if name == "picture":
        return Picture(VOXELS, width=16, heads=2, depth=1)
    if name == "sound":
        return Reference(SOUND, width=16, heads=2, depth=1, bands=20)
    if name == "voxels":
        return Reference(VOXELS, width=16, heads=2, depth=1, patch=4)
    if name == "field":
        return Reference(FIELD, width=16, heads=2, depth=1)
    return Spec(Together, first=Spec(Label, width=4), second=Spec(Picture, width=16, heads=2, depth=1)).build(VOXELS)


NAMES = ("picture", "sound", "voxels", "field", "together")


def rows(name: str, n: int = 3) -> dict[str, Any]:
    g = torch.Generator().manual_seed(1)
    if name == "sound":
        return {"reference": 0.1 * torch.randn(n, 1, 4000, generator=g)}
    shapes = {"picture": (3, 32, 32), "together": (3, 32, 32), "voxels": VOXELS.shape, "field": FIELD.shape}
    media = torch.randint(0, 256, (n, *shapes[name]), generator=g, dtype=torch.uint8)
    return {"picture": media, "label": [0, 1, 0][:n]} if name in ("picture", "together") else {"reference": media}


def asked(conditioner: Conditioner, columns: dict[str, Any]) -> Cond:
    cond: Cond = conditioner(conditioner.prepare(columns))
    return cond


@pytest.mark.parametrize("name", NAMES)
def test_what_they_give_is_what_they_promise(name: str) -> None:
    conditioner = made(name).eval()
    cond, shape = asked(conditioner, rows(name)), conditioner.shape
    assert cond.vector is not None and cond.vector.shape == (3, shape.vector)
    assert cond.tokens is not None and cond.tokens.shape[::2] == (3, shape.tokens)
    counts = {"picture": 64, "sound": -(-63 // 8), "voxels": 8, "field": 3 * 2, "together": 64}
    assert cond.tokens.shape[1] == counts[name]
    nothing = conditioner.null(3)
    assert nothing.tokens is not None and nothing.tokens.shape == cond.tokens.shape


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_s_condition_does_not_depend_on_its_batch(name: str) -> None:
    conditioner = made(name).eval()
    whole, alone = asked(conditioner, rows(name)), asked(conditioner, {k: v[1:2] for k, v in rows(name).items()})
    for a, b in ((whole.vector, alone.vector), (whole.tokens, alone.tokens)):
        assert a is not None and b is not None
        assert torch.allclose(a[1:2], b, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_dropped_condition_is_the_null_condition(name: str) -> None:
    conditioner = made(name).eval()
    cond, null = asked(conditioner, rows(name)), conditioner.null(3)
    dropped = cond.drop(torch.tensor([True, False, True]), null)
    for whole, kept, none in ((dropped.vector, cond.vector, null.vector), (dropped.tokens, cond.tokens, null.tokens)):
        assert whole is not None and kept is not None and none is not None
        assert torch.equal(whole[[0, 2]], none[[0, 2]]) and torch.equal(whole[1], kept[1])


def test_a_null_of_many_tokens_says_what_one_says() -> None:
    """Attention over equal tokens is that token, so how many there are can't be told: Together may pad them."""
    conditioner = made("picture")
    null = conditioner.null(1)
    assert null.tokens is not None
    assert torch.equal(null.tokens, null.tokens[:, :1].expand_as(null.tokens))


@pytest.mark.parametrize("name", NAMES)
def test_all_parts_are_trained(name: str) -> None:
    conditioner = made(name)
    torch.manual_seed(1)
    cond = asked(conditioner, rows(name)).drop(torch.tensor([True, False, False]), conditioner.null(3))
    sum((part * torch.randn_like(part)).sum() for part in (cond.vector, cond.tokens) if part is not None).backward()
    for key, parameter in conditioner.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.any()), key


def test_pictures_of_any_size_become_squares_of_one_size() -> None:
    conditioner = made("picture")
    same = rows("picture")["picture"]
    assert torch.equal(conditioner.prepare({"picture": same})["picture"], same)
    doubled = same.repeat_interleave(4, 2).repeat_interleave(4, 3)
    reduced = conditioner.prepare({"picture": doubled})["picture"]
    assert torch.equal(reduced, same)
    flat = torch.full((1, 3, 8, 24), 7, dtype=torch.uint8)
    wide = conditioner.prepare({"picture": flat})["picture"][0]
    assert (wide[:, :9] == 255).all() and (wide[:, 13:19] == 7).all() and (wide[:, -9:] == 255).all()


def test_what_is_cut_out_does_not_depend_on_where_it_was() -> None:
    conditioner = Picture(VOXELS, width=16, heads=2, crop=True)
    thing = torch.randint(0, 200, (3, 20, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    seen = []
    for top, left, side in ((0, 0, 40), (13, 22, 64), (70, 5, 100)):
        picture = torch.full((1, 3, side, side), 255, dtype=torch.uint8)
        picture[0, :, top : top + 20, left : left + 12] = thing
        seen.append(conditioner.prepare({"picture": picture})["picture"])
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2])
    white = torch.full((1, 3, 50, 50), 255, dtype=torch.uint8)
    assert (conditioner.prepare({"picture": white})["picture"] == 255).all()


def test_a_network_takes_them_and_half_precision_too() -> None:
    conditioner = made("sound")
    assert conditioner.shape == CondShape(vector=16, tokens=16)
    network = UNet((4, 16), conditioner.shape, width=8, mults=(1, 2), blocks=1)
    cond = asked(conditioner, rows("sound"))
    assert network(torch.randn(3, 4, 16), torch.rand(3), cond).shape == (3, 4, 16)
    prepared = conditioner.to(torch.bfloat16).prepare(rows("sound"))
    half = conditioner(prepared)
    assert half.vector is not None and half.vector.dtype == torch.bfloat16


def test_a_reference_of_sound_has_no_phases() -> None:
    t = torch.arange(4000) / 8000
    tones = torch.stack([torch.sin(2 * torch.pi * 437 * t + p) for p in (0.0, 1.3)])[:, None] / 2
    prepared = made("sound").prepare({"reference": tones})["reference"][:, :, 4:-4]
    assert torch.allclose(prepared[0], prepared[1], atol=0.2)
    louder = made("sound").prepare({"reference": 2 * tones})["reference"][:, :, 4:-4]
    loud = prepared > 0  # well above the floor a factor is a shift: ln 2 over the spread
    assert torch.allclose((louder - prepared)[loud], torch.tensor(0.6931 / 2.5), atol=1e-3)


def test_columns_are_known_before_it_is_built() -> None:
    specs: dict[str, Spec[Conditioner]] = {
        "picture": Spec(Picture), "both": Spec(Together, first="label", second=Spec(Together, first="picture", second="text"))
    }  # fmt: skip
    assert specs["picture"].cls.reads(specs["picture"].settings) == ("picture",)
    assert specs["both"].cls.reads(specs["both"].settings) == ("label", "picture", "caption")
    assert set(made("together").media) == {"picture"}
    assert made("sound").media["reference"] == SOUND


def test_settings_round_trip() -> None:
    for spec in (Spec(Picture, size=48, crop=True, patch=8), Spec(Reference, bands=40, width=64)):
        assert parse(Conditioner, yaml.safe_load(dump_yaml(spec))) == spec


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Picture(VOXELS, patch=3), "power of 2"),
        (lambda: Picture(VOXELS, width=20, heads=4), "multiple of 2 heads"),
        (lambda: Picture(VOXELS, size=2), "size = 2"),
        (lambda: Reference(SOUND, bands=0), "bands = 0"),
        (lambda: Reference(DataInfo((5,), "array")), "1 to 3 axes"),
        (lambda: made("picture").prepare({}), "the data has none"),
        (lambda: made("picture").prepare({"picture": torch.zeros(1, 3, 8, 8)}), "torch.uint8"),
        (lambda: made("picture").prepare({"picture": torch.zeros(1, 4, 8, 8, dtype=torch.uint8)}), "4 channels"),
        (lambda: made("picture").prepare({"picture": ["a.png"]}), "must be media"),
        (lambda: made("picture").prepare({"picture": torch.zeros(1, 3, 0, 8, dtype=torch.uint8)}), "no pixels"),
        (lambda: made("sound").prepare({"reference": torch.zeros(1, 1, 399)}), "shape"),
    ],
)
def test_what_is_refused(make: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()
