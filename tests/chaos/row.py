"""A row of the table of faults: what was done, whether it held, and its figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Row:
    """verdict: pass, fail, or skipped with a reason. figure: in words. facts: in numbers."""

    number: int
    title: str
    verdict: str = "pass"
    figure: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def check(self, good: bool, problem: str) -> bool:
        """Note what did not hold."""
        if not good:
            self.verdict = "fail"
            self.problems.append(problem)
        return good

    def skip(self, reason: str) -> Row:
        """The machine does not allow it."""
        self.verdict, self.figure = "skipped", reason
        return self

    def __str__(self) -> str:
        more = f" ({'; '.join(self.problems[:3])})" if self.problems else ""
        return f"row {self.number}: {self.verdict}, {self.figure}{more}"

    def to_dict(self) -> Mapping[str, Any]:
        """For chaos.json."""
        return {
            "row": self.number, "title": self.title, "verdict": self.verdict, "figure": self.figure,
            "facts": self.facts, "problems": self.problems,
        }  # fmt: skip
