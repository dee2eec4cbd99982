"""The digits are the UCI digits, and their split is fixed."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from sfumato.data import Digits
from sfumato.data.digits import WORDS, captions_of

DIGITS = Digits()


def test_counts_and_first_picture() -> None:
    batch = DIGITS.fetch(range(1797))
    assert DIGITS.info.shape == (1, 8, 8) and batch.media.dtype == torch.uint8
    assert np.bincount(batch.conditions["label"]).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # type: ignore[arg-type]
    assert batch.conditions["label"][:5].tolist() == [0, 1, 2, 3, 4]  # type: ignore[union-attr]
    assert batch.media[0, 0, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]  # 0 0 5 13 9 1 0 0 of 16
    assert batch.media.max() == 255


@pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="scikit-learn is not installed")
def test_every_pixel_is_that_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    theirs = load_digits()
    batch = DIGITS.fetch(range(1797))
    assert np.array_equal(batch.media[:, 0].numpy(), np.rint(theirs.images * 255 / 16))
    assert np.array_equal(batch.conditions["label"], theirs.target)  # type: ignore[arg-type]


def test_split_is_a_fifth_of_every_class_and_pinned() -> None:
    mask = DIGITS.held_out_mask()
    labels = DIGITS.table.labels
    assert labels is not None
    assert np.bincount(labels[mask]).tolist() == [round(n / 5) for n in np.bincount(labels)]
    assert np.flatnonzero(mask)[:5].tolist() == [0, 6, 18, 20, 29]


def test_captions_name_their_digit() -> None:
    assert captions_of(7)[0] == "a handwritten seven"
    assert {"seven", "7", "the digit 7"} <= set(captions_of(7))
    drawn = DIGITS.fetch(np.zeros(4000, np.int64), (np.arange(4000) + 0.5) / 4000).conditions["caption"]
    counts = {c: list(drawn).count(c) for c in captions_of(0)}  # type: ignore[arg-type]
    assert sum(counts.values()) == 4000 and min(counts.values()) > 400  # eight wordings, 500 expected of each
    plain = DIGITS.fetch([5, 9]).conditions
    assert plain["caption"] == [f"a handwritten {WORDS[int(y)]}" for y in plain["label"]]
