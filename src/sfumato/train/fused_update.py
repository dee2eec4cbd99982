"""Clipping, AdamW, averages and half-precision copies in one pass over the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from sfumato.nn import fused
from sfumato.train.ema import Ema
from sfumato.train.optim import EPS, AdamW, Optimizer

_BLOCK = 2048
_ALIGNED = 16  # bytes that a thread moves at once
_interpreted = False  # tests run the kernel on the CPU


@final
class FusedUpdate:
    """`AdamW.step`, `Ema.take` and the renewal of the copies as one kernel, equal to them within float32 rounding.

    It reads weights, gradients and moments once: 4 (4 + A) bytes of float32 a parameter and its gradient in, 4 (3 + A) and
    its copy out for A averages, where the three passes move 2.5 times as much. `gradients` are those that the step
    accumulates, one a trained parameter, in float32 or in the copies' type.
    """

    def __init__(
        self,
        optimizer: AdamW,
        ema: Ema[Any],
        pairs: Sequence[tuple[nn.Parameter, nn.Parameter]],
        gradients: list[Tensor],
    ) -> None:
        self.optimizer, self.gradients = optimizer, gradients
        halves = {id(p): half for p, half in pairs}
        state, averages = optimizer.moments(), ema.state()
        kept = [
            {k.partition(".")[2]: v for k, v in averages.items() if k.startswith(f"{i}.")}
            for i in range(len(ema.gammas))
        ]
        names = _names_of(ema, optimizer)
        rows: list[list[int]] = []
        blocks: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])  # (tensor, first element): whole, cut
        for i, ((name, p), gradient) in enumerate(zip(optimizer.parameters.items(), gradients)):
            half = halves.get(id(p))
            used = [p, gradient, state[f"first.{name}"], state[f"second.{name}"], *[k[names[name]] for k in kept]]
            used += [] if half is None else [half]
            assert all(t.stride() == p.stride() for t in used)  # one order in memory for all of them
            kind = (gradient.dtype != torch.float32) + 2 * (half is not None)
            at = [t.data_ptr() for t in used[: 4 + len(kept)]]
            copy = 0 if half is None else half.data_ptr()
            rows.append([*at[:4], copy, p.numel(), kind, 0, *at[4:]])
            aligned = all(address % _ALIGNED == 0 for address in [*at, copy])
            for start in range(0, p.numel(), _BLOCK):
                blocks[not aligned or start + _BLOCK > p.numel()].append((i, start))
        device = optimizer.count.device
        self._half = pairs[0][1].dtype if pairs else torch.float32
        self._table = torch.tensor(rows, dtype=torch.int64, device=device)
        self._decays = torch.tensor(list(optimizer.decay.values()), dtype=torch.float32, device=device)
        programs = [np.asarray(which, np.int64).reshape(-1, 2).T.copy() for which in blocks]
        self._programs = [torch.from_numpy(each).to(device) for each in programs]
        self._averages = len(kept)
        self._kept = (state, averages, pairs)  # the table holds their addresses

    @torch.no_grad()
    def __call__(self, lr: Tensor, loss: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """(norm before clipping, 1 if the step was left out else 0). lr, loss: (); weights: (A,) of `Ema.take`."""
        from sfumato.train import update_kernel as kernels

        owner = self.optimizer
        norms = [n for kind in _by_type(self.gradients) for n in torch._foreach_norm(kind, 2, dtype=torch.float32)]
        norm = torch.linalg.vector_norm(torch.stack(norms))
        bad = (~torch.isfinite(norm + loss)).float()
        owner.count += 1 - bad
        left = [1 - beta ** owner.count.double() for beta in owner.betas]
        factor = (owner.clip / norm).clamp(max=1.0) if owner.clip else torch.ones_like(norm)
        scalars = torch.stack([lr, *[v.float() for v in left], factor])
        for (owners, starts), whole in zip(self._programs, (True, False)):
            if len(owners):
                kernels.update[(len(owners),)](
                    self._table, self._decays, owners, starts, scalars, weights, bad,
                    WIDTH=self._table.shape[1], AVERAGES=self._averages, BLOCK=_BLOCK, WHOLE=whole,
                    B1=owner.betas[0], B2=owner.betas[1], EPS=EPS, HALF=_triton_type(self._half), num_warps=8,
                )  # fmt: skip
        return norm, bad

    @staticmethod
    def fits(optimizer: Optimizer, ema: Ema[Any], pairs: Sequence[tuple[nn.Parameter, nn.Parameter]]) -> bool:
        """Whether there is such a kernel for this optimizer and device."""
        dense = all(p.dtype == torch.float32 and _dense(p) for p in optimizer.parameters.values())
        same = all(_dense(half) and half.stride() == p.stride() for p, half in pairs)
        where = _interpreted or (optimizer.device.type == "cuda" and fused.has_triton())
        averaged = {id(p) for p in ema.source.parameters()} >= {id(p) for p in optimizer.parameters.values()}
        return isinstance(optimizer, AdamW) and where and dense and same and averaged and optimizer.host is None


def _names_of(ema: Ema[Any], optimizer: Optimizer) -> dict[str, str]:
    """The names of the optimizer's parameters in the averages: a task's are those of its model with a prefix."""
    live = {id(p): name for name, p in ema.source.named_parameters()}
    return {name: live[id(p)] for name, p in optimizer.parameters.items()}


def _dense(t: Tensor) -> bool:
    return bool(torch.ops.aten.is_non_overlapping_and_dense(t))


def _by_type(tensors: list[Tensor]) -> list[list[Tensor]]:
    kinds = dict.fromkeys(t.dtype for t in tensors)
    return [[t for t in tensors if t.dtype == kind] for kind in kinds]


def _triton_type(dtype: torch.dtype) -> Any:
    import triton.language as tl

    return {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}[dtype]
