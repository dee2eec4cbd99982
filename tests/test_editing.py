"""What begins with media: parts that stay, variations, other sizes and continuations, of any kind of media."""

from __future__ import annotations

import pytest
import torch

from sfumato.core import DataInfo, Flow, KarrasGrid, LogisticGrid, SampleNoise
from sfumato.editing import Edit, Known, edit, extend
from sfumato.errors import UserError
from sfumato.model import ModelSpec
from sfumato.pipeline import Pipeline
from sfumato.samplers import DDIM, DPMpp2M, ExpAdams, Solver, sample, start
from sfumato.spec import Spec
from sfumato.testing import GaussianDenoiser
from tests.tiny import FIELD, NETWORKS, tiny_model, tiny_pipeline, tiny_spec

SOUND = DataInfo((1, 512), "audio", captions=True, rate=8000)
SOLID = DataInfo((2, 4, 6, 5), "array", captions=True)


def sounds() -> Pipeline:
    from sfumato.codecs import Waveform

    spec = tiny_spec(SOUND)
    made = ModelSpec(
        SOUND, NETWORKS["unet"], spec.process, spec.parameterization, Spec(Waveform, fold=8), spec.conditioner
    )
    return Pipeline(tiny_model(made), made)


@pytest.mark.parametrize("solver", [DDIM(), DPMpp2M(), ExpAdams()])
def test_a_known_part_is_carried_exactly_and_the_rest_is_what_it_is_alone(solver: Solver) -> None:
    """For a denoiser that looks at every element by itself, holding some changes nothing of the others."""
    process = Flow()
    denoiser = GaussianDenoiser(process)
    x0, known = torch.randn(2, 3, 9), torch.rand(2, 1, 9) < 0.5
    noise = SampleNoise((0, 1))
    times = LogisticGrid()(process, 8)
    x = start(process, noise.prior((3, 9)), times[0])
    held = sample(Known(denoiser, x0, known), solver, x, times, noise=noise)
    alone = sample(denoiser, solver, x, times, noise=noise)
    torch.testing.assert_close(held, torch.where(known, x0, alone), atol=1e-5, rtol=0)


@pytest.mark.parametrize("info", [FIELD, SOLID])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_what_is_known_comes_back_bit_for_bit(info: DataInfo, share: float) -> None:
    pipeline = tiny_pipeline("text", "unet", info=info)
    media = torch.randn(1, *info.shape)
    known = torch.rand(1, 1, *info.shape[1:], generator=torch.Generator().manual_seed(0)) < share
    made = edit(pipeline, media, known=known, prompt=["a", "b"], seed=3).media
    assert torch.equal(torch.where(known, made, 0.0), torch.where(known, media, 0.0).expand_as(made))
    if share < 1:
        assert not torch.equal(made[0], made[1])


def test_pictures_keep_their_pixels() -> None:
    pipeline = tiny_pipeline("text", "unet")
    media = torch.randint(0, 256, (1, 1, 8, 8), dtype=torch.uint8)
    known = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    known[..., :4] = True
    made = edit(pipeline, media, known=known, prompt="a").media
    assert made.dtype == torch.uint8 and torch.equal(made[..., :4], media[..., :4])


def test_media_that_count_for_nothing_change_nothing() -> None:
    pipeline = tiny_pipeline("text", "unet", info=FIELD)
    plain = pipeline("a", n=3, seed=5, batch_size=2).media
    assert torch.equal(edit(pipeline, torch.randn(1, 2, 11), prompt="a", n=3, seed=5, batch_size=2).media, plain)
    assert torch.equal(edit(pipeline, prompt="a", n=3, seed=5, batch_size=2).media, plain)
    assert torch.equal(edit(pipeline, size=(11,), prompt="a", n=3, seed=5, batch_size=2).media, plain)


def test_a_variation_begins_at_the_noised_media() -> None:
    pipeline = tiny_pipeline("text", "unet", info=FIELD, steps=10)
    media = torch.randn(1, *FIELD.shape)
    seen: list[float] = []

    def first(pipe: object, step: int, t: torch.Tensor, state: dict[str, torch.Tensor]) -> None:
        seen.append(float(t.reshape(-1)[0]))

    from sfumato.editing import run

    plan = pipeline.plan("a", seed=1, num_inference_steps=10, grid=KarrasGrid(), solver="ddim")
    near, far = (torch.cat(list(run(pipeline, plan, Edit(media, strength=s), 64, first))) for s in (0.1, 0.9))
    assert (near - media).norm() < 0.3 * (far - media).norm()
    assert seen[:2] == [0.0, pytest.approx(float(KarrasGrid()(Flow(), 10)[2]))]  # one step for 0.1, nine for 0.9
    assert len(seen) == 1 + 9


def test_longer_sounds_are_drawn_longer_and_shorter_ones_are_cut() -> None:
    pipeline = sounds()
    own = pipeline("a", seed=2).media
    assert torch.equal(edit(pipeline, size=(100,), prompt="a", seed=2).media, own[..., :100])
    assert edit(pipeline, size=(1000,), prompt="a", seed=2).media.shape == (1, 1, 1000)


def test_a_sound_that_stays_goes_over_into_what_is_made_within_4_ms() -> None:
    pipeline = sounds()
    media = 0.3 * torch.randn(1, 1, 512, generator=torch.Generator().manual_seed(0))
    known = torch.zeros(1, 1, 512, dtype=torch.bool)
    known[..., 200:] = True
    made = edit(pipeline, media, known=known, prompt="a").media
    assert torch.equal(made[..., 232:], media[..., 232:])
    assert not torch.isclose(made[..., :190], media[..., :190]).all()


def test_a_continued_sound_begins_with_what_was_there() -> None:
    pipeline = sounds()
    clip = 0.3 * torch.randn(1, 300, generator=torch.Generator().manual_seed(0))
    whole = extend(pipeline, clip, 1300, prompt="a", seed=1)
    assert whole.shape == (1, 1300)
    assert torch.equal(whole[:, :300], clip)
    assert torch.equal(whole, extend(pipeline, clip, 1300, prompt="a", seed=1))
    assert (whole[:, 300:].reshape(1, -1, 100).std(-1) > 0).all()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Edit(strength=0.0), "strength=0: must be above 0"),
        (lambda: Edit(strength=0.5), "need something to begin with; give init="),
        (
            lambda: Edit(torch.zeros(1, 2, 11), torch.ones(1, 1, 9, dtype=torch.bool)),
            r"a mask of size \(9,\) does not fit",
        ),
        (
            lambda: edit(tiny_pipeline(info=FIELD), torch.zeros(1, 3, 11), strength=0.5, prompt="a"),
            "are not what this model makes",
        ),
        (
            lambda: edit(tiny_pipeline(info=FIELD), torch.zeros(3, 2, 11), strength=0.5, prompt="a", n=2),
            "3 media to begin with for 2",
        ),
        (lambda: edit(tiny_pipeline(info=FIELD), size=(3, 3), prompt="a"), "this model makes media of 1 axes"),
        (lambda: extend(tiny_pipeline(info=FIELD), torch.zeros(2, 11), 20, overlap=1.0), "overlap=1: the share"),
    ],
)
def test_edits_that_mean_nothing_are_refused(make: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        make()  # type: ignore[operator]
