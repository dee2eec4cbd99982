"""Emoji: what is held out, how captions say what was done to a picture, and the three kinds of table."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.data.emoji_table import SIZE, picture, rows, table

from sfumato.data import Emoji
from sfumato.data.emoji import STYLES, held_out_pairs
from sfumato.data.emoji_table import read_table
from sfumato.data.emoji_words import caption, jumbled, reworded
from sfumato.errors import UserError


def test_pairs_are_held_out_by_name_and_design_alone() -> None:
    found = held_out_pairs(rows(60), 6)
    assert len(found) == len({name for name, _ in found}) == 30
    assert {style: sum(s == style for _, s in found) for style in STYLES} == dict.fromkeys(STYLES, 6)
    assert ("apple", "noto") in found  # a fifth of six, rounded down, has tones where there are any
    shuffled = rows(60)
    random.Random(0).shuffle(shuffled)
    assert held_out_pairs(shuffled, 6) == found
    assert held_out_pairs([replace(row, raw=b"other") for row in shuffled], 6) == found
    assert not found & {(row.name, row.style) for row in rows(60) if row.test}


def test_names_of_few_designs_are_not_held_out() -> None:
    few = [row for row in rows(12) if row.style != "fluent" and (row.style != "twemoji" or row.name != "door")]
    assert all(name != "door" for name, _ in held_out_pairs(few, 12))


def test_parts_and_the_split(tmp_path: Path) -> None:
    data = Emoji(path=str(table(tmp_path)), size=SIZE, hold=1)
    known, new = data.part("known"), data.part("new")
    assert {data.rows[i].name for i in new} == {"kite", "lamp"}
    pairs = held_out_pairs(data.rows, 1)
    assert sorted((data.rows[i].name, data.rows[i].style) for i in known if not data.rows[i].tone) == sorted(pairs)
    assert sorted([*known, *new]) == np.flatnonzero(data.held_out_mask()).tolist()
    assert len(data.split("train")) + len(known) + len(new) == len(data) == 62


def test_pictures_and_plain_captions(tmp_path: Path) -> None:
    data = Emoji(path=str(table(tmp_path)), size=SIZE)
    batch = data.fetch([0, 1, 2, 3])
    expected = [picture(0, 0, 0), picture(0, 0, 1), picture(0, 0, 2), picture(0, 1)]
    assert np.array_equal(batch.media.numpy(), np.stack(expected).transpose(0, 3, 1, 2))
    assert batch.conditions["caption"] == [
        "apple, noto emoji",
        "apple, light skin tone, noto emoji",
        "apple, dark skin tone, noto emoji",
        "apple, noto blob emoji",
    ]


def test_what_is_done_to_a_picture_is_in_its_caption(tmp_path: Path) -> None:
    data = Emoji(path=str(table(tmp_path)), size=SIZE, shift=2)
    indices = np.arange(len(data)).repeat(40)
    draws = np.random.default_rng(0).random(len(indices))
    batch = data.fetch(indices, draws)
    plain = data.fetch(indices).media.numpy()
    said = batch.conditions["caption"]
    seen = {"mirrored": 0, "off centre": 0}
    for i, index in enumerate(indices.tolist()):
        mirrored, moved = "mirrored" in said[i], "off centre" in said[i]
        seen["mirrored"] += mirrored
        seen["off centre"] += moved
        expected = plain[i][..., ::-1] if mirrored else plain[i]
        assert np.array_equal(batch.media[i].numpy(), expected) != moved
        assert not (mirrored and data.rows[index].group == "symbols")
    share = np.mean([data.rows[i].group != "symbols" for i in indices])
    assert abs(seen["mirrored"] / len(indices) - 0.25 * share) < 0.03
    assert abs(seen["off centre"] / len(indices) - 0.15 * 24 / 25) < 0.03
    assert data.columns(indices, draws)["caption"] == said


def test_a_share_of_the_names_has_other_words_in_the_same_design_and_tone(tmp_path: Path) -> None:
    file = str(table(tmp_path))
    plain, data = Emoji(path=file, size=SIZE, hold=1), Emoji(path=file, size=SIZE, hold=1, swap=0.5)
    train = data.split("train").indices
    index = np.repeat(train, 50)
    draws = np.random.default_rng(0).random(len(index))
    told = data._told(index, draws)
    own = [data.rows[i] for i in index]
    changed = [a is not b for a, b in zip(told, own, strict=True)]
    assert abs(np.mean(changed) - 0.5) < 0.03
    assert all((a.style, a.tone) == (b.style, b.tone) for a, b in zip(told, own, strict=True))
    names = {row.name for row in own}
    assert not {"kite", "lamp"} & {row.name for row in told}  # the test part's words are nobody's
    letters = {"".join(sorted(word)) for name in names for word in name.split()}
    assert all("".join(sorted(word)) in letters for row in told for word in row.name.split())
    assert np.mean([row.name in names for row in told]) < 0.95  # letters are shuffled too
    assert plain._told(index, draws) == own
    same, other = plain.columns(index, draws)["caption"], data.columns(index, draws)["caption"]
    assert all(a == b for a, b, changed in zip(same, other, changed, strict=True) if not changed)
    assert data.columns([0])["caption"] == plain.columns([0])["caption"]  # without a draw nothing is swapped
    assert plain.fingerprint() != data.fingerprint()


def test_half_of_the_jumbled_names_keep_none_of_their_words_and_long_ones_stay() -> None:
    row = replace(rows(12)[0], name="one two three four", tone="", keywords=("digit",))
    made = [jumbled(row, number, ["seven", "eight"]) for number in np.random.default_rng(0).random(4000)]
    kept = np.asarray([sum(word in row.name.split() for word in one.name.split()) for one in made])
    # in one half none of four; in the other one word goes, and each of the other three with probability 1/2
    assert abs(np.mean(kept == 0) - (1 / 2 + 1 / 16)) < 0.025
    assert np.mean(kept == 4) == 0 and abs(np.mean(kept == 3) - 1 / 16) < 0.012
    assert all(not one.keywords and len(one.name.split()) == 4 for one in made)
    assert jumbled(row, 0.3, ["eight"]) == jumbled(row, 0.3, ["eight"])
    assert jumbled(row, 0.3, ["eight" * 20]) is row
    blank = replace(row, name=" ")
    assert jumbled(blank, 0.3, ["eight"]) is blank


def test_moved_pictures_are_white_where_nothing_comes_from(tmp_path: Path) -> None:
    from sfumato.data.emoji import _rolled

    whole = np.arange(2 * 5 * 6, dtype=np.uint8).reshape(2, 5, 6)
    for down, across in ((0, 0), (1, 0), (-2, 3), (2, -1)):
        padded = np.pad(whole, ((0, 0), (4, 4), (4, 4)), constant_values=255)
        assert np.array_equal(_rolled(whole, down, across), padded[:, 4 - down : 9 - down, 4 - across : 10 - across])


def test_rewordings_keep_name_or_keywords_tone_and_moves_or_the_design_alone() -> None:
    row = replace(rows()[1], name="Waving Hand")
    generator = np.random.default_rng(0)
    forms = {reworded(row, generator.random(4).tolist(), ("mirrored",)) for _ in range(2000)}
    assert "Waving Hand, light skin tone, mirrored, noto emoji" in forms
    assert "noto emoji of a waving hand, light skin tone, mirrored" in forms
    assert "mirrored, noto emoji" in forms  # the design alone
    for form in forms - {"mirrored, noto emoji"}:
        assert "mirrored" in form and "light skin tone" in form
        assert "waving hand" in form.lower() or "thing" in form
        assert len(form.encode()) <= 64


@pytest.mark.parametrize("kind", ["parquet", "folder"])
def test_the_three_kinds_of_table_hold_the_same(tmp_path: Path, kind: str) -> None:
    made = rows()
    cells = [
        {
            "name": r.name, "style": r.style, "skin_tone": r.tone, "keywords": list(r.keywords), "group": r.group,
            "split": "test" if r.test else "train",
        }
        for r in made
    ]  # fmt: skip
    if kind == "parquet":
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(
            pa.Table.from_pylist([{**c, "image": r.raw} for c, r in zip(cells, made)]), tmp_path / "a.parquet"
        )
    else:
        for i, r in enumerate(made):
            (tmp_path / f"{i}.png").write_bytes(r.raw)
        lines = [json.dumps({**c, "file_name": f"{i}.png"}) for i, c in enumerate(cells)]
        (tmp_path / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    assert read_table(tmp_path) == made
    other = tmp_path / "npz"
    other.mkdir()
    assert Emoji(path=str(tmp_path)).fingerprint() == Emoji(path=str(table(other))).fingerprint()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"styles": ("noto", "pixel")}, "has no pictures of the style 'pixel'"),
        ({"swap": 1.0}, "swap = 1.0: must be at least 0 and less than 1"),
        ({"hold": -1}, "hold = -1: must be at least 0"),
        ({"path": "nowhere.parquet"}, "nowhere.parquet: there is no such file or folder"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, settings: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Emoji(**{"path": str(table(tmp_path)), **settings})  # type: ignore[arg-type]


def test_a_folder_and_a_file_of_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must hold one \.parquet file or metadata\.jsonl, and holds 0"):
        read_table(tmp_path)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "name": "x"}\n')
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(UserError, match="has no column 'style', which emoji need"):
        read_table(tmp_path)
    np.savez(tmp_path / "x.npz", x=np.zeros(3))
    with pytest.raises(UserError, match="is not a table of emoji that sfumato wrote"):
        read_table(tmp_path / "x.npz")


def test_a_caption_in_another_design() -> None:
    assert caption(rows()[1], "fluent-flat") == "apple, light skin tone, fluent flat emoji"
