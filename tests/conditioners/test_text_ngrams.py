"""Hashed n-grams of bytes: functions of the bytes to their left, and of nothing else."""

from __future__ import annotations

import torch

from sfumato.conditioners import Text
from sfumato.conditioners.text import ngram_buckets
from sfumato.core import DataInfo

INFO = DataInfo((1, 8, 8), captions=True)


def rows(text: str, longest: int = 6, buckets: int = 1 << 20) -> list[list[int]]:
    ids = torch.tensor([list(text.encode())])
    return [r[0].tolist() for r in ngram_buckets(ids, longest, buckets)]


def test_an_n_gram_is_the_same_wherever_it_stands() -> None:
    """The rows at the end of 'circle' in two texts agree for every n that fits in the word, and differ beyond it."""
    a, b = rows("red circle"), rows("a blue circle")
    assert all(a[n - 2][-1] == b[n - 2][-1] for n in range(2, 7))
    longer = rows("red circle", 8)[6][-1], rows("blue circle", 8)[6][-1]  # 8 bytes: "d circle" and "e circle"
    assert longer[0] != longer[1]


def test_different_n_grams_get_different_rows() -> None:
    """With a million buckets the 4-grams of a sentence do not meet; a first byte changed changes the row."""
    text = "the quick brown fox jumps over the lazy dog"
    grams = {text[i - 3 : i + 1]: rows(text, 4)[2][i] for i in range(3, len(text))}
    assert len(set(grams.values())) == len(grams)
    assert rows("abcd", 4)[2][-1] != rows("xbcd", 4)[2][-1]


def test_rows_look_to_the_left_only() -> None:
    assert [r[:3] for r in rows("abcXYZ")] == [r[:3] for r in rows("abc123")]


def test_the_table_takes_part() -> None:
    """Zeroing the hashed table leaves exactly the bytes' part; ngrams=1 has no table."""
    torch.manual_seed(0)
    text = Text(INFO, width=16, depth=1, heads=2, ngrams=4, buckets=64)
    ids = text.prepare({"caption": ["seven"]})["caption"]
    assert text.hashed is not None
    with torch.no_grad():
        text.hashed.weight.zero_()
    assert torch.allclose(text._embed(ids), text.table(ids) / 2)
    assert Text(INFO, width=16, depth=1, heads=2, ngrams=1).hashed is None
