"""What to do about steps that are not finite: leave them out, go back to a checkpoint, stop.

A step whose loss or gradient is not finite changes nothing. One of them, or four in a row, is forgiven. Five in a row mean
that the weights have come to where most batches fail: the run goes back to a checkpoint from before the row began, and on
from there *with the samples that come after the row*. Nothing between is used again:

    shift += samples now - samples of the checkpoint;    sample number of the next step = samples + shift.

Why so many samples are given up, and not the five batches alone: a batch that was left out has changed no weight. Coming
back to the same checkpoint and leaving out the same batches again gives, with exactly the same numbers, the same weights at
the same place, and they fail again. It is the way there that has to be another one, so it is made on other samples. This is
what was done by hand for a large language model, where spikes did not come back although the batches near them did no harm
elsewhere: Chowdhery et al., "PaLM", 2022, section 5.1 (back by about 100 steps, 200 to 500 batches left out).
https://arxiv.org/abs/2204.02311

The rule needs one whole number, `shift`, and looks at nothing else than which steps failed. So it is the same on every
process, and a run that is killed on the way and goes back to the same checkpoint meets the same row and decides the same. No
sample number is used twice; the items that were given up come again in the next epoch.

A second row before `CALM` further steps went well goes one checkpoint further back, for the last one may hold the beginning
of it. After `MOST` such rollbacks the run stops: then it is not bad luck.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, final

from sfumato.train.guard import PATIENCE

Verdict = Literal["continue", "rollback", "stop"]
MOST = 3  # rollbacks without a calm stretch in between, before the run stops
CALM = 1000  # steps beyond the last failure after which earlier rollbacks are forgiven


@final
@dataclass
class Recovery:
    """What was seen, in plain numbers that a checkpoint holds.

    skipped: steps left out since the start of the run, those that were undone since included. streak: of them in a row, up to
    now. broke: the first step of the first row that was too long, 0 for none. rollbacks: without a calm stretch in between.
    failed: the step at which the last one was made. shift: sample numbers that were given up so far. left_out: (first, last)
    sample numbers of steps left out that are not in the log yet.
    """

    skipped: int = 0
    streak: int = 0
    broke: int = 0
    rollbacks: int = 0
    failed: int = 0
    shift: int = 0
    left_out: list[tuple[int, int]] = field(default_factory=list)

    def see(self, step: int, first: int, last: int, bad: bool) -> None:
        """Take in step 1, 2, ... on the sample numbers first ... last. Steps come in their order."""
        if not bad:
            self.streak = 0
            if step >= self.failed + CALM:
                self.rollbacks = 0
            return
        self.skipped += 1
        self.streak += 1
        if self.left_out and self.left_out[-1][1] == first - 1:
            first = self.left_out.pop()[0]
        self.left_out.append((first, last))
        if self.streak == PATIENCE and not self.broke:
            self.broke = step - PATIENCE + 1

    @property
    def verdict(self) -> Verdict:
        """What is to be done now."""
        if not self.broke:
            return "continue"
        return "rollback" if self.rollbacks < MOST else "stop"

    def target(self, steps: Sequence[int]) -> int | None:
        """The step of the checkpoint to go back to, of those that there are; None if none is from before the row."""
        before = sorted(step for step in steps if step < self.broke)
        return before[-min(self.rollbacks + 1, len(before))] if before else None

    def back(self, step: int, samples: int, to: int) -> int:
        """The run goes back from `step`, after `samples`, to a checkpoint after `to` samples.

        Returns the sample number that comes next, `to + shift`.
        """
        self.shift += samples - to
        self.rollbacks += 1
        self.failed = step
        self.streak = self.broke = 0
        return to + self.shift

    def take(self) -> list[list[int]]:
        """[first, last] sample numbers of the steps left out since the last call, neighbours together."""
        found = [list(numbers) for numbers in self.left_out]
        self.left_out.clear()
        return found

    def state(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        return asdict(self)

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Recovery:
        """What `state` gave; what an older checkpoint does not say is as at the start."""
        known = {f.name: state[f.name] for f in fields(cls) if f.name in state}
        known["left_out"] = [(int(first), int(last)) for first, last in known.get("left_out", ())]
        return cls(**known)


def going_back(reason: str, recovery: Recovery, checkpoint: str, following: int) -> str:
    """One sentence after `Recovery.back`. reason: what `guard.diagnose` found. following: the next sample number."""
    return (
        f"warning: {reason}; going back to {checkpoint} and on with sample {following:,}: "
        f"rollback {recovery.rollbacks} of {MOST}"
    )


def giving_up(reason: str, recovery: Recovery, checkpoint: str | None) -> str:
    """One sentence for the error that ends the run. checkpoint: from before the row, None if there is none."""
    many = f" after {recovery.rollbacks} rollbacks" if recovery.rollbacks else ""
    kept = f"; the checkpoint {checkpoint} is from before" if checkpoint else ""
    return f"training stops{many}: {reason}{kept}"
