"""Muon: momentum whose singular values are made equal, for the matrices of repeated layers; AdamW for all else.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024. https://kellerjordan.github.io/posts/muon/
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
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
    y = y.bfloat16() if x.is_cuda else y
    for _ in range(steps):
        square = y @ y.mT
        y = a * y + (b * square + c * (square @ square)) @ y
    made: Tensor = (y.mT if tall else y).to(x.dtype)
    return made


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
        self._hidden = {name: torch.zeros_like(self.weight(name)) for name in hidden(model) if name in self.parameters}
        self._rest = Moments(self, [name for name in self.parameters if name not in self._hidden])

    def update(self, gradients: Mapping[str, Tensor], lr: float | Tensor, bad: Tensor | None) -> None:
        self._rest.update(gradients, lr, bad)
        names = [name for name in self._hidden if name in gradients]
        if not names:
            return
        found, kept = [gradients[name] for name in names], [self._hidden[name] for name in names]
        if bad is None:
            torch._foreach_mul_(kept, self._momentum)
        else:  # a gradient that is not finite becomes 0, and momentum stays
            found = [torch.where(bad > 0, 0.0, gradient) for gradient in found]
            torch._foreach_mul_(kept, torch.where(bad > 0, 1.0, self._momentum))
        torch._foreach_add_(kept, found)
        torch._foreach_add_(found, kept, alpha=self._momentum)
        ahead = dict(zip(names, found))
        for group in _alike(ahead):
            self._move(group, torch.stack([ahead[name].flatten(1) for name in group]), lr, bad)

    def _move(self, names: list[str], ahead: Tensor, lr: float | Tensor, bad: Tensor | None) -> None:
        """One step of weights of one shape. ahead: (n, rows, cols)."""
        rate = lr if bad is None else lr * (1 - bad)
        weights = [self.weight(name) for name in names]
        for decay in {self.decay[name] for name in names} - {0.0}:
            torch._foreach_mul_([self.weight(name) for name in names if self.decay[name] == decay], 1 - rate * decay)
        change = orthogonal(ahead, self._steps) * (rate * _LIKE_ADAMW * math.sqrt(max(ahead.shape[1:])))
        torch._foreach_sub_(weights, [part.view(w.shape) for part, w in zip(change, weights)])

    def moments(self) -> dict[str, Tensor]:
        return {**{f"momentum.{name}": v for name, v in self._hidden.items()}, **self._rest.state()}


def _alike(tensors: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """Names in groups of one matrix shape, none of more than `_LARGEST` elements."""
    by_shape: dict[tuple[int, int], list[str]] = {}
    for name, tensor in tensors.items():
        by_shape.setdefault((len(tensor), tensor[0].numel()), []).append(name)
    for shape, names in by_shape.items():
        most = max(1, _LARGEST // math.prod(shape))
        for first in range(0, len(names), most):
            yield names[first : first + most]
