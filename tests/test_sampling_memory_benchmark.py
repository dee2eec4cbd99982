"""The benchmark of sampling memory: what is measured has the usual size, and every way computes the same."""

from __future__ import annotations

import pytest
import torch
from benchmarks.sampling_memory import CASES, FULL, TINY, Decoder, Way, placed

CPU = torch.device("cpu")


def test_the_decoder_has_the_usual_size() -> None:
    """That of AutoencoderKL's with widths 128, 256, 512, 512, as published: 49,490,179 parameters."""
    with torch.device("meta"):
        decoder = Decoder(FULL.widths)
        assert decoder(torch.empty(1, 4, FULL.latent, FULL.latent)).shape == (1, 3, 1024, 1024)
    assert sum(p.numel() for p in decoder.parameters()) == 49_490_179


def test_the_transformer_sees_2048_tokens() -> None:
    channels, high, wide = FULL.field
    assert (channels, high // 2 * (wide // 2)) == (4, 2048)


@pytest.mark.parametrize("name", list(CASES))
@torch.no_grad()
def test_every_way_computes_the_same_but_for_the_norms_of_tiles(name: str) -> None:
    torch.manual_seed(0)
    case = CASES[name](TINY)
    whole = case.run(case.inputs, Way("off"))
    for way in case.ways[1:]:
        with placed(case.network, way, CPU):
            difference = (case.run(case.inputs, way) - whole).std() / whole.std()
        near = (
            0.5 if way.tile else 0.02 if name == "dit" else 1e-5
        )  # statistics of tiles; rounding of bfloat16, of float32
        assert difference < near
