"""Weights in 8 bits: what comes back, to half a step; and a model folder of them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sfumato import modelfolder
from sfumato.compact import SCALE, compacted, expanded
from sfumato.nn import ConvAutoencoder
from tests.tiny import tiny_pipeline


def test_whole_numbers_of_steps_come_back_exactly_and_others_to_half_a_step() -> None:
    generator = torch.Generator().manual_seed(0)
    whole = torch.randint(-127, 128, (16, 300), generator=generator).float()
    whole[:, 0] = 127
    steps = torch.tensor([2.0**-k for k in range(16)])
    exact = whole * steps[:, None]
    assert torch.equal(expanded(compacted({"w": exact}))["w"], exact)
    rough = torch.randn(16, 300, generator=generator)
    found = compacted({"w": rough})
    assert found["w"].dtype == torch.int8 and sorted(found) == ["w", "w" + SCALE]
    assert torch.allclose(found["w" + SCALE] * 127, rough.abs().amax(1))
    assert bool(((expanded(found)["w"] - rough).abs() <= found["w" + SCALE][:, None] * 0.500001).all())


def test_rows_do_not_touch_one_another_and_kernels_keep_their_shape() -> None:
    generator = torch.Generator().manual_seed(0)
    kernel = torch.randn(64, 8, 3, 3, generator=generator)
    louder = kernel.clone()
    louder[0] *= 1e6
    louder[1] = 0
    one, other = (expanded(compacted({"k": k}))["k"] for k in (kernel, louder))
    assert one.shape == kernel.shape
    assert torch.equal(one[2:], other[2:]) and bool((other[1] == 0).all())


def test_small_whole_and_one_dimensional_tensors_stay_as_they_are() -> None:
    kept = {"bias": torch.randn(9000), "small": torch.randn(63, 65), "steps": torch.arange(10000).view(100, 100)}
    found = compacted(kept)
    assert found.keys() == kept.keys() and all(torch.equal(found[k], kept[k]) for k in kept)
    assert all(torch.equal(v, kept[k]) for k, v in expanded(found).items())


def test_an_autoencoder_keeps_half_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(64, 80, generator=generator) for name in ("codec.net.in", "network.in")}
    found = compacted({**weights, "codec.net.large": 1e5 * torch.ones(64, 80)}, half="codec.net.")
    assert {name: t.dtype for name, t in found.items() if SCALE not in name} == {
        "codec.net.in": torch.float16, "network.in": torch.int8, "codec.net.large": torch.int8
    }  # fmt: skip
    back, was = found["codec.net.in"].float(), weights["codec.net.in"]
    assert bool(((back - was).abs() <= 2**-11 * was.abs() + 2**-25).all())


def test_sixteen_bits_of_an_autoencoder_are_heard_twenty_decibels_less_than_eight() -> None:
    torch.manual_seed(0)
    whole, rounded = (ConvAutoencoder((1, 256), factor=4, channels=4, width=32) for _ in range(2))
    weights = {"codec.net." + name: tensor for name, tensor in whole.state_dict().items()}
    x0 = torch.randn(2, *whole.latent_shape((256,)))

    def noise(half: str | None) -> float:
        modelfolder.fit(rounded, {k[10:]: v for k, v in expanded(compacted(weights, half)).items()}, "here")
        with torch.no_grad():
            wanted, found = whole.decode(x0), rounded.decode(x0)
        return 10 * math.log10((found - wanted).square().mean() / wanted.square().mean())

    assert noise("codec.net.") < noise(None) - 20


def test_weights_that_are_not_finite_are_refused() -> None:
    broken = torch.zeros(64, 64)
    broken[3, 3] = torch.nan
    with pytest.raises(ValueError, match="w holds values that are not finite"):
        compacted({"w": broken})


def test_a_compact_model_folder_loads_like_any_other(tmp_path: Path) -> None:
    pipeline = tiny_pipeline()
    pipeline.save_pretrained(tmp_path / "whole")
    modelfolder.save_compact(tmp_path / "whole", tmp_path / "small", trained={"styles": ["noto"]}, card="# it\n")
    whole, small = (modelfolder.load(tmp_path / name) for name in ("whole", "small"))
    ours, theirs = whole.model.state_dict(), small.model.state_dict()
    raw = load_file(tmp_path / "small" / "model.safetensors")
    large = [name for name in ours if name + SCALE in raw]
    assert large and all(raw[name].dtype == torch.int8 for name in large)
    for name, tensor in ours.items():
        step = raw[name + SCALE].view(-1, *[1] * (tensor.ndim - 1)) if name in large else torch.zeros(())
        assert bool(((theirs[name] - tensor).abs() <= 0.500001 * step).all())
    assert small.trained["styles"] == ["noto"] and small.spec == whole.spec and small.sampling == whole.sampling
    assert (tmp_path / "small" / "README.md").read_text() == "# it\n"
