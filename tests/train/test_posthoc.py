"""Averages put together after training: profiles against integrals, weights against the averages computed directly."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sfumato import cli, modelfolder
from sfumato.codecs import Arrays
from sfumato.core import DataInfo, Flow, Velocity
from sfumato.errors import UserError
from sfumato.model import ModelSpec
from sfumato.pipeline import Pipeline, Sampling
from sfumato.spec import Spec
from sfumato.train import Ema, power_gamma
from sfumato.train.posthoc import Profile, Snapshots, choose, combine, fit, products, rebuild
from tests.train.tiny import TinyNet

# ---------------------------------------------------------------- profiles


def quadrature(end: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(places, weights) for integrals over [0, end] by Gauss and Legendre, in the eighth root: powers are smooth in it."""
    nodes, weights = np.polynomial.legendre.leggauss(400)
    u = 0.5 * (nodes + 1)
    return end * u**8, 0.5 * weights * 8 * end * u**7


def integral(first: Profile, second: Profile) -> float:
    """Of the product of two profiles, over the part where both are not 0."""
    tau, weights = quadrature(min(first.t, second.t))
    return float(weights @ (first(tau) * second(tau)))


PROFILES = [
    Profile(std, t) for std, t in ((0.05, 100.0), (0.1, 100.0), (0.2, 37.0), (0.28, 64.0), (0.02, 99.0), (0.05, 12.0))
]


def test_products_are_the_integrals() -> None:
    found = products(PROFILES, PROFILES)
    expected = [[integral(p, q) for q in PROFILES] for p in PROFILES]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_has_the_weight_1_and_its_relative_deviation(profile: Profile) -> None:
    tau, weights = quadrature(profile.t)
    mass = weights * profile(tau)
    mean = mass @ tau
    assert mass.sum() == pytest.approx(1, rel=1e-10)
    assert np.sqrt(mass @ (tau - mean) ** 2) / profile.t == pytest.approx(profile.std, rel=1e-8)
    assert profile(np.array([profile.t * 1.001, -1.0])).tolist() == [0.0, 0.0]


def basis(count: int = 12, end: float = 1200.0, stds: tuple[float, ...] = (0.05, 0.1)) -> list[Profile]:
    return [Profile(std, t) for t in np.linspace(0, end, count + 1)[1:] for std in stds]


@pytest.mark.parametrize(("std", "end"), [(0.03, 1200.0), (0.08, 1200.0), (0.2, 1200.0), (0.08, 700.0)])
def test_the_fit_is_the_best_there_is(std: float, end: float) -> None:
    """Its distance is that of the densities, by integration, and no change that keeps the sum of weights lessens it."""
    rows = [p for p in basis() if p.t <= end]
    target = Profile(std, end)
    found = combine(rows, target)
    tau = (np.arange(400_000) + 0.5) * (end / 400_000)
    densities = np.stack([p(tau) for p in rows])
    gap = np.array(found.weights) @ densities - target(tau)
    size = np.sqrt((target(tau) ** 2).mean())
    assert sum(found.weights) == pytest.approx(1, abs=1e-12)
    assert np.sqrt((gap**2).mean()) / size == pytest.approx(found.error, rel=1e-4)
    slope = densities @ gap / len(tau)  # of half the squared distance, by each weight: alike for all at the best
    scale = np.abs(densities @ np.abs(gap)).max() / len(tau)
    assert np.abs(slope - slope.mean()).max() < 1e-4 * scale


def test_one_that_was_kept_is_given_back_alone() -> None:
    rows = basis()
    for i in (0, 7, len(rows) - 1):
        found = combine(rows, rows[i])
        np.testing.assert_allclose(found.weights, np.eye(len(rows))[i], atol=1e-8)
        assert found.error < 1e-7 and found.gain == pytest.approx(1, abs=1e-7)


def test_the_same_snapshot_twice_does_no_harm() -> None:
    rows = basis()
    once, twice = combine(rows, Profile(0.08, 1200.0)), combine(rows + rows, Profile(0.08, 1200.0))
    assert twice.error == pytest.approx(once.error, rel=1e-6)
    assert twice.gain == pytest.approx(once.gain, rel=1e-3)


def test_more_snapshots_come_nearer() -> None:
    errors = [combine(basis(count), Profile(0.08, 1200.0)).error for count in (4, 8, 16, 32)]
    assert all(after < before / 2 for before, after in pairwise(errors))
    assert errors[-1] < 1e-3


# ---------------------------------------------------------------- weights


class Weights(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(n))
        self.deep = nn.Linear(3, 2)


STEPS = 1200


def paths(n: int) -> NDArray[np.float64]:
    """(STEPS, n): each weight falls to its end like exp(-t), walks at random, and swings; all about 5."""
    rng = np.random.default_rng(0)
    t = np.arange(STEPS)[:, None] / STEPS
    walk = rng.normal(size=(STEPS, n)).cumsum(0) / np.sqrt(STEPS)
    return 5 + rng.normal(size=n) * np.exp(-5 * t) + walk + 0.3 * np.sin(40 * t * rng.uniform(size=n))


def follow(
    folder: Path, stds: tuple[float, ...], every: int, dtype: str = "fp32"
) -> tuple[Snapshots, NDArray[np.float64]]:
    """Snapshots of a model whose weights take these paths, every so many steps."""
    values, model = paths(50), Weights(50)
    ema, kept = Ema(model, stds), Snapshots(folder)
    for step in range(1, STEPS + 1):
        model.w.data.copy_(torch.from_numpy(values[step - 1]))
        ema.update(step)
        if step % every == 0:
            kept.save(step, 16 * step, stds, ema.state(), dtype)
    return kept, values


def directly(values: NDArray[np.float64], std: float, step: int) -> NDArray[np.float64]:
    weights = np.diff((np.arange(step + 1) / step) ** (power_gamma(std) + 1))
    return np.asarray(weights @ values[:step])


@pytest.mark.parametrize("std", [0.03, 0.05, 0.08, 0.15])
@pytest.mark.parametrize("step", [None, 780])
def test_it_is_the_average_computed_directly(tmp_path: Path, std: float, step: int | None) -> None:
    """Within the bound of the module's docstring for every weight, and within 1% of their movement altogether."""
    kept, values = follow(tmp_path, (0.05, 0.1), 60)
    made = rebuild(kept.all(), std, step)
    end = STEPS if step is None else step
    found, expected = made.averages["w"].double().numpy(), directly(values, std, end)
    assert made.step == end and len(made.used) == end // 60
    # The bound, for paths that are constant during a step: || q ||, || theta - c || over [0, end].
    norm = np.sqrt(products([Profile(std, end)], [Profile(std, end)])[0, 0])
    spread = np.sqrt(((values[:end] - values[:end].mean(0)) ** 2).sum(0))
    bound = made.combination.error * norm * spread
    rounding = 2e-7 * 5 * (made.combination.gain + 20)  # of float32, in the averages and in the sum
    assert (np.abs(found - expected) <= bound + rounding).all()
    assert np.linalg.norm(found - expected) < 0.01 * np.linalg.norm(values.std(0))


def test_weights_that_stood_still_are_exact(tmp_path: Path) -> None:
    kept, _ = follow(tmp_path, (0.05, 0.1), 300)
    made = rebuild(kept.all(), 0.17)
    assert made.combination.error > 0.05  # a poor fit, and still
    last = kept.all()[-1]
    torch.testing.assert_close(made.averages["deep.weight"], stored(last.folder)["0.deep.weight"], rtol=1e-5, atol=1e-6)


def stored(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "ema.safetensors")


@pytest.mark.parametrize("stds", [(0.05,), (0.05, 0.1), (0.04, 0.08, 0.16)])
def test_what_was_kept_comes_back_as_it_was(tmp_path: Path, stds: tuple[float, ...]) -> None:
    kept, _ = follow(tmp_path, stds, 200)
    tensors = stored(kept.all()[-1].folder)
    for i, std in enumerate(stds):
        made = rebuild(kept.all(), std)
        torch.testing.assert_close(made.averages["w"], tensors[f"{i}.w"], rtol=1e-6, atol=1e-6)


def test_half_precision_costs_what_the_gain_says(tmp_path: Path) -> None:
    whole, _ = follow(tmp_path / "whole", (0.05, 0.1), 60)
    half, _ = follow(tmp_path / "half", (0.05, 0.1), 60, "fp16")
    a, b = rebuild(whole.all(), 0.03), rebuild(half.all(), 0.03)
    apart = (a.averages["w"] - b.averages["w"]).abs().max()
    assert 0 < apart <= 2**-11 * 8 * a.combination.gain  # half a unit of the last place of numbers in [4, 8)
    sizes = [sum(f.stat().st_size for f in s.folder.glob("*.safetensors")) for s in (whole.all()[0], half.all()[0])]
    assert sizes[1] < 0.8 * sizes[0]


def test_a_tensor_that_half_precision_can_not_hold_is_kept_whole(tmp_path: Path) -> None:
    kept = Snapshots(tmp_path)
    averages = {
        "0.large": torch.tensor([1e5, 1.0]),
        "0.small": torch.full((4,), 1e-9),
        "0.usual": torch.ones(3),
        "0.none": torch.empty(0),
    }
    kept.save(1, 1, (0.05,), averages)
    found = stored(kept.all()[0].folder)
    assert {k: v.dtype for k, v in found.items() if v.numel()} == {
        "0.large": torch.float32, "0.small": torch.float32, "0.usual": torch.float16,
    }  # fmt: skip
    assert torch.equal(found["0.large"], averages["0.large"]) and torch.equal(found["0.small"], averages["0.small"])


# ---------------------------------------------------------------- on disk


def test_snapshots_are_listed_replaced_and_cut_off(tmp_path: Path) -> None:
    kept = Snapshots(tmp_path / "averages")
    assert kept.all() == []
    kept.truncate(0)
    for step in (30, 10, 20, 20):
        kept.save(step, 16 * step, (0.05,), {"0.w": torch.full((2,), float(step))})
    assert [(s.step, s.samples, s.stds) for s in kept.all()] == [
        (10, 160, (0.05,)),
        (20, 320, (0.05,)),
        (30, 480, (0.05,)),
    ]
    kept.truncate(20)
    assert [s.step for s in kept.all()] == [10, 20]
    assert not [p for p in (tmp_path / "averages").iterdir() if not p.name.startswith("step-")]


def test_damaged_ones_are_named_and_left_out(tmp_path: Path) -> None:
    kept, values = follow(tmp_path, (0.05, 0.1), 100)
    file = kept.all()[4].folder / "ema.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-3] ^= 1
    file.write_bytes(raw)
    (kept.all()[7].folder / "averages.json").write_text("{")
    said: list[str] = []
    made = rebuild(kept.all(said.append), 0.08, warn=said.append)
    assert len(made.used) == 10 and len(said) == 2
    assert "step-00000800 are damaged" in said[0] and "step-00000500 are damaged" in said[1]
    expected = directly(values, 0.08, STEPS)
    assert np.linalg.norm(made.averages["w"].numpy() - expected) < 0.02 * np.linalg.norm(values.std(0))


def test_a_newer_format_is_refused_by_name(tmp_path: Path) -> None:
    kept = Snapshots(tmp_path)
    path = kept.save(1, 1, (0.05,), {"0.w": torch.zeros(2)})
    facts = json.loads((path / "averages.json").read_text())
    from sfumato.files import write_manifest

    (path / "averages.json").write_text(json.dumps({**facts, "format": 9}))
    write_manifest(path)
    with pytest.raises(UserError, match=r"format 9 is newer than this sfumato reads \(1\)"):
        kept.all()


def test_steps_that_can_not_be_reached(tmp_path: Path) -> None:
    kept, _ = follow(tmp_path, (0.05,), 400)
    with pytest.raises(UserError, match=r"has kept no averages; train with train\.snapshots=20"):
        choose([])
    for step, nearest in ((399, 400), (900, 800), (1201, 1200)):
        with pytest.raises(
            UserError, match=f"step={step}: no averages were kept .* nearest ones are of step={nearest}"
        ):
            rebuild(kept.all(), 0.1, step)
    used, end = choose(kept.all(), 800)
    assert [s.step for s in used] == [400, 800] and end == 800
    assert fit(used, 0.05, 800).error < 1e-6


# ---------------------------------------------------------------- the verb


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder with a model and four snapshots of it."""
    monkeypatch.chdir(tmp_path)
    spec = ModelSpec(DataInfo((1, 2), "array"), Spec(TinyNet), Spec(Flow), Spec(Velocity), Spec(Arrays))
    model, folder = spec.build(), Path("runs/tiny")
    ema, kept = Ema(model, (0.05, 0.1)), Snapshots(folder / "averages")
    torch.manual_seed(0)
    for step in range(1, 41):
        for p in model.parameters():
            p.data.add_(0.1 * torch.randn_like(p))
        ema.update(step)
        if step % 10 == 0:
            kept.save(step, 16 * step, (0.05, 0.1), ema.state(), "fp32")
    Pipeline(ema.models[0], spec, Sampling(steps=3), trained={"step": 40}).save_pretrained(folder / "model")
    return folder


def do(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.run(["ema", *words])
    done = capsys.readouterr()
    return code, done.out, done.err


def test_a_model_folder_is_written(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = do(capsys, "tiny", "std=0.07")
    assert (code, err) == (0, "")
    assert "next: sfumato sample runs/tiny/averages/std-0.07" in out
    written = modelfolder.load(run / "averages" / "std-0.07")
    expected = rebuild(Snapshots(run / "averages").all(), 0.07).averages
    state = written.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in expected.items()) and expected
    assert written.trained["ema"] == 0.07 and written.trained["step"] == 40 and written.trained["samples"] == 640
    assert Pipeline.from_pretrained(run / "averages" / "std-0.07")(n=2, seed=0).media.shape == (2, 1, 2)


def test_several_at_once_an_earlier_step_and_a_folder(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = do(capsys, "runs/tiny", "std=0.03,0.2", "step=30", "--json")
    said = json.loads(out)
    assert code == 0 and said["snapshots"] == 3
    assert [(m["std"], m["step"], m["folder"]) for m in said["models"]] == [
        (0.03, 30, "runs/tiny/averages/std-0.03"),
        (0.2, 30, "runs/tiny/averages/std-0.2"),
    ]
    code, out, _ = do(capsys, "tiny", "std=0.1", "-o", "mine")
    assert code == 0 and modelfolder.load("mine").trained["ema"] == 0.1
    assert [s.step for s in Snapshots(run / "averages").all()] == [
        10,
        20,
        30,
        40,
    ]  # models beside them are no snapshots


def test_without_a_deviation_it_says_how_near_each_comes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = do(capsys, "tiny")
    assert code == 0 and "averages after step 40, from 4 snapshots of std 0.05, 0.1 from step 10 on" in out
    rows = {line.split()[0]: line.split()[1] for line in out.splitlines()[2:-1]}
    assert rows["0.05"] == rows["0.1"] == "0.00%" and float(rows["0.01"].rstrip("%")) > 10
    said = json.loads(do(capsys, "tiny", "--json")[1])
    assert said["step"] == 40 and said["reachable"][0]["std"] == 0.01


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["tiny", "std=0.5"], "ema = 0.5: the relative deviation must lie in (0, 0.28)"),
        (
            ["tiny", "std=0.1", "step=7"],
            "step=7: no averages were kept after this step; the nearest ones are of step=10",
        ),
        (["tiny", "sdt=0.1"], "`sfumato ema` has no setting 'sdt'; did you mean 'std'?"),
        (["tiny", "std=0.1,0.2", "-o", "x"], "-o x is one model folder; give one std= with it, or leave it out"),
        (["tiny", "-o", "x"], "-o x is one model folder; give one std= with it, or leave it out"),
        (["tiny/model", "std=0.1"], "the run has kept no averages; train with train.snapshots=20 to have some"),
    ],
)
def test_mistakes_are_one_sentence(
    run: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    code, out, err = do(capsys, *words)
    assert (code, out, err) == (2, "", f"error: {sentence}\n")


def test_a_far_profile_is_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "std=0.01 is far from what was asked for; more snapshots" in do(capsys, "tiny", "std=0.01")[1]
    assert "is far" not in do(capsys, "tiny", "std=0.08")[1]
