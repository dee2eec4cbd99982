"""`voxels`: coloured voxel models asked for in words, at 32^3: how the model that ships was trained."""

from __future__ import annotations

from typing import Any, Literal

from sfumato.codecs import Voxels as VoxelCodec
from sfumato.conditioners import Conditioner, Label, Picture, Text
from sfumato.core import X0, DenoisingLoss, LogisticGrid, LogitNormalTimes, Network
from sfumato.data import Data, Pictured, Worded
from sfumato.errors import UserError
from sfumato.guidance import ClassifierFree
from sfumato.nn import DiT, UNet
from sfumato.pipeline import Sampling
from sfumato.recipes.base import Recipe, recipe
from sfumato.recipes.image import title_of
from sfumato.samplers import Ancestral
from sfumato.spec import Spec
from sfumato.train import Training
from sfumato.train.muon import Muon

Size = Literal["xs", "s", "m"]
_SIZES = {"xs": (16, 32, 256), "s": (32, 64, 1024), "m": (48, 96, 2048)}  # width of network and text, rows of its table
_FOLDED = 16  # positions a side that the U-Net works at
_PATCHES = 8  # a side, of the transformer
_PARTS: dict[str, Any] = {"mlp_ratio": 3.25, "refine": 16, "dropout": 0.05}  # of it
_LONGEST = 96  # bytes of a prompt
_SPECKS = 0.4  # loose parts smaller than this share of the largest are left out; 4% of the models have such parts
# Of "stairs, building, quaternius style, turned left": a name that was never seen must not drown what its kind looks like.
_WORDING: dict[str, Any] = {"keep": 0.75, "swap": 0.3, "shuffle": 0.0, "first": 0, "fixed": ("turned",)}


@recipe("voxels")
def voxels(
    *,
    data: Spec[Data],
    minutes: float = 25.0,
    size: Size = "m",
    network: Literal["dit", "unet"] = "dit",
    condition: Literal["auto", "picture"] = "auto",
) -> Spec[Recipe]:
    """Voxel models asked for in words ("a pine tree"), or by class where there are no captions. Transformer or U-Net.

    data: an .npz, or a folder of .vox files or meshes. minutes: of training, made for one GPU. size: m is the model that
    ships, 5.0 million parameters; s and xs are to try things out on a CPU. network: a transformer over patches of 4^3 cells
    (of 64^3: 8^3), or a U-Net of cells folded 2^3 into channels (4^3), the one for latents. condition: auto is words or
    classes; picture is one picture, taken from any side.
    """
    info = data.build().info
    if info.kind != "voxels":
        raise UserError(
            f"recipe 'voxels' is for voxel models, not {info.kind} data of {info.shape}; use recipe 'image'"
        )
    title, (width, text, rows) = title_of(data), _SIZES[size]
    side = info.shape[1]
    patch, heads = max(2, side // _PATCHES), width // 16
    net: Spec[Network] = Spec(DiT, width=4 * width, depth=6, heads=heads, patch=patch, **_PARTS)
    codec = Spec(VoxelCodec, specks=_SPECKS)
    if network == "unet":
        fold = max(1, side // _FOLDED) if side % _FOLDED == 0 else 1
        net = Spec(UNet, width=width, mults=(1, 2), blocks=1, attention=(1,), dropout=0.1)
        codec = Spec(VoxelCodec, fold=fold, specks=_SPECKS)
    conditioner: Spec[Conditioner] | None = None
    if condition == "picture":
        data = Spec(Pictured, data=data)
        pixels, patch = (64, 8) if size == "m" else (32, 4)
        conditioner = Spec(Picture, size=pixels, patch=patch, crop=True, width=text)
    elif info.captions:
        data = data if data.cls is Worded else Spec(Worded, data=data, **_WORDING)
        conditioner = Spec(Text, width=text, depth=1, heads=4, length=_LONGEST, buckets=rows)
    elif len(info.labels) > 1:
        conditioner = Spec(Label, width=text)
    return Spec(
        Recipe,
        title=title,
        data=data,
        network=net,
        codec=codec,
        conditioner=conditioner,
        parameterization=X0(),  # what is learned is nearly binary, and simpler than the noise beside it
        objective=DenoisingLoss(times=LogitNormalTimes(mean=2.5, std=2.2)),
        sampling=Sampling(
            solver=Ancestral(), grid=LogisticGrid(center=-3.0, scale=1.5), steps=20, guidance=ClassifierFree(scale=3.0)
        ),
        train=Training(
            batch=256 if size == "m" else 32,
            minutes=minutes,
            lr=1e-3,
            optimizer=Spec(Muon),
            decay=0.5,
            ema=(0.05, 0.1),
            evaluations=4,
            pictures=2,
            checkpoint_minutes=10.0,
            threads=6 if size == "m" else 1,
        ),
    )
