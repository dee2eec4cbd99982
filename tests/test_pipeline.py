"""The pipeline: seeds, batches, guidance, callbacks, and every request that can't be granted."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sfumato.core import Flow, LogisticGrid, SampleNoise
from sfumato.errors import SfumatoError, UserError
from sfumato.guidance import ClassifierFree
from sfumato.pipeline import Pipeline, Sampling
from sfumato.samplers import DDIM, Euler, Heun
from tests.tiny import FIELD, PAIR, tiny_pipeline

PROMPTS = ["a handwritten seven", "3", ""]


def test_an_untrained_network_gives_back_the_noise_of_its_seed() -> None:
    """Its output is zero, so with velocities nothing moves: x0 is the start, known in closed form, through the codec."""
    pipeline = tiny_pipeline("none", shaken=False)
    made = pipeline(n=3, seed=5, solver="dpmpp-2m").media
    noise = SampleNoise((5, 6, 7)).prior((1, 8, 8))
    expected = ((noise * 0.5 - 0.25 + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    assert torch.equal(made, expected)


def test_sample_i_of_prompt_j_has_the_seed_plus_j_n_plus_i() -> None:
    pipeline = tiny_pipeline()
    both = pipeline(PROMPTS[:2], n=2, seed=10)
    assert both.seeds == (10, 11, 12, 13)
    assert both.prompts == (PROMPTS[0],) * 2 + (PROMPTS[1],) * 2
    for row, prompt, seed in zip(both.media, both.prompts, both.seeds):
        assert torch.equal(row, pipeline(prompt, seed=seed).media[0])


@pytest.mark.parametrize("network", ["dit", "unet"])
def test_a_seed_gives_the_same_picture_at_batch_1_and_8(network: str) -> None:
    pipeline = tiny_pipeline(network=network)
    seeds = [4, 8, 15, 16, 23, 42, 99, 12]
    prompts = ["seven", "a handwritten three", "0", "seven", "a 2", "an eight", "4", "nine"]
    alone = pipeline(prompts, seed=seeds, batch_size=1).media
    together = pipeline(prompts, seed=seeds, batch_size=8).media
    assert torch.equal(alone, together)


@pytest.mark.parametrize("network", ["dit", "unet"])
@pytest.mark.parametrize("solver", ["dpmpp-2m", "ddpm"])
def test_at_one_batch_shape_a_sample_is_the_same_bit_for_bit_whatever_its_neighbours(network: str, solver: str) -> None:
    pipeline = tiny_pipeline(network=network, info=FIELD)
    here = pipeline(["seven", "three", "an 8", "nine"], seed=[1, 2, 3, 4], guidance_scale=[3, 1, 2, 4], solver=solver)
    there = pipeline(["six", "no", "a b", "seven"], seed=[9, 7, 5, 1], guidance_scale=[1, 0, 5, 3], solver=solver)
    assert here.media.dtype == torch.float32
    assert torch.equal(here.media[0], there.media[3])


def test_batches_have_one_shape_and_waste_less_than_one_sample_each() -> None:
    pipeline = tiny_pipeline("none")
    sizes: list[int] = []
    pipeline(
        n=9, batch_size=4, num_inference_steps=1, callback_on_step_end=lambda p, i, t, k: sizes.append(len(k["x"]))
    )
    assert sizes == [3, 3, 3]
    sizes.clear()
    made = pipeline(
        n=8, batch_size=5, num_inference_steps=1, callback_on_step_end=lambda p, i, t, k: sizes.append(len(k["x"]))
    )
    assert sizes == [4, 4] and len(made) == 8


@pytest.mark.parametrize(
    ("conditioner", "request_"),
    [
        ("none", {"n": 3}),
        ("text", {"prompt": PROMPTS, "n": 2, "guidance_scale": [1.0, 2.5, 0.0]}),
        ("text", {"prompt": "7", "negative_prompt": "3", "seed": [3, 1], "n": 2}),
        ("label", {"label": ["7", 3], "solver": Heun(), "grid": "karras"}),
        ("number", {"number": [0.5, 0.25], "solver": {"type": "ddim", "eta": 0.5}}),
        ("text+label", {"prompt": "seven", "label": [1, 2, 3], "num_inference_steps": 2}),
    ],
)
def test_the_settings_of_an_output_make_it_again(conditioner: str, request_: dict[str, Any]) -> None:
    pipeline = tiny_pipeline(conditioner)
    first = pipeline(**request_)
    again = pipeline(**first.settings)
    assert torch.equal(first.media, again.media)
    assert (first.seeds, first.prompts, first.settings) == (again.seeds, again.prompts, again.settings)


# ---------------------------------------------------------------- guidance


def test_scale_1_is_no_guidance_and_a_scale_for_each_prompt_is_what_each_gets_alone() -> None:
    pipeline = tiny_pipeline(info=FIELD)
    unguided = Pipeline(pipeline.model, pipeline.spec, Sampling(steps=3, guidance=None))
    assert torch.equal(pipeline("seven", guidance_scale=1).media, unguided("seven").media)
    scales = [1.0, 2.0, 4.0]
    mixed = pipeline(["seven"] * 3, seed=[0, 0, 0], guidance_scale=scales).media
    for row, scale in zip(mixed, scales):
        torch.testing.assert_close(row, pipeline("seven", guidance_scale=scale).media[0], rtol=1e-5, atol=1e-5)
    assert not torch.equal(mixed[0], mixed[2])


def test_scale_0_needs_no_condition_and_gives_anything() -> None:
    pipeline = tiny_pipeline(info=FIELD)
    anything = pipeline(guidance_scale=0).media
    torch.testing.assert_close(anything, pipeline("seven", guidance_scale=0).media)
    torch.testing.assert_close(anything, pipeline("", guidance_scale=1).media, rtol=1e-5, atol=1e-5)


def test_a_negative_prompt_takes_the_place_of_anything() -> None:
    pipeline = tiny_pipeline(info=FIELD)
    plain = pipeline("seven", guidance_scale=3).media
    torch.testing.assert_close(
        pipeline("seven", negative_prompt="", guidance_scale=3).media, plain, rtol=1e-5, atol=1e-5
    )
    away = pipeline("seven", negative_prompt="three", guidance_scale=3).media
    assert not torch.allclose(away, plain)
    # away from itself is nowhere: D_c + 2 (D_c - D_c)
    itself = pipeline("seven", negative_prompt="seven", guidance_scale=3).media
    torch.testing.assert_close(itself, pipeline("seven", guidance_scale=1).media, rtol=1e-5, atol=1e-5)


def test_with_two_conditions_the_negative_prompt_keeps_the_other() -> None:
    pipeline = tiny_pipeline("text+label")
    itself = pipeline("seven", label=7, negative_prompt="seven", guidance_scale=3).media
    assert torch.equal(itself, pipeline("seven", label=7, guidance_scale=1).media)


# ---------------------------------------------------------------- conditions


def test_labels_may_be_names_or_numbers_and_single_ones_go_with_all() -> None:
    pipeline = tiny_pipeline("label")
    assert torch.equal(pipeline(label="7").media, pipeline(label=7).media)
    assert pipeline(label=["7", 3], n=2).prompts == ("7", "7", "3", "3")
    both = tiny_pipeline("text+label")(["a", "b"], label=5)
    assert both.prompts == ("a, 5", "b, 5") and both.settings["label"] == [5, 5]


def test_numbers_of_several_columns() -> None:
    pipeline = tiny_pipeline("number", info=PAIR)
    assert pipeline(number=[0.5, 0.25]).prompts == ("slant=0.5 weight=0.25",)
    assert len(pipeline(number=[[0.5, 0.25], [0.0, 1.0]])) == 2


# ---------------------------------------------------------------- the call


def test_the_call_leaves_the_global_generator_and_training_modes_as_they_were() -> None:
    pipeline = tiny_pipeline(network="unet")
    pipeline.model.train()
    pipeline.model.codec.eval()
    modes = {name: module.training for name, module in pipeline.model.named_modules()}
    torch.manual_seed(3)
    before = torch.get_rng_state()
    made = pipeline("seven", n=2, solver="ddpm")
    assert torch.equal(torch.get_rng_state(), before)
    assert {name: module.training for name, module in pipeline.model.named_modules()} == modes
    assert torch.is_grad_enabled() and not made.media.is_inference()


def test_what_a_network_caches_while_it_is_sampled_serves_in_training() -> None:
    """A tensor made in inference mode could not be saved for the backward pass."""
    pipeline = tiny_pipeline("none", network="unet")
    kept: list[Tensor] = []
    handle = pipeline.model.denoiser.network.register_forward_hook(lambda m, i, out: kept.append(out))
    pipeline()
    handle.remove()
    weight = torch.ones(1, requires_grad=True)
    (weight * kept[0]).square().sum().backward()
    assert weight.grad is not None


def test_the_callback_sees_every_step_and_may_change_x() -> None:
    pipeline = tiny_pipeline("none", info=FIELD)
    seen: list[tuple[int, float]] = []

    def watch(pipe: Pipeline, step: int, t: Tensor, state: dict[str, Tensor]) -> None:
        assert pipe is pipeline and state["x"].shape == (2, 2, 11)
        seen.append((step, float(t[0])))

    assert torch.equal(
        pipeline(n=2, num_inference_steps=4, callback_on_step_end=watch).media,
        pipeline(n=2, num_inference_steps=4).media,
    )
    times = LogisticGrid()(Flow(), 5)  # of its five steps the first asks the network nothing and is not counted
    assert seen == [(k, float(times[k + 2])) for k in range(4)]
    seen.clear()
    pipeline(n=2, num_inference_steps=4, solver="ddim", grid="uniform", callback_on_step_end=watch)
    assert seen == [(0, 0.75), (1, 0.5), (2, 0.25), (3, 0.0)]

    def clear(pipe: Pipeline, step: int, t: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor] | None:
        return {"x": torch.zeros_like(state["x"])} if step == 3 else None

    made = pipeline(num_inference_steps=4, callback_on_step_end=clear)
    assert torch.equal(made.media, torch.full_like(made.media, -0.25))  # the codec's mean
    with pytest.raises(UserError, match=r"callback_on_step_end gave x of shape \(1,\); it must stay"):
        pipeline(callback_on_step_end=lambda p, i, t, k: {"x": torch.zeros(1)})


def test_solver_grid_and_steps_are_taken_by_name_or_value() -> None:
    pipeline = tiny_pipeline("none", info=FIELD)
    by_name = pipeline(solver="ddim", grid="karras", num_inference_steps=5).media
    stored = Pipeline(pipeline.model, pipeline.spec, Sampling(solver=DDIM(), grid=_karras(), steps=5, guidance=None))
    assert torch.equal(by_name, pipeline(solver=DDIM(), grid={"type": "karras"}, num_inference_steps=5).media)
    assert torch.equal(by_name, stored().media)
    torch.testing.assert_close(pipeline(solver=Euler()).media, pipeline(solver="ddim").media, rtol=1e-4, atol=1e-4)


def _karras() -> Any:
    from sfumato.core import KarrasGrid

    return KarrasGrid()


def test_output_types_hold_the_same_samples() -> None:
    pipeline = tiny_pipeline("label")
    pil = pipeline(label=[3, 4])
    array = pipeline(label=[3, 4], output_type="np").images
    tensor = pipeline(label=[3, 4], output_type="pt").images
    assert isinstance(pil.images, list) and isinstance(array, np.ndarray) and isinstance(tensor, Tensor)
    assert array.shape == (2, 8, 8, 1) and array.dtype == np.uint8 and torch.equal(tensor, pil.media)
    for image, row in zip(pil.images, array):
        assert np.array_equal(np.asarray(image), row[..., 0])


def test_an_output_shows_itself_in_a_notebook() -> None:
    picture = Image.open(io.BytesIO(tiny_pipeline()("seven", n=4)._repr_png_()))
    assert picture.format == "PNG" and picture.width > 2 * 8
    line = Image.open(io.BytesIO(tiny_pipeline(info=FIELD)("seven")._repr_png_()))  # arrays as plots
    assert line.format == "PNG"


def test_for_very_many_samples_a_plan_is_run_batch_by_batch_and_in_parts() -> None:
    pipeline = tiny_pipeline()
    plan = pipeline.plan(["seven", "three"], n=3, seed=0)
    whole = pipeline(["seven", "three"], n=3, seed=0).media
    assert [len(part) for part in pipeline.run(plan, 2)] == [2, 2, 2]
    part = torch.cat(list(pipeline.run(plan.take([4, 1]))))
    assert torch.equal(part, whole[[4, 1]])
    # nothing is left switched off between two batches
    running = pipeline.run(plan, 2)
    next(running)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("network", ["dit", "unet"])
@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"), [("bf16", torch.bfloat16, 0.15), ("fp16", torch.float16, 0.02)]
)
def test_half_precision_is_near_and_keeps_the_codec_in_float32(
    network: str, name: str, dtype: torch.dtype, tolerance: float
) -> None:
    exact = tiny_pipeline(network=network, info=FIELD)("seven", n=2).media
    half = tiny_pipeline(network=network, info=FIELD).to(dtype=name)
    assert half.model.codec.whitening.std.dtype == torch.float32  # type: ignore[union-attr]
    assert {p.dtype for p in half.model.denoiser.parameters()} == {dtype}
    made = half("seven", n=2).media
    assert made.dtype == torch.float32
    torch.testing.assert_close(made, exact, rtol=0, atol=tolerance)
    assert torch.equal(half.to("cpu", torch.float32)("seven").media, half("seven").media)


def test_samples_that_are_not_finite_are_an_error() -> None:
    pipeline = tiny_pipeline("none", info=FIELD)
    with torch.no_grad():
        next(pipeline.model.denoiser.parameters()).fill_(float("nan"))
    with pytest.raises(SfumatoError, match=r"not finite.*try dtype=fp32") as caught:
        pipeline()
    assert caught.value.exit_code == 1


# ---------------------------------------------------------------- what can't be asked


@pytest.mark.parametrize(
    ("conditioner", "request_", "said"),
    [
        ("text", {"prompt": "7", "num_inference_steps": 0}, "at least 1, not 0; set steps= to 1 or more"),
        ("text", {"prompt": "7", "num_inference_steps": 2.5}, "a whole number of steps, at least 1, not 2.5"),
        ("text", {"prompt": "7", "guidance_scale": -1.0}, "guidance=-1.0 is not a scale; 1 is no guidance"),
        ("text", {"prompt": "7", "guidance_scale": float("nan")}, "guidance=nan is not a scale"),
        ("text", {"prompt": "7", "guidance_scale": [1, 2]}, None),
        ("text", {"prompt": ["7", "8"], "guidance_scale": [1, 2, 3]}, "of prompt= do not go with 3 of guidance_scale="),
        ("text", {"prompt": "7", "n": 0}, "n=0: the number of samples of each prompt must be at least 1"),
        ("text", {"prompt": "7", "batch_size": 0}, "batch_size=0: must be at least 1"),
        ("text", {"prompt": "7", "seed": [1, 2]}, "2 seeds for 1 samples (1 prompts, n=1); give one seed or 1"),
        ("text", {"prompt": "7", "seed": -1}, "seed=-1: must lie in 0 ... 2^62 - 1"),
        ("text", {"prompt": []}, "prompt=[] asks for nothing"),
        ("text", {"prompt": [7]}, "prompt must be text, not 7"),
        ("text", {}, "asked by prompt=, and prompt= is missing; give it a text, or guidance=0"),
        ("text", {"label": 3}, "label= can't be given to this model; ask it by prompt="),
        ("text", {"prompt": "x" * 33}, "33 bytes long and this model reads 32: shorten it, or train with conditioner."),
        ("text", {"prompt": "7", "negative_prompt": "x" * 33}, "is 33 bytes long and this model reads 32"),
        ("text", {"prompt": "7", "negative_prompt": "3", "guidance_scale": 1}, "negative_prompt= does nothing without"),
        ("text", {"prompt": "7", "solver": "hun"}, "there is no solver 'hun'; did you mean 'heun'?"),
        ("text", {"prompt": "7", "solver": {"type": "ddim", "eat": 1}}, "solver.eat: ddim has no setting 'eat'; did you"),
        ("text", {"prompt": "7", "solver": Sampling()}, "solver must be a solver, not the sampling 'sampling'"),
        ("text", {"prompt": "7", "output_type": "jpg"}, "output_type='jpg': use pil, np or pt"),
        ("label", {"prompt": "7"}, "prompt= can't be given to this model; ask it by label="),
        ("label", {"label": 10}, "label=10: outside 0..9, this model knows 10 classes"),
        ("label", {"label": -1}, "label=-1: outside 0..9"),
        ("label", {"label": "seven"}, "label='seven': there is no such class; known: 0, 1, 2"),
        ("label", {"label": 1.5}, "label=1.5: a label is a class name or a whole number"),
        ("label", {}, "asked by label=, and label= is missing; give it 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"),
        ("label", {"label": 1, "negative_prompt": "x"}, "negative_prompt= needs a model that is asked by prompt="),
        ("number", {"number": [[1.0, 2.0]]}, "number=[1.0, 2.0]: this model takes 1 finite numbers, slant"),
        ("number", {"number": float("inf")}, "this model takes 1 finite numbers, slant"),
        ("number", {"number": 2.0}, "slant = 2 is outside 0 to 1"),
        ("none", {"prompt": "7"}, "prompt= can't be given to this model; it is unconditional"),
        ("none", {"guidance_scale": 2.0}, "guidance=2: this model is unconditional, there is nothing to guide it by"),
        ("text+label", {"prompt": "7"}, "asked by prompt= and label=, and label= is missing"),
        ("text+label", {"prompt": ["7", "8"], "label": [1, 2, 3]}, "2 values of prompt= do not go with 3 of label="),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_one_sentence(conditioner: str, request_: dict[str, Any], said: str | None) -> None:
    pipeline = tiny_pipeline(conditioner)
    if said is None:
        assert len(pipeline(**request_)) == 2
        return
    with pytest.raises(UserError) as caught:
        pipeline(**request_)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"dtype": "int4"}, "dtype=int4: not a type to compute in; use fp32, bf16, fp16, int8"),
        ({"dtype": torch.int64}, "dtype=torch.int64: not a type to compute in"),
        ({"device": "gpu9"}, "device=gpu9: this machine or this build of torch has no such device; use cpu"),
    ],
)
def test_devices_and_types_that_are_not_there(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        tiny_pipeline().to(**arguments)
    assert said in str(caught.value)


def test_sampling_settings_are_checked() -> None:
    with pytest.raises(UserError, match="at least 1, not 0"):
        Sampling(steps=0)
    assert isinstance(Sampling().guidance, ClassifierFree)
