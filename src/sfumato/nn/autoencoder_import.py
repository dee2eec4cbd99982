"""Settings and weights of diffusers' autoencoders, from their folders: config.json with one safetensors file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sfumato.errors import UserError
from sfumato.nn.autoencoder import Autoencoder
from sfumato.nn.autoencoder_dc import AutoencoderDC
from sfumato.nn.autoencoder_kl import AutoencoderKL
from sfumato.spec import Spec

WEIGHTS = "diffusion_pytorch_model.safetensors"
_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # names of files from before 2023
_BLOCKS = {"ResBlock": "res", "EfficientViTBlock": "vit"}


def read_settings(config: Mapping[str, Any], where: str | Path) -> Spec[Autoencoder]:
    """The network that such a config.json describes; raises UserError for one that is not known.

    Scale and shift of the latent are left out: the codec measures its own.
    """
    readers = {"AutoencoderKL": _kl, "AutoencoderDC": _dc}
    name = config.get("_class_name")
    if name not in readers:
        raise UserError(f"{where}: is a diffusers {name}; the autoencoders that are read are {' and '.join(readers)}")
    try:
        return readers[name](config, where)
    except KeyError as error:
        raise UserError(f"{where}: config.json of {name} has no '{error.args[0]}'") from None


def renamed(settings: Spec[Autoencoder], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in float32, those of old files under their new names."""
    found = {}
    for name, tensor in tensors.items():
        new = re.sub(r"(attentions\.\d+)\.(query|key|value|proj_attn)\.", lambda m: f"{m[1]}.{_OLD[m[2]]}.", name)
        linear = (
            re.search(r"attentions\.\d+\.to_", new) is not None and tensor.ndim == 4 and settings.cls is AutoencoderKL
        )
        found[new] = (tensor[:, :, 0, 0] if linear else tensor).float()
    return found


def _kl(config: Mapping[str, Any], where: str | Path) -> Spec[Autoencoder]:
    types = {*config["down_block_types"], *config["up_block_types"]}
    if not types <= {"DownEncoderBlock2D", "UpDecoderBlock2D"} or config.get("act_fn", "silu") != "silu":
        raise UserError(
            f"{where}: blocks of AutoencoderKL other than DownEncoderBlock2D and UpDecoderBlock2D are not read"
        )
    inputs = int(config.get("in_channels", 3))
    if inputs != int(config.get("out_channels", 3)):
        raise UserError(f"{where}: reads {inputs} channels and makes others; an autoencoder makes what it reads")
    return Spec(
        AutoencoderKL,
        channels=int(config.get("latent_channels", 4)),
        widths=tuple(config["block_out_channels"]),
        layers=int(config.get("layers_per_block", 1)),
        groups=int(config.get("norm_num_groups", 32)),
        quant=bool(config.get("use_quant_conv", True)),
        post_quant=bool(config.get("use_post_quant_conv", True)),
        attention=bool(config.get("mid_block_add_attention", True)),
        inputs=inputs,
    )


def _dc(config: Mapping[str, Any], where: str | Path) -> Spec[Autoencoder]:
    widths = tuple(config["encoder_block_out_channels"])
    levels = len(widths)

    def each(name: str, usual: Any) -> tuple[Any, ...]:
        value = config.get(name, usual)
        return (value,) * levels if isinstance(value, str) else tuple(value)

    def kernels(name: str) -> tuple[int, ...]:
        scales: Sequence[Sequence[int]] = config[name]
        if any(len(scale) > 1 for scale in scales):
            raise UserError(f"{where}: {name} with several neighbourhoods a level is not read")
        return tuple(scale[0] if scale else 0 for scale in scales)

    return Spec(
        AutoencoderDC,
        channels=int(config.get("latent_channels", 32)),
        encoder_widths=widths,
        decoder_widths=tuple(config["decoder_block_out_channels"]),
        encoder_layers=tuple(config["encoder_layers_per_block"]),
        decoder_layers=tuple(config["decoder_layers_per_block"]),
        encoder_blocks=tuple(_BLOCKS[name] for name in each("encoder_block_types", "ResBlock")),
        decoder_blocks=tuple(_BLOCKS[name] for name in each("decoder_block_types", "ResBlock")),
        encoder_kernels=kernels("encoder_qkv_multiscales"),
        decoder_kernels=kernels("decoder_qkv_multiscales"),
        decoder_norms=each("decoder_norm_types", "rms_norm"),
        decoder_acts=each("decoder_act_fns", "silu"),
        folded_down=config.get("downsample_block_type", "pixel_unshuffle") == "pixel_unshuffle",
        folded_up=config.get("upsample_block_type", "pixel_shuffle") == "pixel_shuffle",
        encoder_shortcut=bool(config.get("encoder_out_shortcut", True)),
        decoder_shortcut=bool(config.get("decoder_in_shortcut", True)),
        decoder_act=str(config.get("decoder_conv_act_fn", "relu")),
        head_dim=int(config.get("attention_head_dim", 32)),
        inputs=int(config.get("in_channels", 3)),
    )
