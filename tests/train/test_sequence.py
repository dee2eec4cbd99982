"""Tokens of a sample shared by two and by four processes: outputs, gradients and trainings are those of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato.core import CondShape
from sfumato.errors import UserError
from sfumato.nn import DiT, MMDiT, UNet
from sfumato.nn.split import check_shared
from sfumato.train import Align, Alignment, DiffusionTask, Training, read_metrics
from sfumato.train.parallel import Parallel, begin
from sfumato.train.sharing import part_of, shared
from tests.children import Child, hosts, run_all
from tests.train.sequence import BATCH, CASES, make_task, train

ROOT = Path(__file__).parents[2]
TRAININGS: dict[int, dict[str, dict[str, Any]]] = {
    2: {
        "dit": {"sequence": 2},
        "mmdit": {"kind": "mmdit", "sequence": 2, "recompute": 1.0},
        "fsdp": {"sequence": 2, "parallel": "fsdp", "recompute": 0.5},
        "half of it": {"sequence": 2, "samples": 5 * BATCH},
    },
    4: {
        "groups": {"sequence": 2, "every": 9, "accumulate": 2},
        "fsdp groups": {"sequence": 2, "parallel": "fsdp"},
        "hsdp groups": {"sequence": 4, "parallel": "hsdp"},
    },
}


def launch(folder: Path, size: int) -> list[dict[str, Any]]:
    """What each of so many processes has seen."""
    words = ["-m", "tests.train.sequence", str(folder), json.dumps(TRAININGS[size])]
    children = [Child(words, ROOT, {**env, "LOCAL_WORLD_SIZE": "2"}) for env in hosts(size)]
    assert run_all(children) == [0] * size, "\n".join(child.said for child in children)[-4000:]
    return [json.loads((folder / f"seen-{rank}.json").read_text(encoding="utf-8")) for rank in range(size)]


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def several(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path, Any]:
    folder = tmp_path_factory.mktemp(f"sequence{request.param}")
    return request.param, folder, launch(folder, request.param)


def apart(ours: Path, theirs: Path) -> float:
    a, b = (torch.load(folder / "weights.pt", weights_only=True) for folder in (ours, theirs))
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).norm() / (b[k].norm() + 1e-12)) for k in b)


def test_outputs_and_gradients_are_those_of_one_process(several: tuple[int, Path, Any]) -> None:
    for seen in several[2]:
        assert len(seen["far"]) == len(CASES) + 3
        assert all(value < 1e-12 for values in seen["far"].values() for value in values.values()), seen["far"]
        assert seen["half"] < 0.02


def test_a_process_keeps_its_share_of_the_activations(several: tuple[int, Path, Any]) -> None:
    size, _, seen = several
    assert all(1 / size < each["shares"] < 1.15 / size for each in seen)


def test_ten_steps_are_those_of_one_process(several: tuple[int, Path, Any], tmp_path: Path) -> None:
    size, folder, seen = several
    for name, settings in TRAININGS[size].items():
        alone = {k: v for k, v in settings.items() if k in ("kind", "every", "samples")}
        found = train(tmp_path / name, **alone)
        assert apart(folder / name, tmp_path / name) < 1e-5, name
        lines = [read_metrics(at / name / "metrics.jsonl") for at in (folder, tmp_path)]
        for key in ("loss", "look0", *(() if "parallel" in settings else ("look1",))):
            ours, theirs = ([line[key] for line in each if key in line] for each in lines)
            assert ours and ours == pytest.approx(theirs, rel=1e-4), (name, key)
        parts = settings.get("accumulate", 1) * size // settings["sequence"]
        for each in seen:
            assert each[name]["replaced"] == found["replaced"]
            assert each[name]["micro"] == BATCH // parts
    if size == 4:
        assert found["replaced"]["samples"] == 0 < seen[0]["groups"]["replaced"]["samples"]
    else:  # on as one process
        train(folder / "half of it")
        assert apart(folder / "half of it", folder / "dit") < 1e-5


def test_what_can_not_be_shared_is_refused() -> None:
    odd = DiT((1, 8), CondShape(), width=36, heads=6, depth=1)
    check_shared(odd, 3)
    with pytest.raises(
        UserError, match=r"train.sequence = 4: does not divide the network's 6 heads; use one of 1, 2, 3"
    ):
        check_shared(odd, 4)
    with pytest.raises(UserError, match=r"train.sequence = 2: unet has no tokens to share; use network=dit or mmdit"):
        check_shared(UNet((1, 8, 8), CondShape(), width=8), 2)
    with pytest.raises(UserError, match=r"train.sequence = 2: this model has no tokens to share"):
        check_shared(None, 2)
    with pytest.raises(UserError, match=r"train.sequence = 2: dropout would fall alike .* network.dropout=0"):
        check_shared(MMDiT((1, 8), CondShape(), width=32, heads=2, depth=1, dropout=0.1), 2)
    with pytest.raises(UserError, match=r"train.sequence = 0: must be at least 1"):
        Training(samples=1, sequence=0)
    with pytest.raises(UserError, match=r"train.memory = 4GiB: not with train.sequence; set train.recompute"):
        Training(samples=1, sequence=2, memory="4GiB")


def test_processes_and_batches_must_divide(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"train.sequence = 2: does not divide the number of processes, 1"):
        begin("auto", "cpu", 2)
    monkeypatch.setenv("WORLD_SIZE", "6")
    with pytest.raises(UserError, match=r"train.sequence = 4: does not divide the number of processes, 6"):
        begin("fsdp", "cpu", 4)
    six = Parallel()
    six.rank, six.size, six.sequence = 5, 6, 2
    assert (six.data_rank, six.data_size) == (2, 3)
    assert part_of(Training(samples=1, batch=12, accumulate=2), six) == 2
    with pytest.raises(UserError, match=r"3 groups of 2 processes of accumulate = 2 can't share it .* multiple of 6"):
        part_of(Training(samples=1, batch=16, accumulate=2), six)


def test_alignment_sees_whole_blocks_or_nothing() -> None:
    task = make_task("dit")
    aligned = DiffusionTask(task.model, task.objective, align=Alignment(Align(), task.model))
    two = Parallel()
    two.size = two.sequence = 2
    with pytest.raises(UserError, match=r"train.sequence = 2: align= looks at all tokens"):
        shared(aligned, Training(samples=1), two, torch.float32)
