"""Low-bit weights for sampling, and fp8 products for training, both by torchao.

Only linear layers of a network's repeated blocks change: attention and MLP, whose products are most of a transformer's
work. Stem, head, embeddings and modulation stay: they are small, and what they round the whole picture sees. So do
convolutions, and what a U-Net computes together with them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor, nn

from sfumato.errors import UserError
from sfumato.nn.attention import CrossAttention
from sfumato.nn.recompute import blocks_of

Kind = Literal["int8", "int8-dynamic", "fp8"]
KINDS: tuple[str, ...] = get_args(Kind)
Scales = Literal["row", "tensor"]
Recipe = Literal["rowwise", "tensorwise"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_MULTIPLE = 16  # of both sizes of a matrix: fp8 products on a GPU take no other, and int8 ones are slow
_NOISY = ("torchao", "torch.utils._pytree")  # they warn, at import, of kernels that are not used here


@final
@dataclass(frozen=True)
class Lowered:
    """What `lowbit` did: `layers` of `of` linear layers and convolutions; bytes of all weights before and after."""

    kind: str
    layers: int
    of: int
    before: int
    after: int

    def __str__(self) -> str:
        sizes = f"{self.before / 1e6:.1f} MB became {self.after / 1e6:.1f} MB"
        return f"{self.kind} weights in {self.layers} of {self.of} layers: {sizes}"


def lowbit(network: nn.Module, kind: str, *, scales: Scales = "row") -> Lowered:
    """Change a network's weights in place, for sampling only: they can't be trained, cast or saved after it.

    int8: weights are whole numbers -128 ... 127 times one factor for each output, products as before. Half the memory of
    bfloat16; not faster, since a weight is converted before it is multiplied. Gradients of the input are those of the
    rounded weights.
    int8-dynamic: what is multiplied is rounded too, each token by its own largest value, and products are of whole numbers.
    On a GPU the blocks must be compiled: as torchao writes the product out, it looks at its input and can't be recorded.
    fp8: both in float8 e4m3 (4 exponent bits, 3 of mantissa); weights must be bfloat16, on a GPU of compute capability 8.9
    or more. scales: one factor for each row, finer, or one for each matrix.

    With the last two kinds the keys and values of a condition stay as they are (they have few rows, and GPUs multiply whole
    numbers from 17 rows up), and asking for a gradient of the input is an error: rounding has none. They are faster than
    bfloat16 only where the blocks are compiled and the products large; `python -m benchmarks.lowbit` measures it.
    Raises UserError where nothing would change, where torchao is missing, and for a device or type that has no such products.
    """
    if kind not in KINDS:
        raise UserError(f"dtype={kind}: no such low-bit weights; use {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    if scales not in get_args(Scales):
        raise UserError(f"scales={scales}: use row or tensor")
    _need_torchao(f"dtype={kind}")
    if is_lowbit(network):
        raise UserError(f"dtype={kind}: the network's weights are low-bit already; load the model again")
    layers = block_linears(network, few_rows=kind == "int8")
    if not layers:
        raise UserError(
            f"dtype={kind}: the network '{_name(network)}' has no attention or MLP in its blocks with sizes that are "
            f"multiples of {_MULTIPLE}, so nothing would change; leave it out"
        )
    if kind == "int8-dynamic" and _device(network).type == "cuda" and not getattr(network, "regional", False):
        raise UserError(
            f"dtype={kind}: on a GPU this needs compiled blocks, and those of the network '{_name(network)}' are not; "
            "use dtype=int8"
        )
    if kind == "fp8":
        _check_fp8(network, "dtype=fp8", "use dtype=int8")
        types = {layer.weight.dtype for layer in layers.values()}
        if types != {torch.bfloat16}:
            raise UserError(
                f"dtype=fp8: the network's weights are {_type_name(types)} and must be bfloat16; cast it first"
            )
    before, chosen = weight_bytes(network), {id(layer) for layer in layers.values()}
    with _quiet():
        from torchao.quantization import quantize_
    with torch.no_grad():
        quantize_(network, _config(kind, scales), lambda module, name: id(module) in chosen)
    if kind != "int8":
        network.register_forward_pre_hook(_refuse_gradients, with_kwargs=True)
    every = sum(isinstance(module, (nn.Linear, *_CONVOLUTIONS)) for module in network.modules())
    return Lowered(kind, len(layers), every, before, weight_bytes(network))


def fp8_training(network: nn.Module, *, recipe: Recipe = "rowwise", least: int = 1024) -> int:
    """Let the large linear layers of the blocks multiply in fp8, forward and backward; gives how many do.

    Weights stay what they are (the same parameters, rounded anew at every use) and so do their gradients' types. recipe:
    `rowwise`, a factor for each row, all in e4m3; `tensorwise`, one for each matrix, gradients in e5m2: quicker, coarser.
    least: smaller sizes of a matrix than this are left alone, rounding takes longer there than is won. Pays in compiled
    blocks only. The relative error of a product is about 0.04, of random signs: see docs/networks.md.
    """
    if recipe not in get_args(Recipe):
        raise UserError(f"recipe={recipe}: use rowwise or tensorwise")
    _need_torchao("train.fp8=true")
    _check_fp8(network, "train.fp8=true", "leave it unset")
    layers = block_linears(network, few_rows=False, least=least)
    if not layers:
        raise UserError(
            f"train.fp8=true: the network '{_name(network)}' has no linear layers of {least} and more in and out in its "
            "blocks, smaller ones gain nothing; leave it unset"
        )
    chosen = {id(layer) for layer in layers.values()}
    with _quiet():
        from torchao.float8 import convert_to_float8_training
    convert_to_float8_training(
        network, module_filter_fn=lambda module, name: id(module) in chosen, config=_training_config(recipe)
    )
    return len(layers)


def block_linears(network: nn.Module, *, few_rows: bool = True, least: int = _MULTIPLE) -> Mapping[str, nn.Linear]:
    """The linear layers of the repeated blocks that can change, by name: attention and MLP.

    Both sizes are multiples of 16 and at least `least`. Not a layer beside a convolution, which is computed with it, nor
    one that is called modulation. few_rows: also keys and values of a condition.
    """
    inside = {id(module) for block in blocks_of(network) for module in block.modules()}
    found = {}
    for path, parent in network.named_modules():
        beside = any(isinstance(child, _CONVOLUTIONS) for child in parent.children())
        if id(parent) not in inside or beside:
            continue
        for name, child in parent.named_children():
            left = name == "modulation" or (isinstance(parent, CrossAttention) and child is parent.kv and not few_rows)
            if type(child) is nn.Linear and not left and _fits(child, least):
                found[f"{path}.{name}"] = child
    return found


def is_lowbit(module: nn.Module) -> bool:
    """Whether a parameter is a tensor that holds others, as low-bit weights are."""
    return any(hasattr(parameter, "__tensor_flatten__") for parameter in module.parameters())


def weight_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers; of a low-bit weight, of all that it holds."""
    return sum(_bytes(tensor) for tensor in [*module.parameters(), *module.buffers()])


# ---------------------------------------------------------------- parts


def _fits(layer: nn.Linear, least: int) -> bool:
    sizes = (layer.in_features, layer.out_features)
    return min(sizes) >= least and all(size % _MULTIPLE == 0 for size in sizes)


def _bytes(tensor: Tensor) -> int:
    if not hasattr(tensor, "__tensor_flatten__"):
        return tensor.nbytes
    names, _ = tensor.__tensor_flatten__()
    return sum(_bytes(getattr(tensor, name)) for name in names)


def _config(kind: str, scales: Scales) -> Any:
    """torchao's settings. Its choices for the compiler stay out: they hold for the whole process."""
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
        PerRow,
        PerTensor,
    )

    if kind == "fp8":
        factor = PerRow() if scales == "row" else PerTensor()
        return Float8DynamicActivationFloat8WeightConfig(granularity=factor, set_inductor_config=False)
    if kind == "int8-dynamic":
        return Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
    return Int8WeightOnlyConfig(set_inductor_config=False)


def _training_config(recipe: Recipe) -> Any:
    """Padded where the rows of a batch are no multiple of 16: the weights' gradient sums over them."""
    from torchao.float8 import Float8LinearConfig

    return replace(Float8LinearConfig.from_recipe_name(recipe), pad_inner_dim=True)


def _refuse_gradients(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if not torch.is_grad_enabled():
        return
    if any(isinstance(value, Tensor) and value.requires_grad for value in [*args, *kwargs.values()]):
        raise UserError(
            "a gradient of the network's input was asked for, and low-bit products have none; use dtype=int8, or dtype=bf16"
        )


def _check_fp8(network: nn.Module, setting: str, remedy: str) -> None:
    """Raise UserError where the network lies on a device without fp8 products."""
    device = _device(network)
    if device.type != "cuda":
        raise UserError(f"{setting}: the network is on {device.type}, and fp8 is for GPUs; {remedy}")
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 9):
        name = torch.cuda.get_device_name(device)
        raise UserError(
            f"{setting}: {name} has compute capability {capability[0]}.{capability[1]}, and fp8 needs 8.9; {remedy}"
        )


def _need_torchao(setting: str) -> None:
    if find_spec("torchao") is None:
        raise UserError(f"{setting}: needs torchao, which is not installed; run `pip install sfumato[lowbit]`")


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, warnings of an import that say nothing to a user are not shown."""
    loggers = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


def _name(network: nn.Module) -> str:
    return getattr(network, "kind", "") or type(network).__name__


def _type_name(types: set[torch.dtype]) -> str:
    return " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in types))
