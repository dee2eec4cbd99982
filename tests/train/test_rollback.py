"""The rule for steps that are not finite: what is forgiven, where the run goes back to, what comes next, when it ends."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.train.log import Meter
from sfumato.train.rollback import CALM, MOST, Recovery, giving_up, going_back

BATCH = 16


def seen(pattern: str, recovery: Recovery | None = None, step: int = 0, shift: int = 0) -> Recovery:
    """The state after steps that were good (.) or left out (x)."""
    recovery = Recovery() if recovery is None else recovery
    for number, sign in enumerate(pattern, step + 1):
        first = (number - 1) * BATCH + shift
        recovery.see(number, first, first + BATCH - 1, sign == "x")
    return recovery


@pytest.mark.parametrize(
    ("pattern", "verdict", "broke", "skipped"),
    [
        ("..........", "continue", 0, 0),
        ("..xxxx.xxxx.x", "continue", 0, 9),
        ("...xxxxx", "rollback", 4, 5),
        ("...xxxxx.....", "rollback", 4, 5),  # it is looked at now and then only: what came after does not undo it
        ("...xxxxx...xxxxxxxx", "rollback", 4, 13),
        ("xxxxxxxxx", "rollback", 1, 9),
    ],
)
def test_five_in_a_row_are_too_many(pattern: str, verdict: str, broke: int, skipped: int) -> None:
    found = seen(pattern)
    assert (found.verdict, found.broke, found.skipped) == (verdict, broke, skipped)


def test_numbers_of_left_out_samples_are_given_once_and_together() -> None:
    recovery = seen(".xx.x")
    assert recovery.take() == [[16, 47], [64, 79]]
    assert recovery.take() == []


def test_the_next_samples_are_those_after_the_row() -> None:
    recovery = seen("." * 20 + "xxxxx...")  # 28 steps
    assert recovery.target([5, 10, 15]) == 15
    assert recovery.back(28, 28 * BATCH, 15 * BATCH) == 28 * BATCH
    assert recovery.verdict == "continue" and recovery.rollbacks == 1
    # Step 16 comes again, on numbers that no step has had.
    assert 15 * BATCH + recovery.shift == 28 * BATCH


@pytest.mark.parametrize(
    ("there", "before", "target"),
    [
        ([10, 20], 0, 20),
        ([10, 20], 1, 10),
        ([10, 20], 2, 10),
        ([20, 22, 25], 0, 20),
        ([21, 30], 0, None),
        ([], 0, None),
    ],
)
def test_a_checkpoint_from_before_the_row_each_time_one_further_back(
    there: list[int], before: int, target: int | None
) -> None:
    recovery = Recovery(rollbacks=before)
    seen("." * 20 + "xxxxx", recovery)  # the row begins with step 21
    assert recovery.target(there) == target


def test_it_ends_after_three_and_a_calm_stretch_forgives() -> None:
    recovery, shift, step = Recovery(), 0, 100
    for number in range(MOST):
        seen("xxxxx", recovery, step, shift)
        assert recovery.verdict == "rollback", number
        shift = recovery.back(step + 5, (step + 5) * BATCH, step * BATCH) - step * BATCH
    calm = Recovery.of(recovery.state())
    seen("xxxxx", recovery, step, shift)
    assert recovery.verdict == "stop"

    seen("." * (CALM + 4), calm, step, shift)  # to one step before the stretch is long enough
    assert calm.rollbacks == MOST
    seen(".", calm, step + CALM + 4, shift)
    assert calm.rollbacks == 0
    seen("xxxxx", calm, step + CALM + 5, shift)
    assert calm.verdict == "rollback"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(0, 39))
def test_a_checkpoint_holds_all_of_it(bad: list[bool], cut: int) -> None:
    pattern = "".join(".x"[value] for value in bad)
    straight = seen(pattern)
    part = seen(pattern[:cut])
    resumed = Recovery.of(json.loads(json.dumps(part.state())))
    assert seen(pattern[cut:], resumed, len(pattern[:cut])) == straight


def test_an_older_checkpoint_is_read() -> None:
    found = Recovery.of({"skipped": 3, "streak": 2, "sums": [1, 2, 3]})
    assert (found.skipped, found.streak, found.shift) == (3, 2, 0)


# ---------------------------------------------------------------- why so many samples are given up


def train(rule: str, n: int = 600) -> tuple[int, list[int], list[float]]:
    """(rollbacks, sample numbers that were learnt from, weight at each failure) of a weight with one sample a step.

    Samples 180 ... 199 push it up, others draw it back; above 1 every step fails. Checkpoints every 25 good steps.
    """
    recovery, left, places = Recovery(), set(), []
    w, samples, used, saved = 0.0, 0, [], {0: (0.0, [])}
    while samples < n and len(places) < 5:
        number = samples + (recovery.shift if rule == "window" else 0)
        samples += 1
        if number not in left:
            recovery.see(samples, number, number, w > 1)
            if w <= 1:
                w += 0.08 if 180 <= number < 200 else -0.1 * w
                used.append(number)
        if recovery.verdict != "continue":
            places.append(w)
            left |= {k for first, last in recovery.take() for k in range(first, last + 1)}
            back = recovery.target(list(saved)) or 0
            recovery.back(samples, samples, back)
            (w, used), samples = (saved[back][0], list(saved[back][1])), back
        elif samples % 25 == 0 and not recovery.streak:
            saved[samples] = (w, list(used))
    return len(places), used, places


def test_leaving_out_the_failed_batches_alone_comes_to_the_same_place() -> None:
    rollbacks, _, places = train("batches")
    assert rollbacks == 5 and len(set(places)) == 1  # equal to the last bit, and it would go on like that


def test_going_on_behind_the_row_gets_past_it_and_uses_no_number_twice() -> None:
    rollbacks, used, _ = train("window")
    assert rollbacks == 1
    assert len(set(used)) == len(used) == 600
    assert used == [*range(175), *range(198, 623)]  # the checkpoint at 175, and the row was noticed after sample 197


# ---------------------------------------------------------------- in the meter, and in words


def test_the_meter_tells_it_every_step_in_order() -> None:
    meter = Meter(None)
    for step in range(1, 9):
        bad = torch.tensor(float(step in (2, 4, 5, 6, 7, 8)))
        first = (step - 1) * BATCH
        meter.add(torch.tensor(1.0), torch.tensor(2.0), bad, [], step, (first, first + BATCH - 1))
    state = json.loads(json.dumps(meter.state()))
    assert meter.recovery.verdict == "rollback" and meter.recovery.broke == 4 and meter.skipped == 6
    assert meter.recovery.take() == [[16, 31], [48, 127]]

    other = Meter(None)
    other.load(state)
    assert other.recovery.verdict == "rollback" and other.take() == {"loss": 1.0, "grad_norm": 2.0}


def test_a_rollback_gives_the_means_back_and_keeps_what_led_to_it() -> None:
    meter = Meter(None)
    meter.add(torch.tensor(1.0), torch.tensor(2.0), torch.tensor(0.0), [], 1, (0, 15))
    state = meter.state()
    for step in range(2, 8):
        meter.add(torch.tensor(9.0), torch.tensor(9.0), torch.tensor(1.0), [], step, (16 * step - 16, 16 * step - 1))
    meter.read()
    meter.recovery.back(7, 7 * BATCH, BATCH)
    meter.add(torch.tensor(5.0), torch.tensor(5.0), torch.tensor(0.0), [], 8, (0, 0))  # never counted
    meter.back(state)
    assert meter.take() == {"loss": 1.0, "grad_norm": 2.0}
    assert meter.recovery.shift == 6 * BATCH and meter.recovery.rollbacks == 1


def test_words() -> None:
    recovery = Recovery(rollbacks=2)
    assert going_back("it broke", recovery, "step-00000100", 4800) == (
        "warning: it broke; going back to step-00000100 and on with sample 4,800: rollback 2 of 3"
    )
    assert giving_up("it broke", Recovery(), None) == "training stops: it broke"
    assert giving_up("it broke", Recovery(rollbacks=3), "step-00000100") == (
        "training stops after 3 rollbacks: it broke; the checkpoint step-00000100 is from before"
    )
