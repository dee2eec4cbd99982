"""diffusers' autoencoders, read from their folders: equal to the originals on random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato.codecs import Latent, load_weights, open_codec
from sfumato.core import DataInfo
from sfumato.errors import UserError

diffusers = pytest.importorskip("diffusers")
PICTURES = DataInfo((3, 32, 32))

KL: dict[str, dict[str, Any]] = {
    "usual": {},
    "flux": {"latent_channels": 6, "use_quant_conv": False, "use_post_quant_conv": False},
    "no attention": {"mid_block_add_attention": False, "layers_per_block": 2},
}
DC: dict[str, dict[str, Any]] = {
    "folded": {},
    "interpolated": {
        "upsample_block_type": "interpolate",
        "downsample_block_type": "Conv",
        "decoder_conv_act_fn": "silu",
    },
    "skips the finest": {"encoder_layers_per_block": (0, 1, 1), "decoder_layers_per_block": (0, 1, 1)},
    "no shortcuts": {"encoder_out_shortcut": False, "decoder_in_shortcut": False},
    "other blocks": {
        "decoder_norm_types": ("batch_norm", "batch_norm", "rms_norm"),
        "decoder_act_fns": ("relu", "relu", "silu"),
    },
}


def kl_of(**settings: Any) -> Any:
    usual: dict[str, Any] = {"block_out_channels": [8, 16, 16], "layers_per_block": 1, "norm_num_groups": 4}
    down, up = ["DownEncoderBlock2D"] * 3, ["UpDecoderBlock2D"] * 3
    return diffusers.AutoencoderKL(down_block_types=down, up_block_types=up, **(usual | settings))


def dc_of(**settings: Any) -> Any:
    usual: dict[str, Any] = {
        "latent_channels": 8,
        "attention_head_dim": 8,
        "encoder_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
        "decoder_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
        "encoder_block_out_channels": (8, 16, 32),
        "decoder_block_out_channels": (8, 16, 32),
        "encoder_layers_per_block": (1, 1, 2),
        "decoder_layers_per_block": (1, 2, 1),
        "encoder_qkv_multiscales": ((), (), (5,)),
        "decoder_qkv_multiscales": ((), (), (5,)),
    }
    return diffusers.AutoencoderDC(**(usual | settings))


def compare(theirs: Any, folder: Path) -> None:
    """Encode and decode as the original does, from what it saves."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in theirs.parameters():  # norms are not left at one, nor biases at zero
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    theirs.eval().save_pretrained(folder)
    spec = open_codec(str(folder))
    codec = spec.build(PICTURES).eval()
    assert isinstance(codec, Latent)
    load_weights(codec, str(folder))
    x = torch.rand(2, 3, 32, 24, generator=generator) * 2 - 1
    with torch.no_grad():
        made = theirs.encode(x)
        z = made.latent_dist.mean if hasattr(made, "latent_dist") else made.latent
        ours = codec.net.encode(x)
        assert torch.allclose(ours, z, rtol=1e-5, atol=1e-5 * float(z.abs().max()))
        back = theirs.decode(z).sample
        assert torch.allclose(codec.net.decode(z), back, rtol=1e-5, atol=1e-5 * float(back.abs().max()))


@pytest.mark.parametrize("case", KL)
def test_autoencoder_kl(case: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    compare(kl_of(**KL[case]), tmp_path)


@pytest.mark.parametrize("case", DC)
def test_autoencoder_dc(case: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    compare(dc_of(**DC[case]), tmp_path)


def test_names_of_older_files_are_known(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    kl_of().save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    new = load_file(file)
    sha = open_codec(str(tmp_path)).sha256
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for name, tensor in new.items():
        before = next((name.replace(f".{a}.", f".{b}.") for a, b in older.items() if f".{a}." in name), name)
        linear = before != name and tensor.ndim == 2
        old[before] = tensor[:, :, None, None].contiguous() if linear else tensor
    assert old.keys() != new.keys()
    save_file(old, file)
    assert open_codec(str(tmp_path)).sha256 == sha  # the hash is of names, shapes and values


def test_what_is_not_read_is_said_in_a_sentence(tmp_path: Path) -> None:
    torch.manual_seed(0)
    kl_of().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, said in (
        ({"_class_name": "AutoencoderTiny"}, "AutoencoderKL and AutoencoderDC"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"] * 3}, "are not read"),
        ({"block_out_channels": [8, 16, 32]}, "belong to other settings"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(UserError, match=said):
            load_weights(open_codec(str(tmp_path)).build(PICTURES), str(tmp_path))  # type: ignore[arg-type]


def test_grey_pictures_are_refused_for_a_colour_autoencoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    kl_of().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"set data.channels=3"):
        open_codec(str(tmp_path)).build(DataInfo((1, 32, 32)))
