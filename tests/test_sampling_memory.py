"""Sampling in less memory: the samples stay what they were, and what can't be done is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfumato import cli, pipeline
from sfumato.codecs import Codec
from sfumato.core import DataInfo, Network
from sfumato.errors import UserError
from sfumato.guidance import Energy
from sfumato.model import Model
from sfumato.nn.offload import Offload
from sfumato.nn.tiling import tiled
from sfumato.pipeline import Pipeline, Sampling
from tests.tiny import FIELD, tiny_model, tiny_pipeline, tiny_spec

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
PROMPTS = ["a handwritten seven", "3", ""]


class Small(Codec):
    """Pictures of four times the size of x0 on each axis, by two convolutions: each picture position sees 2 of x0 around."""

    def __init__(self, info: DataInfo) -> None:
        super().__init__()
        self._shape = (2, *(n // 4 for n in info.shape[1:]))
        self.network = nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1),
            nn.SiLU(),
            nn.Upsample(scale_factor=4),
            nn.Conv2d(8, info.shape[0], 3, padding=1),
        )
        self.register_buffer("mean", torch.zeros(2))
        self.seen: list[tuple[int, ...]] = []
        self.network.register_forward_pre_hook(lambda _, given: self.seen.append(tuple(given[0].shape)))

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    def encode(self, media: Tensor) -> Tensor:
        raise NotImplementedError

    def whiten(self, h: Tensor) -> Tensor:
        raise NotImplementedError

    def measure(self, media: Any) -> None:
        raise NotImplementedError

    def decode(self, x0: Tensor) -> Tensor:
        return self._round(self.network(x0))

    def decode_tiled(self, x0: Tensor, tile: int) -> Tensor:
        return self._round(tiled(self.network, x0, tile=max(16, tile // 4), overlap=8, factor=4))

    def _round(self, h: Tensor) -> Tensor:
        return (127.5 + 127.5 * h).round().clamp(0, 255).to(torch.uint8)


def latent_pipeline() -> tuple[Pipeline, Small]:
    """Samples of (1, 96, 80) from x0 of (2, 24, 20)."""
    info = DataInfo((1, 96, 80), "image", captions=True)
    spec = tiny_spec(DataInfo((2, 24, 20), "array", captions=True))
    model = tiny_model(spec)
    torch.manual_seed(2)
    codec = Small(info)
    return Pipeline(Model(model.denoiser, codec, model.conditioner, info), spec, Sampling(steps=2)), codec


def rows_seen(network: Network) -> list[int]:
    seen: list[int] = []
    network.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    return seen


def test_a_tiled_decode_is_the_decode_and_smaller() -> None:
    pipe, codec = latent_pipeline()
    whole = pipe(PROMPTS).media
    assert codec.seen == [(3, 2, 24, 20)] and whole.shape == (3, 1, 96, 80) and whole.float().std() > 5
    codec.seen.clear()
    made = pipe.save_memory(tile=64, slice=2)(PROMPTS).media
    assert (made.int() - whole.int()).abs().max() <= 1  # slices change x0 by rounding
    assert (made != whole).float().mean() < 1e-3
    assert {shape[0] for shape in codec.seen} == {1, 2} and max(max(shape[2:]) for shape in codec.seen) <= 16
    assert torch.equal(pipe.save_memory()(PROMPTS).media, whole)


def test_a_codec_without_a_network_decodes_as_ever() -> None:
    pipe = tiny_pipeline()
    assert torch.equal(pipe.save_memory(tile=4)(PROMPTS).media, tiny_pipeline()(PROMPTS).media)


@pytest.mark.parametrize("network", ["dit", "unet"])
@pytest.mark.parametrize("guidance", [None, "cfg", "pag"])
def test_slices_are_of_what_goes_through_the_network(network: str, guidance: str | None) -> None:
    pipe = tiny_pipeline(network=network, info=FIELD)
    seen = rows_seen(pipe.model.denoiser.network)
    settings: dict[str, Any] = {"guidance": guidance} if guidance else {"guidance_scale": 1}
    whole = pipe(PROMPTS, **settings).media
    assert max(seen) == (6 if guidance == "cfg" else 3)
    seen.clear()
    made = pipe.save_memory(slice=2)(PROMPTS, **settings).media
    assert max(seen) == 2
    torch.testing.assert_close(made, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("network", ["dit", "unet"])
def test_an_offloaded_network_samples_alike_until_it_is_moved(network: str) -> None:
    pipe = tiny_pipeline(network=network, info=FIELD)
    whole = pipe(PROMPTS).media
    pipe._away = Offload(pipe.model.denoiser.network, "cpu")  # as `to` a GPU does
    torch.testing.assert_close(pipe(PROMPTS).media, whole, rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="these are offloaded; set offload=false"):
        pipe(PROMPTS, guidance=Energy(lambda x0: x0.square().flatten(1).sum(1)))
    torch.testing.assert_close(pipe(PROMPTS).media, whole, rtol=1e-5, atol=1e-5)
    pipe.to(dtype="bf16")
    assert pipe._away is None
    assert {p.dtype for p in pipe.model.denoiser.network.parameters()} == {torch.bfloat16}
    assert torch.equal(pipe(PROMPTS).media, tiny_pipeline(network=network, info=FIELD).to(dtype="bf16")(PROMPTS).media)


def test_on_a_cpu_there_is_nothing_to_offload() -> None:
    pipe = tiny_pipeline(info=FIELD)
    whole = pipe(PROMPTS).media
    assert pipe.save_memory(offload=True) is pipe and pipe._away is None
    assert torch.equal(pipe(PROMPTS).media, whole)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tile": 0}, "tile=0: must be a whole number, at least 1"),
        ({"slice": 1.5}, "slice=1.5: must be a whole number, at least 1"),
        ({"slice": True}, "slice=True: must be"),
    ],
)
def test_values_that_mean_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny_pipeline().save_memory(**settings)


# ---------------------------------------------------------------- the command line


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    tiny_pipeline(steps=2).save_pretrained("model")
    return "model"


def drawn(model: str, *words: str) -> int:
    return cli.run(["sample", model, "seven", "n=3", "--device", "cpu", *words])


def test_the_command_samples_alike(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    saving = ("tile=512", "slice=1", "offload=true", "-o", "saving.npy", "--json")
    assert drawn(model, "-o", "plain.npy", "--json") == 0 and drawn(model, *saving) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["written"] for line in lines] == [3, 3]
    import numpy as np

    plain, saved = np.load("plain.npy").astype(int), np.load("saving.npy").astype(int)
    assert abs(plain - saved).max() <= 1 and plain.std() > 5


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("tile=big", "tile=big: must be a whole number"),
        ("slice=0", "slice=0: must be a whole number, at least 1"),
        ("offload=maybe", "offload=maybe: must be true or false"),
        ("tiles=8", "no setting 'tiles'; did you mean 'tile'?"),
    ],
)
def test_mistakes_of_the_command_are_named(
    model: str, capsys: pytest.CaptureFixture[str], word: str, message: str
) -> None:
    assert drawn(model, word) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            (),
            "cpu is out of memory: 3 samples at once need about 0 MiB; set batch=1 (0 MiB), or slice=1 or offload=true",
        ),
        (
            ("slice=1",),
            "cpu is out of memory: 3 samples at once do not fit with slice=1; set batch=1, or offload=true (slower)",
        ),
        (
            ("slice=1", "offload=true", "batch=1"),
            "1 sample at once does not fit with slice=1 offload=true; use a smaller model, or a device with more memory",
        ),
    ],
)
def test_running_out_of_memory_names_what_to_set(
    model: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    message: str,
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(pipeline, "sample", full)
    assert drawn(model, *words) == 1
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_codec_that_can_be_tiled_is_offered_tiles() -> None:
    from sfumato.commands.sample import _Job, _too_much

    pipe, _ = latent_pipeline()
    job = _Job(pipe, pipe.plan("seven"), ("a.png",), {}, 64, {}, 1)
    said = _too_much(job, {}, torch.device("cpu"))
    assert said.startswith("cpu is out of memory: 1 samples at once need about")
    assert said.endswith("or dtype=bf16, or slice=1 or tile=512 or offload=true (slower)")


# ---------------------------------------------------------------- on a GPU


@gpu
@pytest.mark.parametrize("network", ["dit", "unet"])
def test_all_of_it_on_a_gpu(network: str) -> None:
    whole = tiny_pipeline(network=network, info=FIELD).to("cuda")(PROMPTS).media
    pipe = tiny_pipeline(network=network, info=FIELD).save_memory(slice=2, offload=True).to("cuda")
    blocks = pipe.model.denoiser.network.blocks
    assert pipe.model.device.type == "cuda" and not any(p.is_cuda for block in blocks for p in block.parameters())
    for _ in range(2):
        torch.testing.assert_close(pipe(PROMPTS).media, whole, rtol=2e-2, atol=2e-2)  # TF32
    pipe.to(dtype="bf16")
    assert not any(p.is_cuda for block in blocks for p in block.parameters())
    pipe.to(dtype="fp32")
    pipe.save_memory(slice=2)
    assert all(p.is_cuda for p in pipe.model.parameters())
    pipe.to("cpu")
    assert not any(p.is_cuda for p in pipe.model.parameters())


@gpu
def test_tiles_and_slices_on_a_gpu() -> None:
    pipe, _ = latent_pipeline()
    whole = pipe.to("cuda")(PROMPTS).media
    made = pipe.save_memory(tile=64, slice=2)(PROMPTS).media
    assert (made.int() - whole.int()).abs().max() <= 4  # TF32
