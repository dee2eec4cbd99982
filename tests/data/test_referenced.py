"""References beside items: like them, not them, of their own part, and functions of the draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sfumato.data import Clips, Data, Digits, Referenced, Solids, Tones
from sfumato.errors import UserError
from sfumato.spec import Spec, parse

DIGITS = Digits()
DATA = Referenced(data=DIGITS)
LABELS = torch.as_tensor(DIGITS.columns(np.arange(len(DIGITS)))["label"]).numpy()
MASK = DIGITS.held_out_mask()


def test_a_reference_is_another_item_of_the_class_and_part() -> None:
    index = np.arange(len(DIGITS))
    for draws in (None, np.random.default_rng(0).random(len(index))):
        others = DATA.others(index, draws)
        assert (others != index).all()
        assert (LABELS[others] == LABELS[index]).all() and (MASK[others] == MASK[index]).all()


def test_every_other_item_is_drawn_equally_often() -> None:
    like = np.flatnonzero((LABELS[0] == LABELS) & (MASK[0] == MASK))
    n = 200 * (len(like) - 1)
    drawn = DATA.others(np.zeros(n, np.int64), (np.arange(n) * 2654435761 % 2**32) / 2**32)
    found, counts = np.unique(drawn, return_counts=True)
    assert np.array_equal(found, like[like != 0])
    assert np.abs(counts - 200).max() < 5 * np.sqrt(200)


def test_it_is_a_function_of_index_and_draw() -> None:
    draws = np.asarray([0.1, 0.9, 0.4])
    whole = DATA.fetch([3, 9, 4], draws)
    one = DATA.fetch([9], draws[1:2])
    assert torch.equal(
        torch.as_tensor(whole.conditions["reference"])[1], torch.as_tensor(one.conditions["reference"])[0]
    )
    assert torch.equal(
        torch.as_tensor(DATA.columns([3, 9, 4], draws)["reference"]), torch.as_tensor(whole.conditions["reference"])
    )
    assert torch.equal(whole.media, DIGITS.fetch([3, 9, 4], draws).media)
    plain = torch.as_tensor(DATA.fetch([7]).conditions["reference"])
    assert torch.equal(plain, DIGITS.fetch(DATA.others([7])).media)


def test_other_columns_and_captions(tmp_path: Path) -> None:
    speakers = np.asarray(["ann", "bob", "ann", "bob", "cyd", "ann"])
    np.savez(tmp_path / "c.npz", audio=np.arange(6000, dtype=np.int16), offsets=np.arange(0, 7000, 1000), sample_rate=8000,
             speakers=speakers, is_test=np.zeros(6, bool))  # fmt: skip
    data = Referenced(data=Clips(path=str(tmp_path / "c.npz"), judged=("speakers",), held_out=0.0), by="speakers")
    others = data.others(np.arange(6))
    assert (speakers[others] == speakers).all() and others[4] == 4  # cyd is alone
    assert data.judged == ("speakers",) and data.column("speakers").tolist() == speakers.tolist()
    tones = Referenced(data=Tones(count=200), by="caption")
    rows = tones.columns(np.arange(50))
    assert [rows["caption"][i] for i in range(50)] == [
        tones.data.columns([int(j)])["caption"][0] for j in tones.others(np.arange(50))
    ]


def test_settings_and_fingerprint() -> None:
    spec = Spec(Referenced, data=Spec(Digits), by="label")
    assert parse(Data, spec.to_dict()) == spec and len(spec.build()) == len(DIGITS)
    assert len({d.fingerprint() for d in (DIGITS, DATA, Referenced(data=DIGITS, by="caption"))}) == 3


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Referenced(data=Solids(count=20)), "has no labels"),
        (lambda: Referenced(data=DIGITS, by="speakers"), "has no column 'speakers'"),
    ],
)
def test_what_is_refused(make: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()
