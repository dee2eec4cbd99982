"""Networks: `unet`, `dit` and `mmdit` for 1, 2 and 3 dimensions, `mlp` for plain vectors and small fields; autoencoders."""

from sfumato.nn.attention import CrossAttention, SelfAttention
from sfumato.nn.autoencoder import Autoencoder, ConvAutoencoder
from sfumato.nn.autoencoder_dc import AutoencoderDC
from sfumato.nn.autoencoder_kl import AutoencoderKL
from sfumato.nn.bottleneck import FSQ, KL, VQ, Bottleneck, Plain
from sfumato.nn.discriminator import Critic, PatchCritic
from sfumato.nn.dit import DiT
from sfumato.nn.embed import NoiseEmbedding, grid_positions, rope_table, rotate, sinusoids
from sfumato.nn.mlp import MLP
from sfumato.nn.mmdit import MMDiT
from sfumato.nn.perturbed import Perturbable, Perturbed
from sfumato.nn.unet import UNet

__all__ = [
    "Autoencoder",
    "AutoencoderDC",
    "AutoencoderKL",
    "Bottleneck",
    "ConvAutoencoder",
    "Critic",
    "CrossAttention",
    "DiT",
    "FSQ",
    "KL",
    "MLP",
    "MMDiT",
    "NoiseEmbedding",
    "PatchCritic",
    "Perturbable",
    "Perturbed",
    "Plain",
    "SelfAttention",
    "UNet",
    "VQ",
    "grid_positions",
    "rope_table",
    "rotate",
    "sinusoids",
]
