"""Denoisers: E[x0 | x_t], the one thing that solvers, guidance and losses ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol, final

import torch
from torch import Tensor, nn

from sfumato.core.columns import by_column
from sfumato.core.cond import Cond
from sfumato.core.network import Network
from sfumato.core.parameterization import Coeffs, Parameterization
from sfumato.core.process import Process, lift, on_device
from sfumato.errors import UserError


class Denoiser(Protocol):
    """Anything that knows its process and returns E[x0 | x_t]."""

    @property
    def process(self) -> Process:
        """How its data is noised."""
        ...

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """x_t: (B, *S); t: float64, a prefix of x_t's shape. Returns (B, *S)."""
        ...


@final
class NetDenoiser(nn.Module):
    """A network, read through a parameterization, as a denoiser.

    learned_variance: the network gives twice the channels, the second half for the variance of a reverse step (see
    `with_variance`). self_conditioned: the network also sees an earlier estimate of x0 in C further input channels, the last
    ones of `concat`; zeros where there is none yet (see `SelfConditioned`). Refuses a parameterization that divides by alpha
    on a process whose alpha reaches 0.
    """

    def __init__(
        self,
        network: Network,
        process: Process,
        parameterization: Parameterization,
        *,
        learned_variance: bool = False,
        self_conditioned: bool = False,
    ) -> None:
        super().__init__()
        if parameterization.divides_by_alpha and float(process.alpha(torch.ones((), dtype=torch.float64))) == 0:
            raise UserError(
                f"parameterization '{parameterization.kind}' divides by alpha, which is 0 at t = 1 of the process "
                f"'{process.kind}'; use parameterization=v, velocity or x0, or a process such as vp"
            )
        self.network = network
        self.process = process  # a learned one is a module, and becomes a part of this one
        self.parameterization = parameterization
        self.learned_variance = learned_variance
        self.self_conditioned = self_conditioned

    def through(self, network: Network) -> NetDenoiser:
        """The same reading of another network."""
        return NetDenoiser(
            network,
            self.process,
            self.parameterization,
            learned_variance=self.learned_variance,
            self_conditioned=self.self_conditioned,
        )

    def asked(
        self, x_t: Tensor, c_in: Tensor, c_noise: Tensor, cond: Cond | None = None, estimate: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """F and v of `with_variance`, each (B, *S), at coefficients of x_t's type and device, shapes a prefix of x_t's.

        estimate: an earlier one of x0 (B, *S), of a self-conditioned denoiser.
        """
        out = self._asked(x_t, lift(c_in, x_t), c_noise, cond, estimate)
        if not self.learned_variance:
            return out, None
        mean, v = out.chunk(2, 1)
        return mean, torch.sigmoid(v.to(x_t.dtype))

    def raw(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> tuple[Tensor, Coeffs]:
        """The network's own output F (B, *S), without a variance part, and the coefficients at t."""
        out, _, c = self.outputs(x_t, t, cond)
        return out, c

    def outputs(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> tuple[Tensor, Tensor | None, Coeffs]:
        """F and v of `with_variance`, each (B, *S), and the coefficients at t. v is None if no variance is learned."""
        c = self.parameterization.coeffs(*self.process.scales(t))
        out, v = self.asked(x_t, lift(c.c_in, x_t), lift(c.c_noise, x_t).reshape(t.shape), cond)
        return out, v, c

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """E[x0 | x_t]. (B, *S)."""
        out, c = self.raw(x_t, t, cond)
        return torch.addcmul(lift(c.c_skip, x_t) * x_t, lift(c.c_out, x_t), out.to(x_t.dtype))

    def recall(self, x_t: Tensor, t: Tensor, cond: Cond | None, estimate: Tensor | None) -> Tensor:
        """E[x0 | x_t] (B, *S) of a self-conditioned denoiser told an earlier `estimate` (B, *S), None for none yet."""
        c = self.parameterization.coeffs(*self.process.scales(t))
        out, _ = self.asked(x_t, lift(c.c_in, x_t), lift(c.c_noise, x_t).reshape(t.shape), cond, estimate)
        return torch.addcmul(lift(c.c_skip, x_t) * x_t, lift(c.c_out, x_t), out.to(x_t.dtype))

    def _asked(
        self, x_t: Tensor, c_in: Tensor, c_noise: Tensor, cond: Cond | None, estimate: Tensor | None = None
    ) -> Tensor:
        weight = next(
            self.network.parameters(), x_t
        )  # a network of half precision; the solver goes on in x_t's own type
        if self.self_conditioned:
            cond = _recalling(cond, torch.zeros_like(x_t) if estimate is None else estimate)
        out: Tensor = self.network((c_in * x_t).to(weight.dtype), c_noise, cond)
        return out

    def prepared(self, times: Sequence[Tensor], x: Tensor) -> Callable[[Tensor, Tensor, Cond | None], Tensor]:
        """This denoiser for tensors like x, its coefficients at `times` computed and moved at once, before a walk.

        The result recognises the very tensors of `times`; at any other time it is the denoiser itself.
        """
        if not times:
            return self

        def numbers(t: Tensor) -> Tensor:
            c = self.parameterization.coeffs(*self.process.scales(t))
            return torch.stack([c.c_in, c.c_skip, c.c_out, c.c_noise], 1)

        table = on_device(by_column(torch.stack(list(times)), numbers).to(x.dtype), x.device)
        rows = {id(t): (t, row) for t, row in zip(times, table.unbind(0))}  # t is kept, so that its id stays its own
        shape = times[0].shape + (1,) * (x.ndim - times[0].ndim)

        def denoise(x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
            if id(t) not in rows:
                return self.forward(x_t, t, cond)
            c_in, c_skip, c_out, c_noise = rows[id(t)][1].unbind(0)
            out = self._asked(x_t, c_in.view(shape), c_noise, cond)
            mean = out.chunk(2, 1)[0] if self.learned_variance else out
            return torch.addcmul(c_skip.view(shape) * x_t, c_out.view(shape), mean.to(x_t.dtype))

        return denoise

    def with_variance(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> tuple[Tensor, Tensor]:
        """(E[x0 | x_t], v), each (B, *S), in one evaluation. v in [0, 1] is where the log of the variance of a step lies:

            ln variance = v ln large + (1 - v) ln small,   (small, large) = process.variances(t, s)

        Nichol & Dhariwal, "Improved DDPM", 2021, eq. 15; v is a sigmoid here, so that it stays inside.
        Raises UserError if the variance is not learned.
        """
        out, v, c = self.outputs(x_t, t, cond)
        if v is None:
            raise UserError(
                "this model has no learned variance; train it with objective=hybrid, or use a fixed variance"
            )
        return torch.addcmul(lift(c.c_skip, x_t) * x_t, lift(c.c_out, x_t), out.to(x_t.dtype)), v


@final
class SelfConditioned:
    """A denoiser around `inner` that is told what it last said of x0: `estimate` (B, *S), None before it has said anything.

    Whoever walks with it sets `estimate` before an evaluation and keeps what it should be next; `samplers.sample` does, in
    the state of the walk, so that requests at different steps share a batch. It is the innermost denoiser: guidance around it
    asks for several passes at once, [x, x], and each is told the same, row i that of sample i modulo B.
    Chen, Zhang & Hinton, "Analog Bits: Generating Discrete Data using Diffusion Models with Self-Conditioning", 2022,
    algorithm 2. https://arxiv.org/abs/2208.04202
    """

    def __init__(self, inner: NetDenoiser) -> None:
        self.inner = inner
        self.estimate: Tensor | None = None

    @property
    def process(self) -> Process:
        """That of the inner denoiser."""
        return self.inner.process

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        told = self.estimate
        if told is not None and len(told) != len(x_t):
            told = told.repeat(len(x_t) // len(told), *[1] * (told.ndim - 1))
        return self.inner.recall(x_t, t, cond, told)


def recalling(denoiser: NetDenoiser) -> Denoiser:
    """The denoiser as it is walked with: told its own estimates if it has learned to use them."""
    return SelfConditioned(denoiser) if denoiser.self_conditioned else denoiser


def self_conditioned(denoiser: object) -> SelfConditioned | None:
    """The one inside of all guidance, if there is one."""
    while denoiser is not None and not isinstance(denoiser, SelfConditioned):
        denoiser = getattr(denoiser, "inner", None)
    return denoiser


def _recalling(cond: Cond | None, estimate: Tensor) -> Cond:
    """A condition with an estimate as its last channels."""
    cond = Cond() if cond is None else cond
    before = [] if cond.concat is None else [cond.concat.to(estimate)]
    return replace(cond, concat=torch.cat([*before, estimate], 1))
