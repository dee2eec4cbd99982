"""Solids: every model shows its caption, no other; what is held out is never trained on; what can't be read is none."""

from __future__ import annotations

import numpy as np
import pytest

from sfumato.data import Solids, read_solids, shows
from sfumato.data.shapes_words import Thing
from sfumato.data.solids_words import COLOURS, SHAPES, SIZES, Stack, understand
from sfumato.errors import UserError

SET = Solids(count=1200)
BATCH = SET.fetch(np.arange(200))
CAPTIONS = [str(text) for text in BATCH.conditions["caption"]]


def test_every_model_shows_its_caption_and_nobody_elses() -> None:
    models = BATCH.media.numpy()
    assert shows(models, CAPTIONS).all()
    others = [next(c for c in CAPTIONS if c != own) for own in CAPTIONS]
    assert not shows(models, others).any()


def test_models_are_functions_of_seed_and_index() -> None:
    again = Solids(count=1200).fetch([7, 3], np.asarray([0.3, 0.9])).media
    assert (again == BATCH.media[[7, 3]]).all()
    assert (Solids(count=1200, seed=1).fetch([7]).media != again[:1]).any()
    assert Solids(count=1200, seed=1).fingerprint() != SET.fingerprint()


def test_the_split_is_by_combination() -> None:
    mask = SET.held_out_mask()
    described = [SET.describe(i) for i in range(len(SET))]
    held, trained = ({d for d, m in zip(described, mask) if m == part} for part in (True, False))
    assert held
    assert not held & trained
    assert 0.05 < mask.mean() < 0.15


def test_all_wordings_are_understood() -> None:
    for index in range(40):
        stack = SET.describe(index)
        for text in stack.captions():
            assert understand(text) == stack, text
    with pytest.raises(UserError, match="describes no solids"):
        understand("a purple cow")


def test_pairs_stand_on_one_another_in_two_colours() -> None:
    pairs = Solids(count=300, pairs=1.0)
    for index in range(300):
        above, below = pairs.describe(index).things
        assert above.colour != below.colour
        model = pairs.fetch([index]).media[0].numpy()
        levels = (model[3] > 0).any((0, 1))
        assert levels[: levels.sum()].all()  # no gap along z, from the ground up
    assert all(len(Solids(count=50, pairs=0).describe(i).things) == 1 for i in range(50))


def test_one_solid_of_every_kind_is_read() -> None:
    found = {SET.describe(i).things[0] for i in range(len(SET)) if len(SET.describe(i).things) == 1}
    assert {(t.size, t.shape) for t in found} == {(s, k) for s in SIZES for k in SHAPES}
    assert {t.colour for t in found} == set(COLOURS)


def test_what_is_damaged_a_little_is_still_read_and_what_is_not_a_solid_is_not() -> None:
    data = Solids(count=400, pairs=0)
    index = next(i for i in range(400) if data.describe(i) == Stack((Thing("large", "green", "ball"),)))
    model = data.fetch([index]).media[0].numpy().copy()
    cells = np.argwhere(model[3] > 0)
    for x, y, z in cells[:: len(cells) // 12]:
        model[:, x, y, z] = 0
    assert read_solids(model) == data.describe(index)
    rng = np.random.default_rng(0)
    noise = np.where(rng.random((16, 16, 16)) < 0.3, model[:, 8:9, 8:9, 3:4], 0).astype(np.uint8)
    assert read_solids(noise) is None
    assert read_solids(np.zeros((4, 16, 16, 16), np.uint8)) is None
    model[:3] = rng.integers(0, 255, model[:3].shape) * (model[3] > 0)
    assert read_solids(model) is None


def test_bad_settings() -> None:
    with pytest.raises(UserError, match="count = 0"):
        Solids(count=0)
    with pytest.raises(UserError, match="pairs"):
        Solids(pairs=1.5)
