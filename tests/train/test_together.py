"""Two processes of which one meets a fault: both do the same about it, and what one process alone would have done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato.train import Run, read_metrics
from tests.children import hosts
from tests.train.together import scenario

ROOT = Path(__file__).parents[2]
Scenarios = list[tuple[str, str, dict[str, Any]]]


def launch(folder: Path, scenarios: Scenarios, size: int = 2, **env: str) -> list[subprocess.Popen[str]]:
    """Processes of one host, with what torchrun would tell them and without the seconds that it takes."""
    common = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": "1", **env}
    command = [sys.executable, "-m", "tests.train.together", str(folder), json.dumps(scenarios)]
    how: dict[str, Any] = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return [subprocess.Popen(command, env={**os.environ, **common, **one}, **how) for one in hosts(size)]


def wait(processes: list[subprocess.Popen[str]], seconds: float = 120) -> list[str]:
    try:
        return [process.communicate(timeout=seconds)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()


def seen(folder: Path, rank: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"seen-{rank}.json").read_text(encoding="utf-8"))
    return found


def apart(ours: Path, theirs: Path) -> float:
    a, b = (torch.load(folder / "weights.pt", weights_only=True) for folder in (ours, theirs))
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).norm() / (b[k].norm() + 1e-12)) for k in b)


ALL: Scenarios = [
    ("replaced", "replaced", {"samples": 16 * 20}),
    ("too many", "too many", {}),
    ("loader", "loader", {}),
    ("hook", "hook", {}),
    ("skip loss", "skip loss", {}),
    ("skip gradient", "skip gradient", {}),
    ("skip gradient", "skip gradient fsdp", {"parallel": "fsdp"}),
    ("rollback", "rollback", {}),
    ("rollback", "rollback fsdp", {"parallel": "fsdp"}),
]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that two processes can go through one after the other, as every fault is agreed on."""
    folder = tmp_path_factory.mktemp("two")
    processes = launch(folder, ALL)
    said = wait(processes)
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)[-4000:]
    return folder


def test_unreadable_items_are_counted_once_by_all_together(two: Path, tmp_path: Path) -> None:
    folder = two / "replaced"
    alone = scenario("replaced", tmp_path, samples=16 * 20)
    assert alone["replaced"]["samples"] > len(alone["replaced"]["items"]) // 2 > 0
    assert seen(folder)["replaced"] == seen(folder, 1)["replaced"] == alone["replaced"]
    logs = (read_metrics(at / "metrics.jsonl") for at in (folder, tmp_path))
    counts = [[line.get("replaced") for line in lines if "loss" in line] for lines in logs]
    assert counts[0] == counts[1] and counts[0][-1] == alone["replaced"]["samples"]
    # Going on as one process: neither forgotten nor counted twice.
    resumed, straight = scenario("replaced", folder), scenario("replaced", tmp_path / "straight")
    assert resumed["replaced"] == straight["replaced"] and resumed["replaced"]["samples"] > counts[0][-1]


def test_too_many_unreadable_items_stop_all_where_one_process_would_stop(two: Path, tmp_path: Path) -> None:
    alone, *both = scenario("too many", tmp_path), *(seen(two / "too many", rank) for rank in (0, 1))
    assert [one["code"] for one in (alone, *both)] == [2, 2, 2] and both[0]["error"] == both[1]["error"]
    words = "of 208 items can't be read, more than 5%"
    assert alone["error"].partition(words)[:2] == both[0]["error"].partition(words)[:2]


def test_an_error_of_one_process_ends_both(two: Path) -> None:
    first, second = (seen(two / "loader", rank) for rank in (0, 1))
    assert second["error"] == "OSError: the disk is gone"
    assert first["error"] == "process 1 of 2 has failed: OSError: the disk is gone"
    assert first["code"] == second["code"] == 1 and first["step"] == second["step"]
    first, second = (seen(two / "hook", rank) for rank in (0, 1))
    assert first["error"] == "OSError: no picture can be drawn" and first["step"] == second["step"] == 8
    assert second["error"] == "process 0 of 2 has failed: OSError: no picture can be drawn"


@pytest.mark.parametrize("case", ["skip loss", "skip gradient", "skip gradient fsdp"])
def test_what_is_not_finite_on_one_process_is_left_out_on_both(two: Path, tmp_path: Path, case: str) -> None:
    scenario(case.removesuffix(" fsdp"), tmp_path)  # as one process, the same steps are left out
    assert [seen(two / case, rank)["skipped"] for rank in (0, 1)] == [3, 3]
    assert apart(two / case, tmp_path) < 1e-5


@pytest.mark.parametrize("case", ["rollback", "rollback fsdp"])
def test_two_processes_go_back_as_one_would(two: Path, tmp_path: Path, case: str) -> None:
    scenario("rollback", tmp_path)
    assert apart(two / case, tmp_path) < 1e-4
    back, alone = ([x for x in read_metrics(at / "metrics.jsonl") if "rollback" in x] for at in (two / case, tmp_path))
    assert back == alone and alone[0]["next_sample"] == 640


@pytest.mark.slow
def test_four_processes_of_two_machines_are_one(tmp_path: Path) -> None:
    """HSDP: slices among neighbours, each pair with the whole. Then on as one process, from what all four wrote."""
    shared: dict[str, Any] = {"parallel": "hsdp", "clip": 0.1}
    processes = launch(tmp_path, [("plain", "four", {**shared, "samples": 16 * 20})], size=4, LOCAL_WORLD_SIZE="2")
    said = wait(processes)
    assert [process.returncode for process in processes] == [0, 0, 0, 0], "\n".join(said)[-3000:]
    scenario("plain", tmp_path / "one", clip=0.1, samples=16 * 20)
    assert apart(tmp_path / "four", tmp_path / "one") < 1e-5
    for where in ("four", "one"):
        scenario("plain", tmp_path / where, clip=0.1)
    assert apart(tmp_path / "four", tmp_path / "one") < 1e-5


def test_an_error_in_the_middle_of_a_step_ends_both(tmp_path: Path) -> None:
    processes = launch(tmp_path, [("exit", "exit", {})])
    said = wait(processes, 60)
    assert [process.returncode for process in processes] == [1, 1]
    assert "ValueError: something that only this process has met" in said[1]
    first = tmp_path / "exit" / "seen-0.json"  # not there if its thread had to end it
    told = said[0] + (first.read_text() if first.exists() else "")
    assert "process 1 of 2 has failed: ValueError: something that only this process has met" in told


def test_a_process_that_ends_first_is_not_aborted(tmp_path: Path) -> None:
    processes = launch(tmp_path, [("leaving", "", {})])
    said = wait(processes, 60)
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)[-3000:]


def test_who_is_asked_to_stop_in_the_middle_of_a_long_hook_saves_soon(tmp_path: Path) -> None:
    """Both are asked, as a scheduler does; the second time is no reason to hurry. What was left off is made up for."""
    processes = launch(tmp_path, [("slow", "slow", {})])
    folder = tmp_path / "slow"
    for _ in range(600):
        time.sleep(0.1)
        if (folder / "slow").exists():
            break
    begun = time.monotonic()
    for _ in range(2):
        for process in processes:
            process.send_signal(signal.SIGUSR1)
    said = wait(processes, 30)
    assert time.monotonic() - begun < 20
    assert [process.returncode for process in processes] == [75, 75], "\n".join(said)[-3000:]
    assert Run(folder).state()["state"] == "interrupted"
    info = Run(folder).checkpoints().newest_info()
    assert info is not None and info["step"] == 40 and info["owed"][1] == "Slow"
    assert [line["slow"] for line in read_metrics(folder / "metrics.jsonl") if "slow" in line] == [10, 20, 30]
