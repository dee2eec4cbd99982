"""Networks: `unet` and `dit` for 1, 2 and 3 dimensions, `mlp` for plain vectors and small fields."""

from sfumato.nn.attention import CrossAttention, SelfAttention
from sfumato.nn.dit import DiT
from sfumato.nn.embed import NoiseEmbedding, grid_positions, rope_table, rotate, sinusoids
from sfumato.nn.mlp import MLP
from sfumato.nn.perturbed import Perturbable, Perturbed
from sfumato.nn.unet import UNet

__all__ = [
    "CrossAttention",
    "DiT",
    "MLP",
    "NoiseEmbedding",
    "Perturbable",
    "Perturbed",
    "SelfAttention",
    "UNet",
    "grid_positions",
    "rope_table",
    "rotate",
    "sinusoids",
]
