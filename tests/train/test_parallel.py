"""One training on one process and on two: the same steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.errors import UserError
from sfumato.train import Training
from sfumato.train.parallel import Parallel, Words, begin, together
from sfumato.train.sharing import part_of
from tests.children import Child, hosts, run_all

ROOT = Path(__file__).parents[2]


def _train(folder: Path, processes: int, expect: int = 0, **asked: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    children = [Child(_words(folder, asked), ROOT, env) for env in hosts(processes)]
    codes = run_all(children)
    assert codes == [expect] * processes, "\n".join(child.said for child in children)[-3000:]
    return _found(folder)


def _words(folder: Path, asked: dict[str, Any]) -> list[str]:
    settings = {"samples": 16 * 20, "batch": 16, "log_every": 5, "decay": 0.0, "warmup": 0.0, **asked}
    return ["-m", "tests.train.ranks", str(folder), json.dumps(settings)]


def _found(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / "out.pt", weights_only=True)
    return found


def _apart(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[k] - theirs[k]).norm() / (theirs[k].norm() + 1e-12)) for k in theirs)


def _losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], list[float]]:
    folder = tmp_path_factory.mktemp("alone")
    return _train(folder, 1)["weights"], _losses(folder)


@pytest.mark.parametrize(
    ("processes", "asked"),
    [(1, {"accumulate": 2}), (2, {}), (2, {"parallel": "fsdp"}), (2, {"accumulate": 2, "parallel": "fsdp"})],
)
def test_twenty_steps_are_the_same_on_any_number_of_processes(
    tmp_path: Path, alone: tuple[dict[str, Tensor], list[float]], processes: int, asked: dict[str, Any]
) -> None:
    found = _train(tmp_path, processes, **asked)
    assert _apart(found["weights"], alone[0]) < 1e-5
    assert _losses(tmp_path) == pytest.approx(alone[1], rel=1e-5)


def test_torchrun_starts_it(tmp_path: Path, alone: tuple[dict[str, Tensor], list[float]]) -> None:
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*start, *_words(tmp_path, {})], env=env, cwd=ROOT, capture_output=True, text=True, timeout=150
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert _apart(_found(tmp_path)["weights"], alone[0]) < 1e-5


def test_a_transformer_is_gathered_by_its_blocks_and_the_rest_of_it(tmp_path: Path) -> None:
    task = {"blocks": 3}
    alone = _train(tmp_path / "alone", 1, task=task)
    found = _train(tmp_path / "divided", 2, task=task, parallel="fsdp")
    assert _apart(found["weights"], alone["weights"]) < 1e-5


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_run_that_was_asked_to_stop_goes_on_on_another_number_of_processes(
    tmp_path: Path, alone: tuple[dict[str, Tensor], list[float]], parallel: str
) -> None:
    part = _train(tmp_path, 2, expect=75, stop=100, parallel=parallel)
    assert 100 <= part["samples"] < 320
    found = _train(tmp_path, 1)
    assert found["samples"] == 320 and _apart(found["weights"], alone[0]) < 1e-5


def test_one_process_shares_nothing_and_batches_must_divide() -> None:
    parallel, device = begin("auto", "cpu")
    assert parallel.main and parallel.size == 1 and device.type == "cpu"
    assert parallel.agree(Words(1.5, True)) == (1.5, True, False, 0) and parallel.share("a") == "a"
    with pytest.raises(UserError, match=r"train.parallel=fsdp needs several processes"):
        begin("fsdp", "cpu")
    three = Parallel()
    three.size = 3
    assert part_of(Training(samples=1, batch=12, accumulate=2), three) == 2
    with pytest.raises(UserError, match=r"train.batch = 16: 3 processes .* use a multiple of 6"):
        part_of(Training(samples=1, batch=16, accumulate=2), three)


def test_neighbouring_blocks_are_gathered_together_up_to_a_size() -> None:
    blocks = [torch.nn.Linear(n, 1, bias=False) for n in (3, 3, 3, 7, 2, 2, 9)]
    sizes = [[block.in_features for block in group] for group in together(blocks, 6)]
    assert sizes == [[3, 3], [3], [7], [2, 2], [9]] and together([], 6) == []
