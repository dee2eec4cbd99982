"""Likelihoods of models on data: units, codecs, dequantisation, error bars."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import FIELD, tiny_model, tiny_spec
from torch import Tensor, nn

from sfumato.codecs import Arrays, Codec, Pixels
from sfumato.core import VP, Batch, Cond, DataInfo, Flow
from sfumato.data import Data
from sfumato.errors import UserError
from sfumato.evaluate import Likelihood, OdeLikelihood, VariationalBound, nll
from sfumato.model import Model
from sfumato.testing import GaussianDenoiser, MixtureDenoiser

ODE, BOUND = OdeLikelihood(divergence="exact"), VariationalBound()


class Exact(nn.Module):
    """An exact denoiser in the place of a network's."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.process, self.unused = inner, inner.process, nn.Parameter(torch.zeros(1))

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        out: Tensor = self.inner(x_t, t, cond)
        return out


class Items(Data):
    """The items that it is given."""

    def __init__(self, media: Tensor) -> None:
        self.media = media

    @property
    def info(self) -> DataInfo:
        return DataInfo(tuple(self.media.shape[1:]), "image" if self.media.dtype == torch.uint8 else "array")

    def __len__(self) -> int:
        return len(self.media)

    def fetch(self, indices: Any, draws: Any = None) -> Batch:
        return Batch(self.media[torch.as_tensor(np.asarray(indices))])

    def held_out_mask(self) -> Any:
        return np.zeros(len(self), np.bool_)

    def fingerprint(self) -> str:
        return ""


def model(denoiser: Any, codec: Codec, data: Data) -> Model:
    return Model(Exact(denoiser), codec, None, data.info)  # type: ignore[arg-type]


def measured(codec: Any, mean: list[float], std: list[float]) -> Any:
    codec.whitening.mean.copy_(torch.tensor(mean))
    codec.whitening.std.copy_(torch.tensor(std))
    return codec


# ---------------------------------------------------------------- codecs


@pytest.mark.parametrize(
    "codec",
    [
        measured(Pixels(DataInfo((2, 2, 3))), [-0.3, 0.2], [0.5, 0.9]),
        measured(Arrays(DataInfo((2, 5), "array")), [100.0, -3.0], [30.0, 0.01]),
        measured(Arrays(DataInfo((3,), "array")), [0.0, 1.0, 2.0], [2.0, 3.0, 4.0]),
    ],
)
def test_the_volume_is_that_of_the_jacobian(codec: Codec) -> None:
    media = 100 + torch.randn(2, *codec.shape, generator=torch.Generator().manual_seed(0))
    jacobian = torch.autograd.functional.jacobian(lambda m: codec.whiten(codec.encode(m[None]))[0], media[0])
    size = media[0].numel()
    _, expected = torch.linalg.slogdet(jacobian.reshape(size, size).double())
    torch.testing.assert_close(codec.log_volume(media), expected.expand(2), rtol=1e-5, atol=1e-5)


def test_the_values_of_pixels_are_what_they_are_encoded_as() -> None:
    codec = measured(Pixels(DataInfo((2, 16, 16))), [-0.3, 0.2], [0.5, 0.9])
    media = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).repeat(1, 2, 1, 1)
    assert torch.equal(codec.values().reshape(1, 2, 16, 16), codec.whiten(codec.encode(media)))
    assert Arrays(DataInfo((2, 5), "array")).values() is None


def test_a_codec_without_volumes_says_so() -> None:
    class Strange(Codec):
        kind = "strange"
        shape = (1, 2)
        encode = whiten = decode = measure = None

    with pytest.raises(UserError, match="codec=strange does not keep volumes"):
        Strange().log_volume(torch.zeros(1, 1, 2))


# ---------------------------------------------------------------- densities of arrays


@pytest.mark.parametrize("shape", [(3,), (2, 4), (1, 3, 3), (1, 2, 2, 2)], ids=str)
def test_arrays_of_any_rank_in_their_own_units(shape: tuple[int, ...]) -> None:
    """Data N(mean_c, std_c^2): nats a dimension of the density of the items as the user has them."""
    scale, offset = torch.linspace(0.01, 30, shape[0]), torch.linspace(-5, 5, shape[0])
    column = (-1, *[1] * (len(shape) - 1))
    eps = torch.randn(128, *shape, generator=torch.Generator().manual_seed(0))
    data = Items(offset.reshape(column) + scale.reshape(column) * eps)
    codec = measured(Arrays(data.info), offset.tolist(), scale.tolist())
    made = model(GaussianDenoiser(Flow(), 0.0, 1.0), codec, data)
    positions = math.prod(shape[1:])
    truth = (0.5 * eps.square().flatten(1).sum(1) + positions * scale.log().sum()) / math.prod(shape)
    truth += 0.5 * math.log(2 * math.pi)
    for method in (ODE, BOUND):
        found = nll(made, data, method=method)
        assert found.unit == "nats/dim" and found.dims == math.prod(shape)
        error = found.per_item - truth
        assert abs(float(error.mean())) < 0.005 + 4 * float(error.std()) / math.sqrt(128)
        assert float(error.std()) / math.sqrt(128) < (0.001 if method is ODE else 0.06)
    assert sum(nll(made, data, method=BOUND).terms.values()) == pytest.approx(
        math.prod(shape) * nll(made, data, method=BOUND).value, rel=1e-5, abs=1e-5
    )


# ---------------------------------------------------------------- pictures


def grey(process: Any, deviation: float) -> tuple[Model, Items, Codec]:
    """Pictures of four pixels, one of three patterns, and the exact model of them with noise of `deviation` grey levels."""
    patterns = torch.tensor([[10, 200, 90, 40], [150, 30, 60, 220], [80, 120, 250, 5]], dtype=torch.uint8)
    data = Items(patterns.reshape(3, 1, 2, 2).repeat(100, 1, 1, 1))
    codec = measured(Pixels(data.info), [-0.2], [0.6])
    x0 = codec.whiten(codec.encode(data.media[:3]))
    return model(MixtureDenoiser(process, x0, deviation / 127.5 / 0.6), codec, data), data, codec


@pytest.mark.parametrize("process", [Flow(), VP()])
def test_bits_of_a_known_distribution(process: Any) -> None:
    """Its entropy is log2(3) / 4 bits a dimension.

    The ODE pays for uniform dequantisation: the model's Gaussians, of the variance 1/12 of a uniform number, are not
    boxes: KL = ln(2 pi e / 12) / 2 = 0.2546 bits a dimension. The bound decodes grey levels and pays nothing.
    """
    entropy = math.log2(3) / 4
    made, data, _ = grey(process, 12**-0.5)
    found = nll(made, data, method=dataclasses.replace(ODE, draws=4), batch=300)
    assert found.unit == "bits/dim" and found.nats.shape == (300, 4, 1)
    gap = 0.5 * math.log2(2 * math.pi * math.e / 12)
    assert abs(found.value - entropy - gap) < 4 * found.errors["draws"] < 0.04
    sharp, data, _ = grey(process, 0.0)
    bound = nll(sharp, data, method=VariationalBound(logsnr_max=14))
    assert abs(bound.value - entropy) < 4 * bound.errors["items"] < 0.1


def test_dequantised_pictures_lie_in_the_bins_that_decoding_rounds() -> None:
    made, data, codec = grey(Flow(), 1.0)
    seen: list[Tensor] = []
    encode = codec.encode
    codec.encode = lambda media: seen.append(media) or encode(media)  # type: ignore[method-assign, func-returns-value]
    nll(made, data, 50, dataclasses.replace(ODE, draws=3), batch=20)
    used = torch.cat([part for part in seen if part.ndim == 4])
    assert len(used) == 150 and len(used.unique(dim=0)) == 150
    decoded = codec.decode(codec.whiten(encode(used)))
    chosen = torch.arange(50) * 300 // 50
    first = torch.cat([data.media[rows].repeat(3, 1, 1, 1) for rows in chosen.split(20)])
    assert torch.equal(decoded, first)
    inside = used - first
    assert float(inside.abs().max()) <= 0.5
    assert float(inside.mean()) == pytest.approx(0, abs=4 / math.sqrt(12 * inside.numel()))
    assert float(inside.var()) == pytest.approx(1 / 12, rel=0.2)


# ---------------------------------------------------------------- what must not matter


@pytest.mark.parametrize("method", [OdeLikelihood(probes=2, draws=2, evaluations=8), VariationalBound(times=3), ODE])
def test_the_batch_and_the_number_of_items_do_not_matter(method: Any) -> None:
    made, data, _ = grey(Flow(), 3.0)
    all_at_once = nll(made, data, 10, method, batch=10)
    in_parts = nll(made, data, 10, method, batch=3)
    torch.testing.assert_close(in_parts.nats, all_at_once.nats, rtol=1e-4, atol=1e-3)
    assert not torch.equal(nll(made, data, 10, method, seed=1).nats, all_at_once.nats)


def test_items_have_their_own_conditions_and_the_model_stays_as_it_was() -> None:
    """A tiny network asked by label: each item alone gives the number that it has among the others."""
    from sfumato.data import Digits

    spec = tiny_spec(dataclasses.replace(Digits().info), "label", "unet")
    made = tiny_model(spec, dropout=0.1).train()
    frozen = next(made.codec.parameters(), None)
    learning = [p.requires_grad for p in made.parameters()]
    data = Digits().split("held_out")
    method = OdeLikelihood(evaluations=8)
    found = nll(made, data, 4, method)
    labels = data.fetch(np.arange(4) * len(data) // 4).conditions["label"]
    assert len(set(labels.tolist())) > 1
    swapped = [nll(made, Relabelled(data, int(label)), 4, method).nats for label in labels]
    for i in range(4):
        torch.testing.assert_close(swapped[i][i], found.nats[i], rtol=1e-5, atol=1e-3)
        assert (swapped[i] - found.nats).abs().max() > 1e-2
    assert made.training and [p.requires_grad for p in made.parameters()] == learning and frozen is None


class Relabelled(Data):
    """Data with one label for all."""

    def __init__(self, data: Data, label: int) -> None:
        self.data, self.label = data, label

    @property
    def info(self) -> DataInfo:
        return self.data.info

    def __len__(self) -> int:
        return len(self.data)

    def fetch(self, indices: Any, draws: Any = None) -> Batch:
        batch = self.data.fetch(indices, draws)
        return Batch(batch.media, {"label": torch.full((len(batch),), self.label)})

    def held_out_mask(self) -> Any:
        return self.data.held_out_mask()

    def fingerprint(self) -> str:
        return ""


def test_a_network_of_fields_has_the_exact_divergence_on_average() -> None:
    """Hutchinson with many probes against one backward pass a number, on a real network."""
    spec = tiny_spec(FIELD, "none", "unet")
    data = Items(torch.randn(2, *FIELD.shape, generator=torch.Generator().manual_seed(0)))
    made = tiny_model(spec)
    exact = nll(made, data, method=OdeLikelihood(divergence="exact", evaluations=4))
    many = nll(made, data, method=OdeLikelihood(divergence="hutchinson", probes=32, evaluations=4))
    error = many.nats.std(2)[:, 0] / math.sqrt(32)
    assert bool(((many.nats.mean(2) - exact.nats.mean(2))[:, 0].abs() < 4 * error).all())


# ---------------------------------------------------------------- error bars


def test_error_bars_of_items_draws_and_probes() -> None:
    """Numbers with known variances: 1 between items, 4 between draws, 9 between probes, in nats a dimension."""
    generator = torch.Generator().manual_seed(0)
    n, draws, probes = 4000, 3, 5

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    nats = noise(n, 1, 1) + 2 * noise(n, draws, 1) + 3 * noise(n, draws, probes)
    found = Likelihood(nats * 7, 7, False, 0.0, "")
    assert found.errors["items"] == pytest.approx(math.sqrt((1 + 4 / 3 + 9 / 15) / n), rel=0.05)
    assert found.errors["draws"] == pytest.approx(math.sqrt((4 / 3 + 9 / 15) / n), rel=0.05)
    assert found.errors["probes"] == pytest.approx(math.sqrt(9 / 15 / n), rel=0.05)
    low, high = found.score.interval or (0.0, 0.0)
    assert (high - low) / 2 == pytest.approx(1.96 * found.errors["items"], rel=1e-3)
    assert low < found.value < high
    assert Likelihood(nats[:1], 7, False, 0.0, "").score.interval is None
    assert Likelihood(nats * 7, 7, True, 0.0, "").value == pytest.approx(found.value / math.log(2))


def test_progress_is_told() -> None:
    made, data, _ = grey(Flow(), 3.0)
    told: list[tuple[int, int]] = []
    nll(made, data, 10, OdeLikelihood(evaluations=4), batch=4, on_batch=lambda done, total: told.append((done, total)))
    assert told == [(4, 10), (8, 10), (10, 10)]


def test_what_can_not_be_scored() -> None:
    made, data, _ = grey(Flow(), 3.0)
    with pytest.raises(UserError, match="n = 301: this part of the data has 300 items"):
        nll(made, data, 301)
    with pytest.raises(UserError, match="batch = 0"):
        nll(made, data, batch=0)
    with pytest.raises(UserError, match="is empty"):
        nll(made, Items(data.media[:0]))
