"""Weights as 8-bit whole numbers with a scale for each row: a quarter of the size of float32, for files that ship."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

SCALE = "@scale"  # after the name of a tensor: the scales of its rows
_LEAST = 4096  # elements of a tensor that is made compact; smaller ones stay as they are
_TOP = 127


def compacted(tensors: Mapping[str, Tensor], half: str | None = None) -> dict[str, Tensor]:
    """Floating-point tensors of two and more dimensions as int8 `NAME` and float32 `NAME@scale`; the others unchanged.

        q_ij = round(w_ij / s_i),   s_i = max_j |w_ij| / 127

    Rows are what lies along the first axis (R, ...), the scales (R,). The error of an element is at most s_i / 2. Rows of
    zeros come back as zeros. Raises ValueError for weights that are not finite.

    half: how names begin of those that become float16 instead, with errors of at most 2^-11 of each element.
    """
    made: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.ndim < 2 or tensor.numel() < _LEAST or not tensor.is_floating_point():
            made[name] = tensor
            continue
        rows = tensor.detach().float().flatten(1)
        if not bool(torch.isfinite(rows).all()):
            raise ValueError(f"{name} holds values that are not finite")
        if half is not None and name.startswith(half) and float(rows.abs().max()) <= torch.finfo(torch.float16).max:
            made[name] = tensor.half()
            continue
        scale = rows.abs().amax(1) / _TOP
        whole = (rows / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round().clamp(-_TOP, _TOP)
        made[name] = whole.to(torch.int8).view(tensor.shape)
        made[name + SCALE] = scale
    return made


def expanded(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The float32 tensors of a file that `compacted` made; tensors without a scale as they are."""
    made: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(SCALE) and name.removesuffix(SCALE) in tensors:
            continue
        scale = tensors.get(name + SCALE)
        made[name] = tensor if scale is None else tensor.float() * scale.view(-1, *[1] * (tensor.ndim - 1))
    return made
