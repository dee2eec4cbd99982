"""The watchdog: a hang is written down and then ended; steps, pauses and debuggers are no hang. Seconds are scaled down."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sfumato.train import watchdog
from sfumato.train.watchdog import LEAST, Watchdog, stacks

LIMIT = 0.3


class Ward:
    """A watchdog whose end of the process is a flag."""

    def __init__(self, folder: Path, seconds: float | None = LIMIT, rank: int | None = None) -> None:
        self.said: list[str] = []
        self.aborted = threading.Event()
        self.dog = Watchdog(folder, seconds, rank=rank, say=self.said.append, abort=self.aborted.set)


def until(true: Callable[[], object], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(true())


def reports(folder: Path) -> list[Path]:
    return sorted(folder.glob("hang-*.txt"))


def stuck_for(event: threading.Event) -> None:
    event.wait(20)


def test_a_hang_is_written_down_and_then_ended(tmp_path: Path) -> None:
    ward = Ward(tmp_path)
    with ward.dog as dog:
        dog.beat({"step": 12, "samples": 768})
        stuck_for(ward.aborted)
    assert ward.aborted.is_set()
    (file,) = reports(tmp_path)
    text = file.read_text()
    assert "step: 12\nsamples: 768" in text and "steps made by this process: 1" in text
    main = text.index("thread MainThread")
    assert "stuck_for" in text[main:] and "event.wait(20)" in text[main:]
    assert "thread watchdog" in text[main + 1 :]
    (sentence,) = ward.said
    assert (
        sentence.startswith("warning: no step came for 0 s; the stacks of all threads are in ")
        and str(file) in sentence
    )


def test_steps_and_their_end_keep_it_quiet(tmp_path: Path) -> None:
    ward = Ward(tmp_path)
    with ward.dog as dog:
        for _ in range(25):
            time.sleep(LIMIT / 10)
            dog.beat()
    time.sleep(3 * LIMIT)
    assert not ward.said and not ward.aborted.is_set() and not reports(tmp_path)


def test_a_pause_is_no_hang_and_ends(tmp_path: Path) -> None:
    ward = Ward(tmp_path)
    with ward.dog as dog:
        with dog.paused("saving"):
            with dog.paused("pictures"):
                time.sleep(3 * LIMIT)
            time.sleep(3 * LIMIT)
        assert not ward.said
        assert dog.limit == LIMIT
        assert until(lambda: ward.said)


def test_a_pause_may_have_an_end(tmp_path: Path) -> None:
    ward = Ward(tmp_path)
    with ward.dog as dog, dog.paused("saving", longest=2 * LIMIT):
        assert until(ward.aborted.is_set)
    assert " in 'saving'; 0.6 s are taken for a hang" in reports(tmp_path)[0].read_text()


def test_a_step_after_the_report_takes_it_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "_LONGEST_NAP", LIMIT / 10)
    ward = Ward(tmp_path, seconds=1.0)
    with ward.dog as dog:
        dog.beat()
        assert until(lambda: ward.said)
        dog.beat()
        assert until(lambda: len(ward.said) == 2)
        for _ in range(15):
            time.sleep(0.1)
            dog.beat()
    assert ward.said[1] == "the run goes on after all" and not ward.aborted.is_set()


def test_the_limit_follows_the_slowest_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock = [0.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: clock[0])
    dog = Watchdog(tmp_path)

    def beat(after: float) -> None:
        clock[0] += after
        dog.beat()

    assert dog.limit == LEAST == 600
    beat(500.0)  # the first one holds compiling: it is not the time of a step
    beat(10.0)
    assert dog.limit == 600
    beat(90.0)
    beat(40.0)
    assert dog.limit == 20 * 90
    with dog.paused("pictures"):
        clock[0] += 5000.0
        assert dog.limit == float("inf")
    beat(1.0)
    assert dog.limit == 20 * 90
    assert Watchdog(tmp_path, 0).limit == float("inf") and Watchdog(tmp_path, 30.0).limit == 30


def test_none_is_none(tmp_path: Path) -> None:
    before = threading.active_count()
    with Watchdog(tmp_path, 0):
        assert threading.active_count() == before


def test_each_rank_has_its_file_and_a_folder_that_is_gone_is_not_the_end(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ward = Ward(tmp_path, rank=3)
    with ward.dog:
        assert until(ward.aborted.is_set)
    assert reports(tmp_path)[0].name.endswith("-rank3.txt")
    ward = Ward(tmp_path / "gone")
    with ward.dog:
        assert until(ward.aborted.is_set)
    assert "thread MainThread" in capfd.readouterr().err
    assert "standard error, as " in ward.said[0]


def test_what_stands_in_a_debugger_is_not_ended(tmp_path: Path) -> None:
    ward = Ward(tmp_path, seconds=0.1)
    wait = {}
    exec(compile("def interact(event):\n    event.wait(1.0)\n", "/somewhere/pdb.py", "exec"), wait)
    with ward.dog:
        wait["interact"](ward.aborted)
    assert not ward.aborted.is_set() and not ward.said


def test_stacks_name_threads_and_begin_with_the_main_one() -> None:
    go = threading.Event()
    thread = threading.Thread(target=stuck_for, args=(go,), name="a loader")
    thread.start()
    text = stacks()
    go.set()
    thread.join()
    assert text.startswith("thread MainThread") and "thread a loader" in text


SCRIPT = """
import sys, threading
from pathlib import Path
from sfumato.train.watchdog import Watchdog

def waits_for_what_never_comes():
    with lock:
        pass

def never_returns(text):
    with lock:
        pass

lock = threading.Lock()
lock.acquire()
with Watchdog(Path(sys.argv[1]), 0.3, say=never_returns) as dog:
    dog.beat({"step": 7})
    waits_for_what_never_comes()
"""


def test_the_process_really_ends_with_1_whatever_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The main thread and the terminal wait for the same lock, for ever."""
    text = "import sfumato.train.watchdog as w; w._LONGEST_NAP = 0.5\n" + textwrap.dedent(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-c", text, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "no step came after that either; this process ends with exit code 1\n"
    assert "waits_for_what_never_comes" in reports(tmp_path)[0].read_text()
