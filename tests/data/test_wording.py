"""Captions worded anew: functions of (seed, look), parts kept at their share, held-out items as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sfumato.core import Draws
from sfumato.data import Arrays, Data, Shapes, Worded
from sfumato.data.wording import reword
from sfumato.errors import UserError
from sfumato.spec import dump_yaml, parse, read_yaml

PLAIN = {"keep": 1.0, "shuffle": 0.0, "first": 0, "empty": 0.0}
CAPTION = "red apple, fruit, food, sweet, fluent emoji"


def looks(n: int, caption: str = CAPTION, seed: int = 0, **settings: Any) -> list[str]:
    draws = Draws(seed, 0, n).uniform("item").numpy()
    return reword([caption] * n, draws, **{**PLAIN, **settings})


def test_nothing_asked_changes_nothing_but_blanks() -> None:
    assert looks(3) == [CAPTION] * 3
    assert looks(1, " a ,, b,") == ["a, b"] and looks(1, "") == [""]


def test_parts_are_kept_at_their_share_and_apart_from_each_other() -> None:
    """Five parts, 4,000 looks: each share within 4 deviations, and so is that of pairs."""
    parts = CAPTION.split(", ")
    kept = np.array([[part in text.split(", ") for part in parts] for text in looks(4000, keep=0.7)])
    assert np.abs(kept.mean(0) - 0.7).max() < 4 * np.sqrt(0.21 / 4000)
    assert np.abs((kept[:, 0] & kept[:, 1]).mean() - 0.49) < 4 * np.sqrt(0.25 / 4000)


def test_the_first_parts_stay_in_front() -> None:
    for text in looks(200, keep=0.0, first=2):
        assert text == "red apple, fruit"
    assert {text.split(", ")[0] for text in looks(200, keep=0.5, shuffle=1.0, first=1)} == {"red apple"}


def test_every_order_is_as_likely_and_no_part_is_lost() -> None:
    orders = [tuple(text.split(", ")) for text in looks(6000, "a, b, c", shuffle=1.0)]
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
    counts = np.array([orders.count(order) for order in set(orders)])
    assert len(counts) == 6 and np.abs(counts / 6000 - 1 / 6).max() < 4 * np.sqrt(5 / 36 / 6000)


def test_shuffle_and_empty_are_shares_of_the_looks() -> None:
    texts = looks(4000, "a, b, c, d, e, f", shuffle=0.5, empty=0.2)
    silent = sum(text == "" for text in texts) / 4000
    mixed = sum(text not in ("", "a, b, c, d, e, f") for text in texts) / 4000
    assert abs(silent - 0.2) < 4 * np.sqrt(0.16 / 4000)
    assert abs(mixed - 0.8 * 0.5 * (1 - 1 / 720)) < 4 * np.sqrt(0.25 / 4000)


def test_a_look_does_not_depend_on_its_neighbours() -> None:
    draws = Draws(0, 0, 50).uniform("item").numpy()
    settings: dict[str, Any] = {"keep": 0.5, "shuffle": 0.5, "first": 1, "empty": 0.1}
    whole = reword([CAPTION, "a"] * 25, draws, **settings)
    for i in range(50):
        assert reword([[CAPTION, "a"][i % 2]], draws[i : i + 1], **settings) == [whole[i]]


def test_held_out_items_keep_their_captions_and_the_rest_is_that_of_the_set() -> None:
    inner = Shapes(count=40)
    data = Worded(data=inner, keep=0.0, first=0, empty=1.0)
    assert data.columns([0, 1])["caption"] == inner.columns([0, 1])["caption"]
    for made in (data.columns([0, 1], np.array([0.2, 0.7])), data.fetch([0, 1], np.array([0.2, 0.7])).conditions):
        assert made["caption"] == ["", ""]
    assert data.info == inner.info and (data.held_out_mask() == inner.held_out_mask()).all()
    assert (data.fetch([3]).media == inner.fetch([3]).media).all()


def test_it_is_a_setting_of_data(tmp_path: Path) -> None:
    file = tmp_path / "data.yaml"
    file.write_text("type: worded\nkeep: 0.5\ndata: {type: shapes, count: 20}\n")
    plain, marks = read_yaml(file)
    spec = parse(Data, plain, marks=marks)
    data = spec.build()
    assert isinstance(data, Worded) and len(data) == 20
    file.write_text(dump_yaml(spec))
    assert parse(Data, read_yaml(file)[0]) == spec
    assert data.fingerprint() != spec.with_(keep=0.6).build().fingerprint()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"keep": 1.5}, "keep = 1.5 must be a share"),
        ({"shuffle": -0.1}, "shuffle = -0.1 must be a share"),
        ({"first": -1}, "first = -1 must be a number of parts"),
    ],
)
def test_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        parse(Data, {"type": "worded", "data": "shapes", **settings}).build()


def test_data_without_captions_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((4, 1, 3, 3), np.float32))
    with pytest.raises(UserError, match="has no captions"):
        Worded(data=Arrays(path=str(tmp_path / "x.npy"), layout="first"))


def test_the_only_part_of_a_caption_is_never_left_out() -> None:
    """A set of plain captions would lose its words at times: that is what `empty` is for."""
    assert looks(200, "a pine tree", keep=0.0) == ["a pine tree"] * 200
    assert looks(200, "a pine tree, turned left", keep=0.0, fixed=("turned",)) == ["a pine tree, turned left"] * 200
    assert set(looks(50, "tree, plant", keep=0.0)) == {""}


def test_a_fixed_part_begins_with_something() -> None:
    with pytest.raises(UserError, match="fixed has an empty text"):
        Worded(data=Shapes(count=16), fixed=("",))


def test_fixed_parts_are_never_left_out() -> None:
    """Words that say what was done to an item are true or false, not a matter of taste."""
    told = looks(400, "stairs, building, turned left", keep=0.3, fixed=("turned", "mirrored"))
    assert all(text.endswith("turned left") for text in told)
    assert any(text == "turned left" for text in told) and any(
        "stairs" not in text and "building" in text for text in told
    )


def test_a_name_is_swapped_at_its_share_and_only_beside_another_part() -> None:
    names = ("horse", "lamp")
    told = looks(4000, "stairs, building, turned left", fixed=("turned",), swap=0.3, names=names)
    found = [text.split(", ")[0] for text in told]
    assert {text.split(", ", 1)[1] for text in told} == {"building, turned left"}
    for name in names:
        assert abs(found.count(name) / 4000 - 0.15) < 4 * np.sqrt(0.15 * 0.85 / 4000)
    assert looks(50, "stairs, turned left", fixed=("turned",), swap=1.0, names=names) == ["stairs, turned left"] * 50
    kept = looks(400, "stairs, building", keep=0.5, swap=1.0, names=names)
    assert {"", "stairs", "building", "horse, building", "lamp, building"} == set(kept)


def test_names_are_those_of_the_training_part() -> None:
    inner = Shapes(count=60)
    data = Worded(data=inner, keep=1.0, shuffle=0.0, swap=1.0)
    captions = inner.columns(np.flatnonzero(~inner.held_out_mask()))["caption"]
    assert data._names == tuple(sorted({str(text).split(",")[0] for text in captions}))
    assert data.fingerprint() != Worded(data=inner, keep=1.0, shuffle=0.0).fingerprint()
    with pytest.raises(UserError, match="swap = 2 must be a share"):
        Worded(data=inner, swap=2)
