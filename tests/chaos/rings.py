"""Rows 4, 7 and 9: torchrun is asked to stop, loses a machine and gets it back, is cut in two."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sfumato.tensorfile import StoredTensors
from sfumato.train.checkpoint import Checkpoints
from tests.chaos.lives import BATCH, digests, free_port, intact, live, settings
from tests.chaos.row import Row

ROOT = Path(__file__).parents[2]
SHARE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"  # else a host that comes back waits for ever (torch 2.13, pytorch#135712)
QUICK = (
    "last_call_timeout=1,keep_alive_interval=1,keep_alive_max_attempt=3,join_timeout=120"  # instead of 30, 5, 3, 600
)


def torchrun(
    folder: Path,
    asked: Mapping[str, Any],
    *options: str,
    log: str = "torchrun.txt",
    before: Sequence[str] = (),
    **env: str,
) -> subprocess.Popen[bytes]:
    """Start torchrun on the child; what it says goes to a file of the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "slow").touch()
    command = [*before, sys.executable, "-m", "torch.distributed.run", *options, "-m", "tests.chaos.child"]
    clean = {
        k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "PYTEST_CURRENT_TEST")
    }
    where = {**clean, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), SHARE: "1", **env}
    with (folder / log).open("ab") as stream:
        return subprocess.Popen(
            [*command, str(folder), json.dumps(asked)],
            cwd=ROOT,
            env=where,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )


def lines(folder: Path) -> list[dict[str, Any]]:
    """What the children wrote, by time."""
    found = []
    for file in folder.glob("steps-*.jsonl"):
        for line in file.read_text().splitlines():
            with suppress(ValueError):  # the last line of a process that was killed
                found.append({**json.loads(line), "file": file.name})
    return sorted(found, key=lambda line: line["time"])


def wait_for(what: Callable[[], Any], seconds: float) -> Any:
    """What it returns once that is true; None if it never was."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.02)
    return None


def steps_after(folder: Path, begun: float, world: int, sample: int = 0) -> list[dict[str, Any]]:
    """Steps that so many processes began after a time, from a sample number on."""
    return [
        line
        for line in lines(folder)
        if line["time"] > begun and line.get("world") == world and line.get("start", -1) >= sample
    ]


def end_of(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """Its exit code, None if it had to be killed."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        kill(process)
        return None


def kill(process: subprocess.Popen[bytes]) -> None:
    """A machine that loses its power: torchrun and all that it started."""
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=False
    )
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGKILL)
    for pid in children.stdout.split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    process.wait()


# ---------------------------------------------------------------- a request to stop


def row4(folder: Path, full: bool) -> Row:
    """SIGTERM under torchrun."""
    row = Row(4, "SIGTERM under torchrun, 2 ranks")
    slowest = 0.0
    kinds = ("ddp", "fsdp") if full else ("ddp",)
    launcher: list[int | None] = []
    for kind in kinds:
        run = folder / kind
        asked = {**settings(120, parallel=kind), "checkpoint_minutes": 1e6, "slow": 0.05}
        process = torchrun(run, asked, "--nproc-per-node", "2", "--standalone")
        row.check(bool(wait_for(lambda run=run: steps_after(run, 0, 2, 20 * BATCH), 60)), f"{kind}: did not begin")
        asked_at = time.time()
        process.send_signal(signal.SIGTERM)
        launcher.append(end_of(process, 40))
        exits = [line for line in lines(run) if "exit" in line]
        took = max((line["time"] - asked_at for line in exits), default=99.0)
        slowest = max(slowest, took)
        row.check(
            [line["exit"] for line in exits] == [75, 75], f"{kind}: processes ended with {[e['exit'] for e in exits]}"
        )
        row.check(took <= 10 or not full, f"{kind}: {took:.1f} s")  # no test asserts a time
        row.check(len(intact(run)) == 1 and 20 <= intact(run)[0] < 120, f"{kind}: saved {intact(run)}")
        same = {**settings(120, parallel=kind), "checkpoint_minutes": 1e6, "processes": 2}
        row.check(
            live(run, same).code == 0 and live(folder / f"{kind} alone", same).code == 0, f"{kind}: did not go on"
        )
        row.check(digests(run) == digests(folder / f"{kind} alone"), f"{kind}: what came of it differs")
    row.facts = {"seconds": round(slowest, 2), "processes": 75, "torchrun": launcher, "kinds": kinds}
    row.figure = f"all processes saved and ended with 75 within {slowest:.1f} s, resume exact ({', '.join(kinds)})"
    return row


# ---------------------------------------------------------------- machines that come and go


def row7(folder: Path, full: bool) -> Row:
    """2 ranks, 1, and 2 again."""
    row = Row(7, "elastic 2 -> 1 -> 2 ranks")
    steps = 500
    asked = {**settings(steps, dropout=0.0), "checkpoint_minutes": 0.01, "slow": 0.1}
    run, alone, port = folder / "run", folder / "alone", free_port()
    ring = [
        "--nnodes",
        "1:2",
        "--nproc-per-node",
        "1",
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        f"127.0.0.1:{port}",
    ]
    ring += ["--rdzv-id", "chaos", "--max-restarts", "5", "--rdzv-conf"]
    guest = [
        *ring,
        f"{QUICK},is_host=False",
    ]  # else whoever comes first keeps the rendezvous, and it is lost with that one
    first = torchrun(run, asked, *ring, f"{QUICK},is_host=True", log="a.txt")
    second = torchrun(run, asked, *guest, log="b.txt")
    backs: list[float] = []
    try:
        row.check(bool(wait_for(lambda: steps_after(run, 0, 2, 10 * BATCH), 90)), "two did not begin")
        for world, act in ((1, lambda: kill(second)), (2, lambda: torchrun(run, asked, *guest, log="c.txt"))):
            begun = time.time()
            third = act()
            found = wait_for(lambda begun=begun, world=world: steps_after(run, begun + 0.05, world), 60)
            if not row.check(bool(found), f"{world} did not go on"):
                return row
            backs.append(found[0]["time"] - begun)
            wait_for(lambda begun=begun, world=world: len(steps_after(run, begun, world)) > 10 * world, 30)
        (run / "slow").unlink()
        codes = [end_of(first, 120), end_of(third, 30) if third is not None else None]
        row.check(codes[0] == 0, f"torchrun ended with {codes}")
    finally:
        for process in (first, second):
            if process.poll() is None:
                kill(process)
    row.check(
        live(alone, {**settings(steps, dropout=0.0), "checkpoint_minutes": 1e6}).code == 0, "the undisturbed run failed"
    )
    _compare(row, run, alone, steps)
    row.check(max(backs) <= 15 or not full, f"back in {max(backs):.1f} s")
    row.facts |= {"back_in_seconds": [round(back, 1) for back in backs]}
    row.figure = (
        f"same sample ids, loss within {row.facts['loss_apart']:.1e}, weights within {row.facts['weights_apart']:.1e}, "
        f"back in {backs[0]:.1f} s and {backs[1]:.1f} s"
    )
    return row


def _compare(row: Row, run: Path, alone: Path, steps: int) -> None:
    """Sample ids, losses and weights of a disturbed run and one that was not."""
    seen: dict[int, set[str]] = {}
    for line in lines(run):
        for i, sha in enumerate(line.get("sha", ())):
            seen.setdefault(line["start"] + i, set()).add(sha)
    row.check(seen.keys() == set(range(BATCH * steps)), "samples are missing")
    row.check(all(len(shas) == 1 for shas in seen.values()), "a sample number stood for two samples")
    ours, theirs = _losses(run), _losses(alone)
    row.check(ours.keys() == theirs.keys(), "lines of the log are missing")
    apart = max(abs(ours[k] - theirs[k]) / abs(theirs[k]) for k in theirs) if ours.keys() == theirs.keys() else 9.0
    row.check(apart <= 1e-5, f"the loss differs by {apart:.1e}")
    one, two = (StoredTensors(Checkpoints(where / "checkpoints").all()[-1], "weights") for where in (run, alone))
    weights = max(float((one[k] - two[k]).norm() / (two[k].norm() + 1e-12)) for k in two)
    row.facts |= {"loss_apart": apart, "weights_apart": weights, "samples": len(seen)}


def _losses(folder: Path) -> dict[int, float]:
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {entry["step"]: entry["loss"] for entry in entries if "loss" in entry}


# ---------------------------------------------------------------- a network that is cut


@contextmanager
def two_hosts() -> Iterator[str | None]:
    """Two network namespaces, sfa (10.77.0.1) and sfb (10.77.0.2), and a cable; None where they can't be had."""
    ip = shutil.which("ip")
    if ip is None or os.geteuid() != 0:
        yield None
        return
    words = (
        "netns add sfa", "netns add sfb", "link add sfa0 netns sfa type veth peer name sfb0 netns sfb",
        "-n sfa addr add 10.77.0.1/24 dev sfa0", "-n sfb addr add 10.77.0.2/24 dev sfb0",
        *(f"-n sf{x} link set {device} up" for x in "ab" for device in (f"sf{x}0", "lo")),
    )  # fmt: skip
    try:
        good = all(
            subprocess.run([ip, *line.split()], check=False, capture_output=True).returncode == 0 for line in words
        )
        yield ip if good else None
    finally:
        for name in ("sfa", "sfb"):
            subprocess.run([ip, "netns", "del", name], check=False, capture_output=True)


def row9(folder: Path, full: bool) -> Row:
    """Two hosts, one cut off and back."""
    row = Row(9, "two network namespaces, one cut off and back")
    with two_hosts() as ip:
        if ip is None:
            return row.skip("needs root, `ip netns` and veth")
        return _cut(row, folder, ip)


def _cut(row: Row, folder: Path, ip: str) -> Row:
    steps, run, alone = 500, folder / "run", folder / "alone"
    asked = {**settings(steps, dropout=0.0), "checkpoint_minutes": 0.01, "slow": 0.1, "watchdog": 5.0}

    def host(name: str, number: int, log: str) -> subprocess.Popen[bytes]:
        ring = [
            "--nnodes",
            "1:2",
            "--nproc-per-node",
            "1",
            "--rdzv-backend",
            "c10d",
            "--rdzv-endpoint",
            "10.77.0.1:29411",
        ]
        conf = f"{QUICK},is_host={number == 1}"  # torchrun knows a host by its name, and here both have the same
        ring += ["--rdzv-id", "chaos", "--rdzv-conf", conf, "--max-restarts", "9", "--local-addr", f"10.77.0.{number}"]
        inside = [ip, "netns", "exec", name]
        return torchrun(
            run, asked, *ring, log=log, before=inside, GLOO_SOCKET_IFNAME=f"{name}0", TP_SOCKET_IFNAME=f"{name}0"
        )

    first, second = host("sfa", 1, "a.txt"), host("sfb", 2, "b.txt")
    try:
        if not row.check(bool(wait_for(lambda: steps_after(run, 0, 2, 10 * BATCH), 90)), "two did not begin"):
            return row
        cut_at = time.time()
        subprocess.run([ip, "-n", "sfb", "link", "set", "sfb0", "down"], check=True)
        newest = intact(run)[-1]
        found = wait_for(lambda: steps_after(run, cut_at + 0.5, 1), 150)
        if not row.check(bool(found), "one did not go on"):
            row.facts["said"] = {log: (run / log).read_text(errors="replace")[-2000:] for log in ("a.txt", "b.txt")}
            return row
        alone_after = found[0]["time"] - cut_at
        row.check(found[0]["start"] >= BATCH * newest, "it went back further than the last checkpoint")
        time.sleep(3)
        subprocess.run([ip, "-n", "sfb", "link", "set", "sfb0", "up"], check=True)
        back_at = time.time()
        end_of(second, 30)  # it gave up, or does not know yet: what supervises a host starts it again
        second = host("sfb", 2, "c.txt")
        found = wait_for(lambda: steps_after(run, back_at, 2), 90)
        both_after = found[0]["time"] - back_at if found else None
        row.check(bool(found), "two did not go on")
        (run / "slow").unlink()
        row.check(end_of(first, 180) == 0, "the host that was never cut off failed")
    finally:
        for process in (first, second):
            if process.poll() is None:
                kill(process)
    row.check(
        live(alone, {**settings(steps, dropout=0.0), "checkpoint_minutes": 1e6}).code == 0, "the undisturbed run failed"
    )
    _compare(row, run, alone, steps)
    row.facts |= {"seconds_until_one_went_on": round(alone_after, 1), "seconds_until_two_went_on": both_after}
    row.figure = (
        f"went on from the last checkpoint {alone_after:.1f} s after the cut, on two again "
        f"{both_after or -1:.1f} s after the cable was back, same sample ids, loss within {row.facts['loss_apart']:.1e}"
    )
    return row


__all__ = ["Mapping", "row4", "row7", "row9"]
