"""The errors a user can meet, each with the exit code of the command line.

Every message is one sentence that names the thing, its value and the remedy.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SfumatoError(Exception):
    """Something failed that is not the user's mistake (exit code 1)."""

    exit_code = 1


class UserError(SfumatoError, ValueError):
    """The user's mistake: an unknown setting, a missing folder, a picture that can't be read (exit code 2)."""

    exit_code = 2


class NoCheckpointError(SfumatoError):
    """A run has checkpoints and none of them is valid: nothing to resume from (exit code 3)."""

    exit_code = 3


class Interrupted(SfumatoError):  # noqa: N818 - an event, not an error
    """Training was asked to stop and has saved its state (exit code 75: run the same command to go on)."""

    exit_code = 75


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`did you mean 'width'?` for the nearest known name, else the list of all of them."""
    options = sorted(set(known))
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.55)
    if not near:  # a last component that fits exactly: `width` for `network.width`
        near = [option for option in options if option.rpartition(".")[2] == name][:1]
    if near:
        return f"did you mean '{near[0]}'?"
    return f"known: {', '.join(options)}" if options else "none is known"
