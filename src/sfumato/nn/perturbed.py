"""Networks whose self-attention is switched off in some blocks: the worse twin of perturbed attention guidance."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol, final, runtime_checkable

from torch import Tensor

from sfumato.core.cond import Cond
from sfumato.core.network import Network
from sfumato.errors import UserError


@runtime_checkable
class Perturbable(Protocol):
    """A network with self-attention that can be replaced by the identity."""

    def perturbed(self, blocks: Sequence[int] | None = None) -> Network:
        """The same network, weights shared, with softmax(q k^T) replaced by the identity in the given `blocks`."""
        ...


class _Flat(Protocol):
    def __call__(self, x: Tensor, noise: Tensor, cond: Cond | None, identity: Collection[int]) -> Tensor: ...


@final
class Perturbed(Network):
    """A view of a network with the identity for attention maps in `identity`. Has no weights of its own, keeps no state."""

    def __init__(self, network: Network, identity: Collection[int]) -> None:
        super().__init__()
        self.network = network
        self.identity = frozenset(identity)

    def forward(self, x: Tensor, noise: Tensor, cond: Cond | None = None) -> Tensor:
        network: _Flat = self.network
        return network(x, noise, cond, identity=self.identity)


def check_blocks(
    name: str, asked: Sequence[int] | None, usual: Sequence[int], attending: Sequence[int]
) -> frozenset[int]:
    """The blocks to perturb: those asked for, or the usual ones. Raises UserError for one without self-attention."""
    if not attending:
        raise UserError(f"this {name} has no self-attention to perturb; use another guidance, or train with attention")
    for block in asked or ():
        if block not in attending:
            raise UserError(
                f"guidance.blocks = {block}: this block of the {name} has no self-attention; "
                f"those that have are {', '.join(map(str, attending))}"
            )
    return frozenset(asked or usual or attending)
