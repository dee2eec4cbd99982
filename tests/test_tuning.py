"""Tuning a sampler to a model: its gradients, what it gains on an exact denoiser, and the command on small models."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sfumato import cli, modelfolder, tuning
from sfumato.core import VE, Flow, KarrasGrid, LogisticGrid, Process, TunedGrid
from sfumato.errors import UserError
from sfumato.files import CorruptError, verify_manifest
from sfumato.guidance import PlusPlus
from sfumato.model import resting
from sfumato.pipeline import Pipeline, Sampling
from sfumato.samplers import ExpAdams, Heun, Tuned, sample, start
from sfumato.testing import PROCESSES, MixtureDenoiser
from sfumato.tuning import Start, Tuning, solution, starts, tune, tune_all, tune_pipeline, tuned_sampling
from tests.tiny import FIELD, PAIR, tiny_model, tiny_pipeline, tiny_spec


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def begins(process: Process, batches: int, first: int = 0) -> list[Start]:
    """Starts of an exact mixture: 5 modes in 8 dimensions."""
    denoiser = MixtureDenoiser(process, normal(5, 8, seed=77), 0.3)
    return [Start(denoiser, normal(32, 8, seed=first + i)) for i in range(batches)]


# ---------------------------------------------------------------- gradients


def slopes(walk: Any, begin: Start, goal: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients of the squared distance to a goal in the times and in the numbers: by autograd, and by differences."""

    def loss() -> Tensor:
        return (walk(begin) - goal).square().sum()

    by_graph = list(torch.autograd.grad(loss(), walk.parameters))
    by_difference = []
    for parameter in walk.parameters:
        found = torch.zeros_like(parameter)
        for place in range(parameter.numel()):
            values = []
            for h in (1e-5, -1e-5):
                with torch.no_grad():
                    parameter.view(-1)[place] += h
                    values.append(loss())
                    parameter.view(-1)[place] -= h
            found.view(-1)[place] = (values[0] - values[1]) / 2e-5
        by_difference.append(found)
    return by_graph, by_difference


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_gradients_of_times_and_numbers(process: Process) -> None:
    walk = tuning._Walk(process, 3)
    with torch.no_grad():  # away from the start, where some numbers are exactly 0 or 1
        walk.numbers_ += 0.05 * normal(*walk.numbers_.shape)
        walk.times_ += 0.1 * normal(*walk.times_.shape, seed=1)
    begin = begins(process, 1)[0]
    for by_graph, by_difference in zip(*slopes(walk, begin, normal(32, 8, seed=5))):
        torch.testing.assert_close(by_graph, by_difference, rtol=1e-4, atol=1e-4 * float(by_difference.abs().max()))


def test_gradients_reach_numbers_that_are_0_or_1() -> None:
    """The last step begins as E[x0 | x_t] alone; a compiled step would leave the others out, and the 1 too."""
    walk = tuning._Walk(Flow(), 4)
    assert walk.table()[-1].tolist() == [0, 1, 0, 0, 0, 0]
    by_graph, by_difference = slopes(walk, begins(Flow(), 1)[0], normal(32, 8, seed=5))
    torch.testing.assert_close(by_graph[1], by_difference[1], rtol=1e-5, atol=1e-5)
    assert bool((by_graph[1][-1, 1:5] != 0).all())


def test_gradients_pass_through_a_network() -> None:
    """Times enter a network through its noise embedding too, and its weights are given nothing."""
    model = tiny_model(tiny_spec(FIELD, "none")).double().eval()
    walk, begin = tuning._Walk(Flow(), 3), Start(model.denoiser, normal(2, 2, 11))
    by_graph, by_difference = slopes(walk, begin, torch.zeros(2, 2, 11, dtype=torch.float64))
    for ours, theirs in zip(by_graph, by_difference):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))
    tune([begin], [begin], 3, iterations=2, many=5)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_what_is_kept_walks_as_what_was_fitted(process: Process) -> None:
    walk, begin = tuning._Walk(process, 5), begins(process, 1)[0]
    with torch.no_grad():
        walk.numbers_ += 0.05 * normal(*walk.numbers_.shape)
        fitted = walk(begin)
    times, numbers = walk.values()
    solver, grid = Tuned((times,), (numbers,)), TunedGrid((times,))
    at = grid(process, solver.intervals(process, 5))
    made = sample(begin.denoiser, solver, start(process, begin.eps, at[0]), at)
    torch.testing.assert_close(made, fitted, rtol=1e-8, atol=1e-8)


def test_times_stay_in_order_and_in_range() -> None:
    walk = tuning._Walk(Flow(), 6)
    with torch.no_grad():
        walk.times_ += torch.tensor([50.0, -40.0, 30.0, -40.0, 2.0, 5.0])
        walk.hold()
    times = walk.times().detach()
    TunedGrid((tuple(times.tolist()),))  # refuses times that do not fall
    lam = Flow().logsnr(times)[1:-1] / 2
    assert float(lam.diff().min()) >= 0.0199 and float(lam[-1]) <= walk.range[1] + 1e-9


# ---------------------------------------------------------------- what is found


@pytest.mark.parametrize(("process", "nfe", "factor"), [(Flow(), 5, 4.0), (VE(), 4, 5.0)], ids=repr)
def test_the_error_falls_on_starts_never_seen(process: Process, nfe: int, factor: float) -> None:
    """A learning test: 50 iterations on one core. The last starts are met by neither the fit nor the choice of the best."""
    training, held_out, fresh = begins(process, 6), begins(process, 2, 100), begins(process, 4, 200)
    found = tune(training, held_out, nfe, iterations=50, many=60)
    solver, grid = found.solver(), found.grid()
    errors = []
    for walker, rule in ((ExpAdams(), LogisticGrid()), (solver, grid)):
        times = rule(process, walker.intervals(process, nfe))
        made = [sample(b.denoiser, walker, start(process, b.eps, times[0]), times) for b in fresh]
        errors.append(tuning.relative_error(torch.cat(made), torch.cat([solution(b, 200) for b in fresh])))
    assert errors[1] * factor < errors[0], errors
    assert found.after * factor < found.before


def test_nothing_better_is_the_start_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_NUMBERS_RATE", 3.0)
    monkeypatch.setattr(tuning, "_TIMES_RATE", 3.0)
    found = tune(begins(Flow(), 1), begins(Flow(), 1, 100), 3, iterations=4, many=20)
    assert found.before == found.after and not found.better
    own = Sampling()
    assert tuned_sampling(own, [found]) == own
    begin = begins(Flow(), 1, 100)[0]
    times = found.grid()(Flow(), 4)
    made = sample(begin.denoiser, found.solver(), begin.eps, times)
    default = sample(begin.denoiser, ExpAdams(), begin.eps, LogisticGrid()(Flow(), 4))
    torch.testing.assert_close(made, default, rtol=1e-8, atol=1e-8)


def test_a_function_of_its_arguments_and_said_to_the_end() -> None:
    said: list[tuple[int, int, float]] = []
    parts = begins(Flow(), 2), begins(Flow(), 1, 100)
    both = tune_all(*parts, [3, 4], iterations=5, many=20, said=lambda *words: said.append(words))
    alone = tune(*parts, 4, iterations=5, many=20)
    assert both[1] == alone and both[0].evaluations == 3
    done = [d for d, _, _ in said]
    assert done == sorted(done) and done[0] == 20 and len({total for _, total, _ in said}) == 1
    assert 0.5 < done[-1] / said[-1][1] <= 1
    other = tune(begins(Flow(), 2, 7), parts[1], 4, iterations=5, many=20)
    assert other.numbers != alone.numbers


@pytest.mark.parametrize(("nfe", "said"), [(1, "a walk of one evaluation"), (0, "nfe=0"), (30, "many=30 evaluations")])
def test_what_cannot_be_tuned(nfe: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        tune(begins(Flow(), 1), begins(Flow(), 1), nfe, many=30)


def a_tuning(nfe: int, shift: float = 0.0) -> Tuning:
    """As if found for `nfe` evaluations on `flow`."""
    walk = tuning._Walk(Flow(), nfe)
    with torch.no_grad():
        walk.numbers_ += shift
    return Tuning(nfe, *walk.values(), before=2.0, after=1.0)


def test_walks_are_kept_side_by_side_and_replaced() -> None:
    own = Sampling(Heun(), KarrasGrid(), steps=9)
    first = tuned_sampling(own, [a_tuning(8), a_tuning(5)])
    assert isinstance(first.solver, Tuned) and isinstance(first.grid, TunedGrid)
    assert first.solver.times == first.grid.times and [len(t) for t in first.grid.times] == [7, 10]
    assert (first.solver.otherwise, first.grid.otherwise, first.steps) == (Heun(), KarrasGrid(), 9)
    again = a_tuning(5, 0.1)
    second = tuned_sampling(first, [again]).solver
    assert isinstance(second, Tuned) and second.otherwise == Heun()
    assert second.numbers == (again.numbers, first.solver.numbers[1])


# ---------------------------------------------------------------- a pipeline


class Calls:
    """How often the network of a pipeline is asked."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.count = 0
        pipeline.model.denoiser.network.register_forward_hook(self)

    def __call__(self, module: nn.Module, given: Any, out: Any) -> None:
        self.count += 1


def test_a_pipeline_takes_the_tuned_walk_at_its_steps_alone() -> None:
    """With 5 evaluations on 6 intervals beside 6 steps of a solver that makes no free one: they must not be mixed up."""
    plain = tiny_pipeline("none")
    plain.sampling = Sampling(Heun(), KarrasGrid(), steps=6)
    shifted = a_tuning(5, 0.02)
    tuned = Pipeline(plain.model, plain.spec, tuned_sampling(plain.sampling, [shifted]))
    calls = Calls(tuned)

    def drawn(pipeline: Pipeline, **how: Any) -> Tensor:
        made: Any = pipeline(n=2, output_type="pt", **how).images
        return made.float()

    assert torch.equal(drawn(tuned), drawn(plain))  # the model's own 6 steps
    assert torch.equal(drawn(tuned, num_inference_steps=6, solver="exp-adams"), drawn(plain, solver="exp-adams"))
    for how in ({"solver": "ddim"}, {"grid": "uniform"}, {"solver": "ddim", "grid": "uniform"}):
        same = drawn(plain, num_inference_steps=5, **how)
        assert torch.equal(drawn(tuned, num_inference_steps=5, **how), same)
    calls.count = 0
    made = drawn(tuned, num_inference_steps=5)
    assert calls.count == 5
    explicit = drawn(plain, num_inference_steps=5, solver=shifted.solver(), grid=shifted.grid())
    assert torch.equal(made, explicit) and not torch.equal(made, drawn(plain, num_inference_steps=5))
    seen: list[int] = []
    output = tuned(num_inference_steps=5, callback_on_step_end=lambda p, step, t, state: seen.append(step))
    assert seen == [0, 1, 2, 3, 4]
    again = plain(**output.settings, output_type="pt")
    assert torch.equal(again.media, output.media)


def test_tuning_leaves_a_pipeline_as_it_was() -> None:
    pipeline = tiny_pipeline("text", "unet")
    pipeline.model.train()
    before = {name: value.clone() for name, value in pipeline.model.state_dict().items()}
    plan = pipeline.plan(["a seven", "an eight"], n=3, seed=5)
    found = tune_pipeline(pipeline, plan, [3], batch=2, iterations=2, many=8)
    assert [t.evaluations for t in found] == [3]
    assert pipeline.model.training and all(p.requires_grad and p.grad is None for p in pipeline.model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in pipeline.model.state_dict().items())


def test_starts_are_what_the_pipeline_begins_with() -> None:
    """The model's own solution from a start is the picture that the pipeline draws for that seed, with its guidance."""
    pipeline = tiny_pipeline("text")
    pipeline.sampling = Sampling(steps=12)
    plan = pipeline.plan(["a seven", "an eight"], n=2, seed=5, guidance_scale=[1.0, 3.0])
    with resting(pipeline.model):
        made = torch.cat([solution(begin, 12) for begin in starts(pipeline, plan, 3)])
    drawn = torch.cat(list(pipeline.run(plan)))
    assert (pipeline.model.codec.decode(made).float() - drawn.float()).abs().max() <= 1


def test_guidance_by_the_steps_and_too_few_samples_are_refused() -> None:
    pipeline = tiny_pipeline("label")
    with pytest.raises(UserError, match=r"guidance=cfg\+\+ is defined by the steps"):
        tune_pipeline(pipeline, pipeline.plan(label=[1, 2, 3], guidance=PlusPlus()), [3])
    with pytest.raises(UserError, match="tuning needs 3 samples or more, not 2"):
        tune_pipeline(pipeline, pipeline.plan(label=[1, 2]), [3])


# ---------------------------------------------------------------- the command

TINY = ["network.width=8", "batch=16", "samples=32", "train.pictures=0", "train.evaluations=0", "steps=6"]
QUICK = ["n=8", "batch=4", "iterations=16", "many=12"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `runs/digits`, asked by words, and model folders of every kind of condition."""
    folder = tmp_path_factory.mktemp("tune")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.run(["train", "digits", "name=digits", *TINY]) == 0
        pipeline = Pipeline.from_pretrained("runs/digits")
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():  # two steps of training leave a straight path, with nothing to tune
            for parameter in pipeline.model.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        pipeline.save_pretrained("runs/digits/model")
    for kind in ("none", "label", "text"):
        tiny_pipeline(kind).save_pretrained(folder / kind)
    tiny_pipeline("number", info=PAIR).save_pretrained(folder / "number")
    return folder


@pytest.fixture
def do(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run `sfumato ...` beside a copy of the models: (exit code, standard output, standard error)."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.run(list(words))
        return (code, *capsys.readouterr())

    return call


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_a_run_is_tuned_kept_and_sampled(do: Any) -> None:
    model = Path("runs/digits/model")
    before, plain = content(model), Pipeline.from_pretrained(model)
    code, out, err = do("tune-sampler", "digits", "nfe=4,3", *QUICK, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["model"] == "runs/digits/model" and list(found["tuned"]) == ["3", "4"]
    assert found["settings"] == {"n": 8, "seed": 0, "iterations": 16, "batch": 4, "many": 12, "guidance": 1.25}
    for row in found["tuned"].values():
        assert row["saved"] and row["after"] < row["before"] and row["ratio"] == row["before"] / row["after"]
    verify_manifest(model)
    after = content(model)
    assert {name for name in after if after[name] != before[name]} == {"config.json", "MANIFEST.json"}
    config, old = (json.loads(files["config.json"]) for files in (after, before))
    assert {key for key in config if config[key] != old[key]} == {"sampling"}
    assert not [entry for entry in model.parent.iterdir() if entry.name.endswith((".tmp", ".old"))]
    tuned = Pipeline.from_pretrained(model)
    own = plain.sampling
    assert tuned.sampling == replace(own, solver=tuned.sampling.solver, grid=tuned.sampling.grid)
    counts = []
    for steps in (3, 4, 5):
        calls = Calls(tuned)
        made = tuned("a handwritten seven", n=2, num_inference_steps=steps, output_type="pt").media
        same = plain("a handwritten seven", n=2, num_inference_steps=steps, output_type="pt").media
        assert torch.equal(made, same) == (steps == 5)
        counts.append(calls.count)
    assert counts == [3, 4, 5]
    # the same number of evaluations again replaces that walk, and leaves the other
    assert do("tune-sampler", "digits", "nfe=3", "seed=1", *QUICK)[0] == 0
    third = Pipeline.from_pretrained(model).sampling.solver
    assert isinstance(third, Tuned) and isinstance(tuned.sampling.solver, Tuned)
    assert third.numbers[1] == tuned.sampling.solver.numbers[1]
    assert third.numbers[0] != tuned.sampling.solver.numbers[0]


def test_the_table_and_the_next_command(do: Any) -> None:
    code, out, _ = do("tune-sampler", "digits", "nfe=3", *QUICK, "guidance=1")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("runs/digits/model: tuned on 8 starts in ")
    assert lines[1].split() == ["nfe", "error", "before", "after", "ratio"]
    cells = lines[2].split()
    assert cells[0] == "3" and float(cells[3]) == pytest.approx(float(cells[1]) / float(cells[2]), abs=0.02)
    assert "next: sfumato sample digits steps=3; other numbers of steps are sampled as before" in lines[3]
    code, out, _ = do("sample", "digits", "a handwritten seven", "steps=3", "n=1", "--json")
    assert code == 0 and json.loads(out)["settings"]["solver"]["type"] == "tuned"
    code, out, _ = do("sample", "digits", "a handwritten seven", "steps=4", "n=1", "--json", "-o", "others")
    assert code == 0 and json.loads(out)["settings"]["solver"]["type"] == "dpmpp-2m"
    code, out, _ = do("show", "digits")
    assert code == 0 and "tuned(times=5 numbers, numbers=24 numbers" in out


def test_where_nothing_is_better_nothing_is_changed(do: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_NUMBERS_RATE", 3.0)
    before = content(Path("runs/digits/model"))
    code, out, _ = do("tune-sampler", "digits", "nfe=3", *QUICK)
    assert code == 0 and "not better on starts that were held out: nothing is changed" in out and "next:" not in out
    assert content(Path("runs/digits/model")) == before


def test_an_interrupt_leaves_the_model_alone(do: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content(Path("runs/digits/model"))

    def stop(*given: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(tuning, "_fit", stop)
    assert do("tune-sampler", "digits", "nfe=3", *QUICK)[:2] == (130, "")
    assert content(Path("runs/digits/model")) == before


def test_a_run_that_is_being_trained_is_left_alone(do: Any) -> None:
    from sfumato.train import Run

    with Run("runs/digits").lock():
        code, _, err = do("tune-sampler", "digits", "nfe=3", *QUICK)
    assert code == 2 and "is being trained; tune its sampler when that has ended" in err


@pytest.mark.parametrize(
    ("model", "words"),
    [("none", []), ("label", []), ("number", []), ("text", ["a seven", "an eight"]), ("label", ["data=digits"])],
)
def test_model_folders_are_asked_by_what_they_know(
    do: Any, monkeypatch: pytest.MonkeyPatch, model: str, words: list[str]
) -> None:
    plans: list[Any] = []

    def seen(pipeline: Pipeline, plan: Any, *rest: Any, **how: Any) -> list[Tuning]:
        plans.append(plan)
        return [replace(a_tuning(3), after=2.0)]

    monkeypatch.setattr("sfumato.commands.tune.tune_pipeline", seen)
    code, _, err = do("tune-sampler", model, "nfe=3", *QUICK, *words)
    assert code == 0, err
    request = plans[0].request
    assert len(set(request.seeds)) == 12 and min(request.seeds) >= 1 << 40  # 8 to train on, 4 held out
    if model == "label" and not words:
        assert torch.as_tensor(request.columns["label"]).tolist() == [i % 10 for i in range(12)]
    if model == "number":
        drawn = torch.as_tensor(request.columns["number"])
        assert drawn.shape == (12, 2) and len(drawn.unique()) == 24
    if model == "text":
        assert list(request.columns["caption"]) == words * 6


@pytest.mark.parametrize(
    ("model", "words", "said"),
    [
        ("digits", [], "say for how many network evaluations to tune: nfe=8"),
        ("digits", ["nfe=1"], "nfe=1: a walk of one evaluation has nothing to tune"),
        ("digits", ["nfe=0"], "nfe=0: a walk of one evaluation has nothing to tune"),
        ("digits", ["nfe=abc"], "nfe=abc: must be a whole number"),
        ("digits", ["nfe=5,"], "nfe=: must be a whole number"),
        ("digits", ["nfe=200"], "nfe=200: it is compared with many=100 evaluations"),
        (
            "digits",
            ["nfe=5", "itertions=3"],
            "`sfumato tune-sampler` has no setting 'itertions'; did you mean 'iterations'?",
        ),
        ("digits", ["nfe=5", "iterations=0"], "iterations=0: must be at least 1"),
        ("digits", ["nfe=5", "batch=0"], "batch=0: must be at least 1"),
        ("digits", ["nfe=5", "n=1"], "n=1: the starts to tune on; use 2 or more"),
        ("digits", ["nfe=5", "seed=-1"], "seed=-1: must lie in 0"),
        ("digits", ["nfe=5", "guidance=2,3"], "guidance=2,3: the sampler is tuned for one scale"),
        ("digits", ["nfe=5", "guidance=apgg"], "did you mean 'apg'?"),
        ("digits", ["nfe=5", "guidance=cfg++"], "guidance=cfg++ is defined by the steps"),
        ("digits", ["nfe=5", "data=shapes"], "the data has (3, 32, 32); give the data that it was trained on"),
        ("none", ["nfe=5", "guidance=3"], "this model is unconditional"),
        ("label", ["nfe=5", "a seven"], "prompt= can't be given to this model"),
        ("text", ["nfe=5"], "give prompts as words, or data=PATH"),
        ("text", ["nfe=5", "data=nowhere"], "data = 'nowhere': there is no such file, folder or built-in set"),
        ("nowhere", ["nfe=5"], "there is no such model or run"),
        ("runs", ["nfe=5"], "not a model or run folder"),
    ],
)
def test_mistakes_are_one_sentence(
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model: str,
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(trained)
    before = content(Path("runs/digits/model"))
    code = cli.run(["tune-sampler", model, *words])
    out, err = capsys.readouterr()
    assert code == 2 and not out
    assert said in err and err.count("\n") == 1 and err.startswith("error: ")
    assert content(Path("runs/digits/model")) == before


def test_a_run_whose_data_are_gone(do: Any) -> None:
    np.save("fields.npy", np.random.default_rng(0).normal(3, 20, (16, 2, 8)).astype(np.float32))
    recipe = Path("runs/digits/recipe.yaml")
    text = recipe.read_text().replace("type: digits", "type: arrays\n  path: gone.npz", 1)
    recipe.write_text(text)
    code, _, err = do("tune-sampler", "digits", "nfe=5")
    assert code == 2 and "gone.npz" in err


def test_a_changed_file_is_not_given_a_new_manifest(trained: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained / "none", tmp_path / "none"))
    card = folder / "README.md"
    card.write_text(card.read_text() + "x")
    with pytest.raises(CorruptError, match=r"README\.md"):
        modelfolder.save_sampling(folder, {"type": "sampling"})


def test_a_model_folder_behind_a_link_stays_behind_it(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "none", tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    modelfolder.save_sampling(tmp_path / "link", {"type": "sampling", "steps": 7})
    assert (tmp_path / "link").is_symlink() and Pipeline.from_pretrained(tmp_path / "real").sampling.steps == 7
