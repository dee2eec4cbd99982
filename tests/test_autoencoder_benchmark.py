"""The benchmarks of autoencoders and latents at the size of a CPU: both sides are scored alike, and rows are whole."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers")
from benchmarks import _pictures, autoencoder, latent
from benchmarks.autoencoder import CASES, discriminator, moments, peer_network, quality

from sfumato.data import open_data
from sfumato.nn import AutoencoderKL

CPU = torch.device("cpu")


def pictures(n: int = 60, side: int = 32) -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (n, 4, 4, 3))
    return coarse.repeat(side // 4, 1).repeat(side // 4, 2).astype(np.uint8)


def test_both_sides_are_scored_by_what_comes_out_in_grey_levels() -> None:
    media = torch.from_numpy(pictures(4)).movedim(-1, 1)
    assert quality(lambda real: real, media, CPU) == (100.0, pytest.approx(1.0))
    worse = quality(lambda real: (real.float() + 5).clamp(max=255).to(torch.uint8), media, CPU)
    assert 20 * np.log10(255 / 5) <= worse[0] < 60


def test_the_peer_is_the_published_network() -> None:
    with torch.device("meta"):
        theirs, said = peer_network("f8", 128, tiny=False)
        ours = AutoencoderKL((3, 128, 128))
        critic = discriminator(64)
    assert said == "diffusers.AutoencoderKL"
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters()) == 83_653_863
    assert sum(p.numel() for p in critic.parameters()) == 2_765_633
    for case, (factor, channels) in CASES.items():
        net, _ = peer_network(case, 32, tiny=True)
        assert moments(net, torch.zeros(1, 3, 32, 32))[0].shape == (1, channels, 32 // factor, 32 // factor)


def test_a_tar_of_a_parquet_file_holds_the_same_pictures(tmp_path: Path) -> None:
    parquet, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    encoded = []
    for array in pictures(6):
        stream = io.BytesIO()
        Image.fromarray(array).save(stream, "PNG")
        encoded.append(stream.getvalue())
    columns = {"image": encoded, "label": ["b", "a"] * 3, "caption": [f"thing {i}" for i in range(6)]}
    parquet.write_table(pa.table(columns), tmp_path / "p.parquet")
    _pictures.to_tar(tmp_path / "p.parquet", tmp_path / "p.tar")
    batch = open_data(str(tmp_path / "p.tar")).build().fetch(range(6))
    assert np.array_equal(batch.media.movedim(1, -1).numpy(), pictures(6))
    assert batch.conditions["label"].tolist() == [1, 0] * 3  # type: ignore[union-attr]
    assert list(batch.conditions["caption"]) == columns["caption"]


@pytest.mark.slow
def test_both_run_from_end_to_end_and_say_what_they_measured(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=pictures(), y=np.arange(60) % 3)
    usual = ["--tiny", "--device", "cpu", "--json"]
    rows = autoencoder.main(
        [str(tmp_path / "data.npz"), *usual, str(tmp_path / "ae.json"), "--minutes", "0.03", "--only", "f8",
         "--keep", str(tmp_path / "kept"), "--batch", "8"]
    )  # fmt: skip
    written = json.loads((tmp_path / "ae.json").read_text())
    assert [row["case"] for row in written] == [f"ae.f8.{name}" for name in ("psnr", "ssim", "ms", "rate")]
    assert [row["ratio"] for row in written] == [row.ours / row.peer for row in rows]
    assert rows[0].settings["held_out"] == 3 and rows[0].settings["peer"] == "diffusers.AutoencoderKL"
    rows = latent.main(
        [str(tmp_path / "data.npz"), str(tmp_path / "kept" / "f8"), *usual, str(tmp_path / "latent.json"), "--minutes",
         "0.02", "--samples", "8", "--batch", "8", "--steps", "2", "--judge", str(tmp_path / "judge")]
    )  # fmt: skip
    assert [row.case for row in rows] == ["latent.learnt", "latent.sampled", "latent.frechet"]
    sha = json.loads((tmp_path / "kept" / "f8" / "model" / "config.json").read_text())["sha256"]
    assert rows[0].settings["codec_sha256"] == sha
