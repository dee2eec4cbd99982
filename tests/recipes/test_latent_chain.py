"""From an autoencoder to latents on disk to a latent diffusion model that decodes: one chain, verified by hashes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sfumato.cli import run
from sfumato.codecs import Latent, load_weights, open_codec
from sfumato.core import Draws
from sfumato.data import Digits, Latents, Packed, open_data, pack
from sfumato.errors import UserError
from sfumato.pipeline import Pipeline
from sfumato.recipes import load_recipe, prepare, trainer
from sfumato.train import Silent

NETWORK = {"network.width": "8", "network.mults": "1,2", "network.blocks": "1"}
QUIET = {"train.evaluations": "0", "train.pictures": "0"}


def autoencoder(folder: Path, **more: str) -> Path:
    asked = {"data": "digits", "factor": "2", "channels": "2", "samples": "64", "batch": "32", "adversarial": "0"}
    spec = load_recipe("ae", asked | QUIET | {"codec.autoencoder.width": "8"} | more)
    trainer(spec, folder, device="cpu", display=Silent()).fit()
    return folder


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two autoencoders; latents of the digits by the first one, in float32; a latent model trained on them."""
    root = tmp_path_factory.mktemp("chain")
    made = {"ae": autoencoder(root / "ae"), "other": autoencoder(root / "other", seed="1")}
    made["latents"] = root / "latents"
    assert run(["data", "encode", "digits", f"codec={made['ae']}", "dtype=float32", "-o", str(made["latents"])]) == 0
    made["model"] = root / "model"
    spec = load_recipe("image", latent_settings(made, samples="64"))
    trainer(spec, made["model"], device="cpu", display=Silent()).fit()
    return made


def latent_settings(chain: dict[str, Path], data: str | None = None, **more: str) -> dict[str, str]:
    return {"data": data or str(chain["latents"]), "codec": str(chain["ae"])} | NETWORK | QUIET | more


def test_latents_on_disk_are_what_the_codec_makes_and_keep_all_columns(chain: dict[str, Path]) -> None:
    data, digits = Packed(path=str(chain["latents"])), Digits()
    codec: Any = open_codec(str(chain["ae"])).build(digits.info)
    load_weights(codec, str(chain["ae"]))
    some = [0, 5, 1796]
    assert torch.allclose(data.fetch(some).media, codec.eval().encode(digits.fetch(some).media), atol=1e-6)
    assert data.fetch(some).conditions["caption"] == digits.fetch(some).conditions["caption"]
    assert np.array_equal(data.held_out_mask(), digits.held_out_mask())
    assert data.info.encoded == codec.weights_sha256() and data.info.shape == digits.info.shape


def test_training_on_latents_is_training_on_media(chain: dict[str, Path]) -> None:
    """The same loss on the same items, and the same model in the end, whichever of the two is read."""
    losses = []
    for data in (str(chain["latents"]), "digits"):
        prepared = prepare(load_recipe("image", latent_settings(chain, data)))
        task = prepared.task.eval()
        batch = prepared.data.split("train").fetch(range(8))
        losses.append(float(task.loss(batch, Draws(0, 0, 8)).value.detach()))
        assert prepared.spec.info == Digits().info and prepared.spec.codec.path is None
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_latent_model_needs_nothing_but_its_folder_and_decodes(chain: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(chain["model"] / "model", tmp_path / "model")
    pipeline = Pipeline.from_pretrained(tmp_path / "model")
    codec = pipeline.model.codec
    assert isinstance(codec, Latent)
    made = pipeline("a handwritten two", n=2, output_type="pt", num_inference_steps=2).media
    assert made.dtype == torch.uint8 and made.shape == (2, 1, 8, 8)
    config = json.loads((tmp_path / "model" / "config.json").read_text())["model"]["codec"]
    assert config["path"] is None and str(chain["ae"]) not in (tmp_path / "model" / "config.json").read_text()
    sha = json.loads((chain["ae"] / "model" / "config.json").read_text())["sha256"]
    assert codec.weights_sha256() == sha == config["sha256"] == open_codec(str(tmp_path / "model")).sha256


def test_latents_of_another_autoencoder_are_refused(chain: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    for settings, said in (
        (latent_settings(chain) | {"codec": str(chain["other"])}, "another autoencoder"),
        ({"data": str(chain["latents"])}, "which codec=pixels can't read"),
    ):
        with pytest.raises(UserError, match=said):
            prepare(load_recipe("image", settings))
    latents = str(chain["latents"])
    assert run(["data", "encode", "digits", f"codec={chain['ae']}", "dtype=float32", "-o", latents]) == 0
    assert "nothing to do" in capsys.readouterr().out
    for words, said in (
        (["digits", f"codec={chain['other']}", "dtype=float32"], "latents of another autoencoder"),
        (["digits", f"codec={chain['ae']}"], "latents as float32, not float16"),
        (["digits"], "needs codec=RUN"),
        (["digits", "codec=pixels"], "nothing to encode"),
        ([latents, f"codec={chain['ae']}"], "holds latents already"),
    ):
        assert run(["data", "encode", *words, "-o", latents]) == 2
        assert said in capsys.readouterr().err


def test_latents_of_changed_data_are_refused(
    chain: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    media = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", x=media)
    words = ["data", "encode", str(tmp_path / "data.npz"), f"codec={chain['ae']}", "-o", str(tmp_path / "latents")]
    assert run(words) == 0
    np.savez(tmp_path / "data.npz", x=255 - media)
    assert run(words) == 2
    assert "latents of other data" in capsys.readouterr().err
    assert run([*words, "--fresh"]) == 0


def test_an_autoencoder_that_changed_is_refused_by_a_recipe_that_knew_it(
    chain: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "ae"
    shutil.copytree(chain["ae"], folder)
    spec = load_recipe("image", latent_settings(chain, "digits") | {"codec": str(folder)})
    shutil.rmtree(folder)
    shutil.copytree(chain["other"], folder)
    with pytest.raises(UserError, match="holds another autoencoder"):
        prepare(spec)


def test_what_is_encoded_once_is_read_from_the_cache_and_only_by_its_own_encoder(tmp_path: Path) -> None:
    asked: list[int] = []

    def encode(media: torch.Tensor) -> torch.Tensor:
        asked.append(len(media))
        return media.float().mean((2, 3), keepdim=True)

    first = Latents(Digits(), encode, "a" * 64, tmp_path / "cache")
    x = first.fetch([3, 4]).media
    assert torch.equal(Latents(Digits(), encode, "a" * 64, tmp_path / "cache").fetch([4, 3]).media, x.flip(0))
    assert asked == [2]
    Latents(Digits(), encode, "b" * 64, tmp_path / "cache").fetch([3])
    assert asked == [2, 1]


def test_an_autoencoder_is_no_model_and_a_model_without_one_no_codec(
    chain: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(["sample", str(chain["ae"]), "n=1"]) == 2
    assert "is an autoencoder" in capsys.readouterr().err
    assert run(["eval", str(chain["model"]), "metrics=features"]) == 2
    assert "need media, and this run's data are latents" in capsys.readouterr().err
    assert run(["data", "preview", str(chain["latents"]), "-o", str(tmp_path / "p.png")]) == 2
    assert "not to be looked at" in capsys.readouterr().err
    assert run(["show", str(chain["ae"])]) == 0
    assert "autoencoder of" in capsys.readouterr().out
    plain = tmp_path / "plain"
    spec = load_recipe("image", {"data": "digits", "samples": "32", "batch": "32"} | NETWORK | QUIET)
    trainer(spec, plain, device="cpu", display=Silent()).fit()
    with pytest.raises(UserError, match="has no autoencoder; give the run of one"):
        open_codec(str(plain))


def test_packed_latents_take_no_flips(tmp_path: Path) -> None:
    latents = Latents(Digits(), lambda media: media.float()[:, :, :2, :2], "c" * 64)
    pack(latents, tmp_path / "packed")
    spec = open_data(str(tmp_path / "packed"))
    assert spec.build().fetch([0]).media.shape == (1, 1, 2, 2)
    with pytest.raises(UserError, match="holds latents, which are not flipped"):
        spec.with_(flip=True).build()
    with pytest.raises(UserError, match="latents are packed as float32 or float16"):
        pack(latents, tmp_path / "again", dtype="uint8")


def test_the_report_of_an_autoencoder_says_how_it_is_used(chain: dict[str, Path]) -> None:
    said = {name: (chain[name] / "report.html").read_text(encoding="utf-8") for name in ("ae", "model")}
    assert f"codec={chain['ae']}" in said["ae"] and f"sfumato sample {chain['ae']}" not in said["ae"]
    assert f"sfumato sample {chain['model']}" in said["model"]
