"""Negative log-likelihood of a model on data, with error bars: bits a dimension of pictures, nats of anything else."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sfumato.core import Batch
from sfumato.core.random import Draws, keys, normal
from sfumato.data import Data
from sfumato.errors import UserError
from sfumato.evaluate.bound import VariationalBound
from sfumato.evaluate.likelihood import OdeLikelihood
from sfumato.evaluate.scores import Score
from sfumato.model import Model, resting
from sfumato.pipeline import Pipeline

OnBatch = Callable[[int, int], None]  # (items done, items in all)
Method = OdeLikelihood | VariationalBound


@final
@dataclass(frozen=True)
class Likelihood:
    """-ln p of N items, in the units of the data.

    nats: (N, draws, probes) float64: of item, draw of the dequantisation, probe of the divergence. dims: numbers of an
    item. discrete: whether items are 8-bit, so that p is a probability; else it is a density. evaluations: of the network
    for one item and draw, on average. terms: of a bound, nats an item, on average. about: how it was computed.
    """

    nats: Tensor
    dims: int
    discrete: bool
    evaluations: float
    about: str
    terms: Mapping[str, float] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        """`bits/dim` or `nats/dim`."""
        return "bits/dim" if self.discrete else "nats/dim"

    @property
    def per_item(self) -> Tensor:
        """-log p of each item by `unit`, the mean over draws and probes. (N,)."""
        return self._scaled().mean((1, 2))

    @property
    def value(self) -> float:
        """The mean over the items, by `unit`."""
        return float(self.per_item.mean())

    @property
    def errors(self) -> dict[str, float]:
        """Standard errors of `value`: `items`, of the choice of items, with all that is random in it; and of that the part of
        `draws` (a new dequantisation with new probes) and of `probes` (new probes alone), where there are two or more."""
        scaled, found = self._scaled(), {}
        count = len(scaled)
        if count > 1:
            found["items"] = float(self.per_item.std() / math.sqrt(count))
        if scaled.shape[1] > 1:
            found["draws"] = float((scaled.mean(2).var(1).mean() / (count * scaled.shape[1])).sqrt())
        if scaled.shape[2] > 1:
            found["probes"] = float((scaled.var(2).mean() / (count * scaled.shape[1] * scaled.shape[2])).sqrt())
        return found

    @property
    def score(self) -> Score:
        """The value with its 95% interval over items."""
        half = 1.959963984540054 * self.errors["items"] if len(self.nats) > 1 else None
        interval = None if half is None else (self.value - half, self.value + half)
        return Score(self.value, interval, note=f"{self.unit}, {self.about}")

    def _scaled(self) -> Tensor:
        return self.nats / (self.dims * (math.log(2) if self.discrete else 1.0))


def nll(
    model: Model | Pipeline,
    data: Data,
    n: int | None = None,
    method: Method = OdeLikelihood(),  # noqa: B008 - a frozen value
    *,
    batch: int = 64,
    seed: int = 0,
    on_batch: OnBatch | None = None,
) -> Likelihood:
    """-ln p of `n` items of `data` (all by default, else evenly thinned), each under its own condition, without guidance.

    method: `OdeLikelihood` or `VariationalBound` with their settings. 8-bit pictures are scored as such, in bits a
    dimension. By the ODE, a density, that needs **uniform dequantisation**: x = v + U(-1/2, 1/2) for grey levels v, the
    bins of which decoding rounds to v, and -log2 of the density of x at one grey level a unit; its mean is an upper bound
    on -log2 of the probability of v (Theis et al., "A note on the evaluation of generative models", 2016, section 3.1).
    The bound ends in a decoder of grey levels and needs none. All other data: nats a dimension of the density of the
    items in their own units, which may be negative.

    batch: items at a time; no result depends on it, but for rounding. Item i's random numbers are functions of (seed, i).
    on_batch(done, all) is called after every batch. The model is put back into the mode that it was in.
    """
    if isinstance(model, Pipeline):
        model = model.model
    chosen = _chosen(data, n, batch)
    discrete, dims = model.codec.values() is not None, math.prod(model.codec.shape)
    parts: list[tuple[Tensor, Tensor]] = []
    with resting(model):
        for start in range(0, len(chosen), batch):
            fetched = data.fetch(chosen[start : start + batch])
            random = Draws(seed, start, len(fetched))
            if isinstance(method, OdeLikelihood):
                parts.append(_by_ode(model, method, fetched, random))
            else:
                parts.append(_by_bound(model, method, fetched, random))
            if on_batch is not None:
                on_batch(start + len(fetched), len(chosen))
    first, second = (torch.cat(rows) for rows in zip(*parts))
    if isinstance(method, OdeLikelihood):
        return Likelihood(first, dims, discrete, float(second.double().mean()), _about_ode(method, dims, discrete))
    terms = dict(zip(("prior", "noise", "reconstruction", "volume"), second.mean(0).tolist()))
    return Likelihood(first, dims, discrete, method.times + (method.steps is not None), _about_bound(method), terms)


def _chosen(data: Data, n: int | None, batch: int) -> npt.NDArray[np.int64]:
    if len(data) == 0:
        raise UserError("this part of the data is empty; set held_out to a share above 0")
    n = len(data) if n is None else n
    if not 1 <= n <= len(data):
        raise UserError(f"n = {n}: this part of the data has {len(data)} items; set n between 1 and that")
    if batch < 1:
        raise UserError(f"batch = {batch}: must be at least 1")
    return np.arange(n, dtype=np.int64) * len(data) // n


def _by_ode(model: Model, method: OdeLikelihood, batch: Batch, random: Draws) -> tuple[Tensor, Tensor]:
    """-ln p of a batch (B, draws, probes), and the evaluations (B, draws)."""
    media = batch.media.to(model.device)
    cond, discrete = model.condition(batch.conditions), model.codec.values() is not None
    nats, evaluations = [], []
    for number in range(method.draws if discrete else 1):
        here = media
        if discrete:
            here = media.float() + (_uniform(random, media.shape[1:], f"dequantise {number}") - 0.5).to(media.device)
        x0 = model.codec.whiten(model.codec.encode(here))
        probe = keys(random.seed, f"probes {number}", random.index)
        noise = normal(probe, method.probe_shape(tuple(x0.shape[1:])), device=x0.device)
        found = method(model.denoiser, x0, cond, noise)
        nats.append(-(found.log_p + model.codec.log_volume(here)[:, None]))
        evaluations.append(found.evaluations)
    return torch.stack(nats, 1), torch.stack(evaluations, 1)


def _by_bound(model: Model, method: VariationalBound, batch: Batch, random: Draws) -> tuple[Tensor, Tensor]:
    """The bound of a batch (B, 1, 1), and its terms (B, 4): prior, noise, reconstruction and, of a density, the codec's."""
    media, values = batch.media.to(model.device), model.codec.values()
    x0 = model.codec.whiten(model.codec.encode(media))
    terms = method(model.denoiser, x0, random, model.condition(batch.conditions), values)
    volume = torch.zeros(len(x0), dtype=torch.float64) if values is not None else -model.codec.log_volume(media)
    columns = torch.stack([*terms, volume], 1)
    return columns.sum(1)[:, None, None], columns


def _uniform(draws: Draws, shape: tuple[int, ...], stream: str) -> Tensor:
    """Uniform numbers of [0, 1), (n, *shape), one generator per item."""
    out, generator = torch.empty(draws.n, *shape), torch.Generator()
    for row, key in zip(out, keys(draws.seed, stream, draws.index).tolist()):
        torch.rand(row.shape, generator=generator.manual_seed(key >> 1), out=row)
    return out


def _about_ode(method: OdeLikelihood, dims: int, discrete: bool) -> str:
    said = ["by the probability-flow ODE"]
    said.append("exact divergence" if method.exact(dims) else f"{method.probe} probes: {method.probes}")
    if discrete:
        said.append(f"uniform dequantisation, draws: {method.draws}")
    return ", ".join(said)


def _about_bound(method: VariationalBound) -> str:
    kind = "continuous time" if method.steps is None else f"a chain of {method.steps} steps"
    return f"the variational bound in {kind}, {method.times} noise levels an item"
