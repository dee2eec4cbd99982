"""Python programs as children of a process that has imported torch and nothing else: that takes longer than most of them."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import shlex
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import final


def _program(arguments: list[str], folder: Path, env: Mapping[str, str], log: Path) -> None:
    """What `python ARGUMENTS` does in a folder, with all that it says in a log."""
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(env)
    os.chdir(folder)
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


@final
class Child:
    """`python ARGUMENTS` in a folder, started at once. arguments: a file, or `-m` and a module, and its own words."""

    def __init__(self, arguments: list[str], folder: Path, env: Mapping[str, str] | None = None) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch"])
        handle, log = tempfile.mkstemp(suffix=".log")
        os.close(handle)
        self._log = Path(log)
        self.said = f"{shlex.join(arguments)}\n"
        self._process = context.Process(target=_program, args=(arguments, folder, dict(env or {}), self._log))
        self._process.start()

    def wait(self, seconds: float = 240) -> int:
        """Its exit code; negative if it took longer, and it is no more. What it said is in `said` then."""
        self._process.join(seconds)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self.said += self._log.read_text(encoding="utf-8", errors="replace")
        self._log.unlink()
        assert self._process.exitcode is not None
        return self._process.exitcode


def run_all(children: list[Child], seconds: float = 150) -> list[int]:
    """The exit codes of children that need one another: all are done within so many seconds, or killed."""
    until = time.monotonic() + seconds
    return [child.wait(max(0.1, until - time.monotonic())) for child in children]


def hosts(size: int) -> list[dict[str, str]]:
    """What torchrun would tell each of so many processes of this host; nothing to one alone."""
    if size == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    return [{**common, "RANK": str(rank)} for rank in range(size)]
