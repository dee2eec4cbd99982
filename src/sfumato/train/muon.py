"""Muon: momentum whose singular values are made equal, for the matrices of repeated layers; AdamW for all else.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024. https://kellerjordan.github.io/posts/muon/
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import final

import torch
from torch import Tensor, nn

from sfumato.errors import UserError
from sfumato.train.optim import Moments, Optimizer, Rules

# s -> a s + b s^3 + c s^5 brings every s in (0, 1] to 1 +- 0.3 in five steps; the slope a at 0 is what makes it quick
# (Jordan et al. 2024).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_LARGEST = 1 << 24  # elements that are worked on at once
_LIKE_ADAMW = 0.2  # root mean square of AdamW's updates, usually
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def orthogonal(x: Tensor, steps: int = 5) -> Tensor:
    """Nearly U V^T for x = U S V^T: (..., rows, cols), by `steps` of Newton and Schulz on x / |x|.

        X <- a X + (b A + c A^2) X,   A = X X^T

    which is U p(S) V^T exactly, p the composed polynomial: singular values of 0.68 to 1.14 where none of x was below a
    hundredth of its norm |x| (five steps, measured: tests/train/test_optimizers.py). In bfloat16 on a GPU, as the source
    does, else in the type of x. Cost: 2 steps min(r, c) (2 r c + min(r, c)^2) operations a matrix.
    """
    a, b, c = COEFFICIENTS
    tall = x.shape[-2] > x.shape[-1]
    y = x.mT if tall else x
    y = y / torch.linalg.matrix_norm(y, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    y = (y.bfloat16() if y.is_cuda else y).reshape(-1, *y.shape[-2:])
    for _ in range(steps):
        square = torch.bmm(y, y.mT)
        y = torch.baddbmm(y, torch.baddbmm(square, square, square, beta=b, alpha=c), y, beta=a)
    return (y.mT if tall else y).reshape(x.shape).to(x.dtype)


def hidden(model: nn.Module) -> list[str]:
    """Names of the weights that Muon takes: matrices and kernels of layers that are repeated (inside an `nn.ModuleList`).

    That leaves to AdamW what touches data, noise level or condition: stems, heads and embeddings, and all that is no matrix.
    In a model without repeated layers it is every matrix but the first and the last.
    """
    repeated: set[int] = set()
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            repeated |= {id(inner) for inner in module.modules()}
    found: list[tuple[str, bool]] = []
    for path, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if (
            isinstance(module, (nn.Linear, *_CONVOLUTIONS))
            and isinstance(weight, nn.Parameter)
            and weight.requires_grad
        ):
            found.append((f"{path}.weight" if path else "weight", id(module) in repeated))
    if any(inside for _, inside in found):
        return [name for name, inside in found if inside]
    return [name for name, _ in found[1:-1]]


@final
class Muon(Optimizer, name="muon"):
    """Orthogonal momentum for `hidden` weights W, kernels as matrices (out, in times places), and AdamW for the rest:

        M = momentum M + G,   W = (1 - lr decay) W - lr 0.2 sqrt(max(rows, cols)) orthogonal(G + momentum M)

    The factor gives an update the root mean square of AdamW's, so that the rate and the decay of AdamW carry over: Liu et
    al., "Muon is Scalable for LLM Training", 2025, section 2.2, eq. 4. State: 4 bytes a hidden parameter, 8 for another.

    momentum: of hidden weights. steps: of the iteration in `orthogonal`.
    """

    def __init__(self, model: nn.Module, settings: Rules, *, momentum: float = 0.95, steps: int = 5) -> None:
        super().__init__(model, settings)
        if not 0 <= momentum < 1:
            raise UserError(f"muon: momentum = {momentum} must be at least 0 and below 1; 0.95 is usual")
        if steps < 1:
            raise UserError(f"muon: steps = {steps} must be at least 1; 5 is usual")
        self._momentum, self._steps = momentum, steps
        taken = [name for name in hidden(model) if name in self.parameters]
        self._groups = [_Group(names, self.weight(names[0])) for names in _alike(taken, self.weight)]
        self._rest = Moments(self, [name for name in self.parameters if name not in set(taken)])

    def update(self, gradients: Mapping[str, Tensor], lr: float | Tensor, bad: Tensor | None) -> None:
        self._rest.update(gradients, lr, bad)
        for group in self._groups:
            present = [i for i, name in enumerate(group.names) if name in gradients]
            if present:
                self._move(group, present, gradients, lr, bad)

    def _move(
        self, group: _Group, present: list[int], gradients: Mapping[str, Tensor], lr: float | Tensor, bad: Tensor | None
    ) -> None:
        """One step of the weights of a group that have gradients."""
        names = [group.names[i] for i in present]
        found = torch.stack([group.laid(gradients[name]) for name in names])
        rate, keep = lr, torch.tensor(self._momentum)
        if bad is not None:  # a gradient that is not finite becomes 0, and momentum and weights stay
            found, rate = torch.where(bad > 0, 0.0, found), lr * (1 - bad)
            keep = torch.where(bad > 0, 1.0, self._momentum)
        whole = len(names) == len(group.names)
        kept = group.momentum if whole else group.momentum[present]
        kept.mul_(keep).add_(found)
        if not whole:
            group.momentum[present] = kept
        ahead = found.add_(kept, alpha=self._momentum).flatten(2)
        change = orthogonal(ahead, self._steps) * (rate * _LIKE_ADAMW * math.sqrt(max(ahead.shape[1:])))
        for decay in {self.decay[name] for name in names} - {0.0}:
            torch._foreach_mul_([self.weight(name) for name in names if self.decay[name] == decay], 1 - rate * decay)
        torch._foreach_sub_([group.laid(self.weight(name)) for name in names], list(change.view_as(kept).unbind()))

    def moments(self) -> dict[str, Tensor]:
        return {**{k: v for group in self._groups for k, v in group.state().items()}, **self._rest.state()}


@final
class _Group:
    """Weights of one shape and memory format, worked on together, and their momentum (n, out, *the other axes).

    The other axes are in the order in which they lie in memory (a channels-last kernel: height, width, input), so that
    stacking copies whole stretches. It is the order of a matrix's columns, which `orthogonal` does not care about.
    """

    def __init__(self, names: list[str], like: Tensor) -> None:
        self.names = names
        self.order = (0, *sorted(range(1, like.ndim), key=lambda axis: -like.stride()[axis]))
        self.momentum = like.new_zeros(len(names), *self.laid(like).shape)

    def laid(self, x: Tensor) -> Tensor:
        """A view of a weight, or its gradient, with the axes in the group's order."""
        return x.permute(self.order)

    def state(self) -> dict[str, Tensor]:
        """The momentum of each weight, in the weight's own order of axes: views."""
        back = [self.order.index(axis) for axis in range(len(self.order))]
        return {f"momentum.{name}": m.permute(back) for name, m in zip(self.names, self.momentum.unbind())}


def _alike(names: list[str], weight: Callable[[str], Tensor]) -> Iterator[list[str]]:
    """Names in groups of one shape and memory format, none of more than `_LARGEST` elements."""
    kinds: dict[tuple[object, ...], list[str]] = {}
    for name in names:
        kinds.setdefault((weight(name).shape, weight(name).stride()), []).append(name)
    for alike in kinds.values():
        most = max(1, _LARGEST // weight(alike[0]).numel())
        for first in range(0, len(alike), most):
            yield alike[first : first + most]
