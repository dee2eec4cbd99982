"""Networks for 1, 2 and 3 dimensions: `unet` and `dit`."""

from sfumato.nn.attention import CrossAttention, SelfAttention
from sfumato.nn.dit import DiT
from sfumato.nn.embed import NoiseEmbedding, grid_positions, rope_table, rotate, sinusoids
from sfumato.nn.unet import UNet

__all__ = [
    "CrossAttention",
    "DiT",
    "NoiseEmbedding",
    "SelfAttention",
    "UNet",
    "grid_positions",
    "rope_table",
    "rotate",
    "sinusoids",
]
