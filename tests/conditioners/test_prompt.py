"""Prompts: the parser of weights, the tidying of text, and what weights do to a byte-level encoder's tokens."""

from __future__ import annotations

import pytest
import torch

from sfumato.conditioners import Text
from sfumato.conditioners.prompt import Weighted, clean, literal, parse, reweigh, weights_of
from sfumato.core import DataInfo
from sfumato.errors import UserError

INFO = DataInfo((1, 8, 8), captions=True)


def spelled(prompt: str) -> list[tuple[str, float]]:
    """Runs of one weight."""
    text = parse(prompt)
    runs: list[tuple[str, float]] = []
    for character, weight in zip(text, text.weights if isinstance(text, Weighted) else [1.0] * len(text)):
        if runs and runs[-1][1] == weight:
            runs[-1] = (runs[-1][0] + character, weight)
        else:
            runs.append((character, weight))
    return runs


@pytest.mark.parametrize(
    ("prompt", "runs"),
    [
        ("a red apple", [("a red apple", 1)]),
        ("a (red:1.5) apple", [("a ", 1), ("red", 1.5), (" apple", 1)]),
        ("(red:.5)", [("red", 0.5)]),
        ("(red apple : 2 )", [("red apple", 2)]),
        ("((a:2) b:3)", [("a", 6), (" b", 3)]),
        ("(a (b) c:2)", [("a (b) c", 2)]),
        ("a (smiling) cat", [("a (smiling) cat", 1)]),
        ("an open ( and a close )", [("an open ( and a close )", 1)]),
        ("(a:2) b)", [("a", 2), (" b)", 1)]),
        ("((a:2)", [("(", 1), ("a", 2)]),
        (r"\(red:1.5\)", [("(red:1.5)", 1)]),
        (r"(at 12\:30)", [(r"(at 12\:30)", 1)]),
        (r"(a\):2)", [("a)", 2)]),
        (r"C:\new", [(r"C:\new", 1)]),
        ("a\\", [("a\\", 1)]),
        (r"a \\(b:2)", [("a \\", 1), ("b", 2)]),
        ("a ( red :2) b", [("a ", 1), ("red ", 2), ("b", 1)]),
        ("(:2) a", [("a", 1)]),
        ("(:2)", []),
        ("()", [("()", 1)]),
        ("(red:1.0)", [("red", 1)]),
        ("(🍎:2)é", [("🍎", 2), ("é", 1)]),
    ],
)
def test_weights_are_read(prompt: str, runs: list[tuple[str, float]]) -> None:
    assert spelled(prompt) == runs


@pytest.mark.parametrize("text", ["a (red:1.5) apple", r"\(", r"\\\)", "((a:2) b:3)", "plain", "12:30)", ")(:2"])
def test_a_literal_is_read_as_itself(text: str) -> None:
    assert parse(literal(text)) == text and not isinstance(parse(literal(text)), Weighted)


@pytest.mark.parametrize("weight", ["13", "-1", "+10.5"])
def test_weights_out_of_range(weight: str) -> None:
    with pytest.raises(UserError, match=r"of '\(red:.*' is outside 0 to 10"):
        parse(f"a (red:{weight}) apple")


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("  a \t red\n\napple ", "a red apple"),
        ("\x00a\x07b\x1b", "a b"),
        ("e\u0301", "\u00e9"),  # two code points, and the one that means the same
        ("   ", ""),
        ("\u3000\u00a0", ""),
        ("👩\u200d🚀 🏳️\u200d🌈", "👩\u200d🚀 🏳️\u200d🌈"),  # joiners make one picture of several: they stay
        ("ελληνικά 中文 עברית", "ελληνικά 中文 עברית"),
    ],
)
def test_texts_are_tidied(text: str, read: str) -> None:
    assert clean(text) == read == clean(clean(text))


def test_a_token_weighs_the_mean_of_its_characters() -> None:
    text = parse("a (bc:3)")
    assert weights_of(text, [(0, 1), (1, 3), (2, 4), (0, 0)]) == [1, 2, 3, 1]
    assert weights_of("abcd", [(0, 2), (2, 4)]) == [1, 1]


def test_reweigh_keeps_the_mean_of_equal_weights_and_0_gives_the_mean() -> None:
    torch.manual_seed(0)
    z, mask = torch.randn(2, 5, 3).double(), torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    z = z * mask[:, :, None]
    ones = torch.ones(2, 5)
    torch.testing.assert_close(reweigh(z, ones, mask), z, rtol=1e-12, atol=1e-12)
    mean = torch.stack([z[0].mean(0), z[1, :3].mean(0)])
    torch.testing.assert_close(reweigh(z, 0 * ones, mask)[1, :3], mean[1].expand(3, 3), rtol=1e-12, atol=1e-12)
    twice = reweigh(z, 2 * ones, mask)
    torch.testing.assert_close(twice.sum(1) / mask.sum(1)[:, None], mean, rtol=1e-12, atol=1e-12)
    assert not twice[1, 3:].any()


def test_weights_reach_the_byte_level_encoder() -> None:
    """Bytes of the weighted word move away from the mean by their weight; the others stay, bit for bit nearly."""
    torch.manual_seed(0)
    text = Text(INFO, width=16, depth=1, heads=2).double()
    plain, heavy = (text(text.prepare({"caption": [parse(p)]})) for p in ("a rød fox", "a (rød:3) fox"))
    assert plain.tokens is not None and heavy.tokens is not None and plain.mask is not None
    n = int(plain.mask.sum())  # ø is two bytes
    mean = plain.tokens[:, :n].mean(1)
    torch.testing.assert_close(heavy.tokens[0, 2:6] - mean, 3 * (plain.tokens[0, 2:6] - mean))
    torch.testing.assert_close(heavy.tokens[0, [0, 1, 6, 7, 8, 9]], plain.tokens[0, [0, 1, 6, 7, 8, 9]])
    torch.testing.assert_close(heavy.vector, text.pool(heavy.tokens.sum(1) / n))


def test_a_weight_in_one_row_leaves_the_others_alone() -> None:
    torch.manual_seed(0)
    text = Text(INFO, width=16, depth=1, heads=2).double()
    both = text(text.prepare({"caption": [parse("a (red:2) fox"), "a blue fox"]}))
    alone = text(text.prepare({"caption": ["a blue fox"]}))
    torch.testing.assert_close(both.vector[1], alone.vector[0], rtol=1e-10, atol=1e-10)


def test_blank_prompts_are_anything() -> None:
    torch.manual_seed(0)
    text = Text(INFO, width=16, depth=1, heads=2)
    for blank in ("", "   ", "\n\t\x00"):
        assert torch.equal(
            text(text.prepare({"caption": [blank]})).vector, text(text.prepare({"caption": [""]})).vector
        )
