from __future__ import annotations
from sfumato.train.run import Run


class Section: ...


def render_report(run: Run) -> str:
    return ""


def write_report(run: Run) -> None: ...
