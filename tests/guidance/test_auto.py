"""Autoguidance: the formula on exact densities, and worse models from folders, runs and checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sfumato.core import VP, Cond, Flow, UniformGrid
from sfumato.errors import UserError
from sfumato.files import write_manifest
from sfumato.guidance import Autoguidance, Chain, ClassifierFree
from sfumato.model import Model
from sfumato.modelfolder import load_model
from sfumato.pipeline import Pipeline, Sampling
from sfumato.samplers import DDIM, sample
from sfumato.tensorfile import part_name, write_tensors
from sfumato.testing import GaussianDenoiser
from tests.guidance.exact import ASKED, NULL, PROCESSES, TIMES, X
from tests.tiny import DIGITS, FIELD, tiny_model, tiny_pipeline, tiny_spec
from tests.train.table import rows


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.kind)
def test_a_worse_model_with_another_mean_moves_the_mean(process: Any) -> None:
    """N(m, s^2) and a worse N(m', s^2): guided by w it is N(m' + w (m - m'), s^2), exactly, for every sample its own w."""
    good, worse = GaussianDenoiser(process, mean=0.5), GaussianDenoiser(process, mean=0.2)
    scale = torch.tensor([0.0, 1.0, 2.0, 3.5], dtype=torch.float64)
    got = Autoguidance("w").wrap(good, scale=scale, models={"w": worse})(X, TIMES)
    moved = GaussianDenoiser(process)(X, TIMES, Cond(vector=(0.2 + scale * 0.3)[:, None]))
    torch.testing.assert_close(got, moved, rtol=0, atol=1e-13)
    assert torch.equal(got[:2], torch.cat([worse(X, TIMES)[:1], good(X, TIMES)[1:2]]))


def test_a_wider_worse_model_narrows() -> None:
    """The score at t of a Gaussian is -(x - a m) / (a^2 s^2 + sigma^2): guided by w its precision is p' + w (p - p')."""
    process, w = VP(), 2.0
    good, worse = GaussianDenoiser(process, 0.5, std=0.7), GaussianDenoiser(process, 0.5, std=1.1)
    alpha, sigma = (c[:, None] for c in process.scales(TIMES))
    got = Autoguidance("w", w).wrap(good, models={"w": worse})(X, TIMES)
    score = (alpha * got - X) / sigma**2
    precision = [1 / (alpha**2 * std**2 + sigma**2) for std in (1.1, 0.7)]
    torch.testing.assert_close(score, -(X - alpha * 0.5) * (precision[0] + w * (precision[1] - precision[0])))


def test_around_classifier_free_guidance() -> None:
    """D_worse + w (D_cfg - D_worse); a call's scales are those of cfg."""
    good, worse = GaussianDenoiser(Flow()), GaussianDenoiser(Flow(), std=1.0)
    scale = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    chain = Chain(ClassifierFree(), Autoguidance("w", 1.5))
    assert (chain.scale, chain.neutral, chain.models) == (3.0, None, ("w",))
    assert Chain(ClassifierFree(), Autoguidance("w", 1.0)).neutral == 1.0
    free = ClassifierFree().wrap(good, NULL, scale)(X, TIMES, ASKED)
    away = worse(X, TIMES, ASKED)
    got = chain.wrap(good, NULL, scale, models={"w": worse})(X, TIMES, ASKED)
    torch.testing.assert_close(got, away + 1.5 * (free - away), rtol=0, atol=1e-13)
    with pytest.raises(
        UserError, match="chain: cfg can't be around auto, whose worse model is given one condition a sample"
    ):
        Chain(Autoguidance("w"), ClassifierFree())


# ---------------------------------------------------------------- models on disk


def other(conditioner: str = "text", seed: int = 7) -> Pipeline:
    """A model of the same data with other weights."""
    made = tiny_pipeline(conditioner, info=FIELD)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return made


def test_a_pipeline_reads_the_worse_model_and_asks_it_in_its_own_words(tmp_path: Path) -> None:
    """x0 of a walk with DDIM on D' + w (D - D'), where D' is told the prompt by its own conditioner."""
    pipeline, worse = tiny_pipeline(info=FIELD), other()
    folder = worse.save_pretrained(tmp_path / "small")
    guidance = Autoguidance(str(folder), 2.5)
    made = pipeline(["seven", "an 8"], seed=3, guidance=guidance, solver="ddim", grid="uniform")
    good, bad = pipeline.model, worse.model
    words = {"caption": ["seven", "an 8"]}

    class Told:
        process = Flow()

        def __call__(self, x_t: torch.Tensor, t: torch.Tensor, cond: Cond | None = None) -> torch.Tensor:
            away = bad.denoiser(x_t, t, bad.condition(words))
            return away + 2.5 * (good.denoiser(x_t, t, cond) - away)

    from sfumato.core import SampleNoise

    with torch.no_grad():
        x = SampleNoise((3, 4)).prior((2, 11))
        x0 = sample(Told(), DDIM(), x, UniformGrid()(Flow(), 3), good.condition(words))
    torch.testing.assert_close(made.media, good.codec.decode(x0), rtol=0, atol=1e-5)
    again = pipeline(**made.settings)
    assert torch.equal(again.media, made.media)
    assert made.settings["guidance"] == {"type": "auto", "model": str(folder), "scale": 2.5, "interval": None}


def test_a_model_guided_by_itself_is_not_guided(tmp_path: Path) -> None:
    pipeline = tiny_pipeline("none", info=FIELD)
    folder = pipeline.save_pretrained(tmp_path / "self")
    itself = pipeline(n=2, guidance={"type": "auto", "model": str(folder), "scale": 4.0}).media
    torch.testing.assert_close(itself, pipeline(n=2).media, rtol=0, atol=1e-5)
    # 0 is the worse model, here the same one; stored with the model it needs no argument
    stored = Pipeline(pipeline.model, pipeline.spec, Sampling(steps=3, guidance=Autoguidance(str(folder), 0.0)))
    torch.testing.assert_close(stored(n=2).media, pipeline(n=2).media, rtol=0, atol=1e-6)


def test_dtype_and_chain_go_with_the_other_model(tmp_path: Path) -> None:
    folder = other().save_pretrained(tmp_path / "small")
    chain = {"type": "chain", "first": "cfg", "second": {"type": "auto", "model": str(folder)}}
    exact = tiny_pipeline(info=FIELD)("seven", guidance=chain, guidance_scale=2).media
    half = tiny_pipeline(info=FIELD).to(dtype="bf16")("seven", guidance=chain, guidance_scale=2).media
    torch.testing.assert_close(half, exact, rtol=0, atol=0.5)
    assert not torch.equal(half, exact)


def test_a_checkpoint_of_a_run_is_its_averages_as_they_were(tmp_path: Path) -> None:
    """`checkpoints/step-...` has averaged weights by name; settings and codec are those of the run's model."""
    spec = tiny_spec(FIELD)
    late = tiny_model(spec)
    Pipeline(late, spec).save_pretrained(tmp_path / "run" / "model")
    folder = tmp_path / "run" / "checkpoints" / "step-00000100"
    folder.mkdir(parents=True)
    early = {name: torch.randn_like(p) for name, p in late.named_parameters() if not name.startswith("codec")}
    averages = {f"{i}.{name}": value + i for name, value in early.items() for i in (0, 1)}
    save_file(averages, folder / "ema.safetensors")
    write_manifest(folder)
    read = load_model(folder)
    assert isinstance(read, Model) and all(torch.equal(p, early[name]) for name, p in read.named_parameters())
    assert torch.equal(read.codec.state_dict()["whitening.std"], late.codec.state_dict()["whitening.std"])
    assert all(torch.equal(a, b) for a, b in zip(load_model(tmp_path / "run").parameters(), late.parameters()))
    parts = folder.with_name("step-00000200")  # as two processes write it, each its rows
    parts.mkdir()
    for rank in (0, 1):
        write_tensors(parts / part_name("ema", rank, 2), {name: rows(v, rank, 2) for name, v in averages.items()})
    write_manifest(parts)
    assert all(torch.equal(p, early[name]) for name, p in load_model(parts).named_parameters())
    (folder / "ema.safetensors").write_bytes(b"0" + (folder / "ema.safetensors").read_bytes()[1:])
    with pytest.raises(UserError, match=r"guidance.model: .*ema.safetensors: has changed since it was written"):
        Pipeline(late, spec)("seven", guidance=Autoguidance(str(folder)))


@pytest.mark.parametrize(
    ("worse", "said"),
    [
        ("nowhere", "guidance.model: nowhere: there is no such model or run"),
        (("label", DIGITS), "it is asked by label and this model is not; use one that is alike"),
        (("text", FIELD), "its codec is another, it was not trained on the same data; use one that was"),
    ],
)
def test_models_that_do_not_go_together(tmp_path: Path, worse: Any, said: str) -> None:
    path = worse
    if not isinstance(worse, str):
        conditioner, info = worse
        path = str(tiny_pipeline(conditioner, info=info).save_pretrained(tmp_path / "other"))
    with pytest.raises(UserError) as caught:
        tiny_pipeline()("seven", guidance=Autoguidance(path))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(UserError, match=r"guidance=auto needs a worse model; set guidance.model= to a run"):
        Autoguidance()
    with pytest.raises(UserError, match="guidance=auto has no denoiser for 'small'; give wrap models="):
        Autoguidance("small").wrap(GaussianDenoiser(Flow()))
    with pytest.raises(
        UserError, match=r"guidance.model = small: its process is VP.* and not Flow\(\); the worse model must"
    ):
        Autoguidance("small").wrap(GaussianDenoiser(Flow()), models={"small": GaussianDenoiser(VP())})
