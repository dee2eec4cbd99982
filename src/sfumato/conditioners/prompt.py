"""Prompts: how a text is tidied before it is read, and how its parts are weighted, `a (red:1.3) apple`."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple, Self, final

import torch
from torch import Tensor

from sfumato.errors import UserError

# Lengths of a batch of texts are rounded up to multiples of this: on a GPU a step is recorded for each of them, which takes
# seconds; a CPU computes what is there.
_RECORDED, _COMPUTED = 32, 8
MOST = 10.0  # the largest weight; 0 to 2 are usual
_SYNTAX = r"\()"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_NUMBER = re.compile(r":\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*$")


def rounded(longest: int, device: torch.device) -> int:
    """The length that a batch of texts is padded to where the longest has so many tokens."""
    step = _COMPUTED if device.type == "cpu" else _RECORDED
    return -(-longest // step) * step


@final
class Weighted(str):
    """A prompt without its marks. weights: of every character, as many as `len(text)`."""

    weights: tuple[float, ...]

    def __new__(cls, text: str, weights: Sequence[float]) -> Self:
        made = super().__new__(cls, text)
        made.weights = tuple(weights)
        return made


class _Letter(NamedTuple):
    text: str
    weight: float
    plain: bool  # written after a backslash: never a part of the syntax


def clean(text: str) -> str:
    """A text as encoders read it: composed (NFC), control characters as spaces, runs of blanks as one, none at the ends.

    So a blank text is the empty one. Raises UserError for what is not valid Unicode text.
    """
    if not isinstance(text, str):
        raise UserError(f"a caption must be text, not {text!r}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"the prompt {text!r} holds characters that are not valid Unicode text") from None
    return " ".join(_CONTROL.sub(" ", unicodedata.normalize("NFC", text)).split())


def parse(prompt: str) -> str:
    """Read the weights in a prompt: a `Weighted` text, or the plain one where nothing is weighted.

        (words:w)     the words weigh w, a number from 0 to 10; 1 is the weight of everything else
        ((a:2) b:3)   nested weights multiply: a weighs 6, b 3
        \\( \\) \\\\      the character itself

    Parentheses without `:number` before the closing one are text, and so is one without its partner. What a weight does is
    said at `reweigh`. Raises UserError for a weight outside 0 ... 10.
    """
    if not any(mark in prompt for mark in _SYNTAX):
        return prompt
    letters: list[_Letter] = []
    opened: list[int] = []
    rest = iter(clean(prompt))
    for character in rest:
        if character == "\\":
            following = next(rest, "")
            known = following in _SYNTAX and following != ""
            letters += [_Letter(c, 1.0, True) for c in (following if known else character + following)]
        elif character == "(":
            opened.append(len(letters))
            letters.append(_Letter(character, 1.0, False))
        elif character == ")" and opened:
            _close(letters, opened.pop())
        else:
            letters.append(_Letter(character, 1.0, False))
    return _tidy(letters)


def literal(text: str) -> str:
    """A prompt that `parse` reads as this very text: its backslashes and parentheses escaped."""
    return re.sub(r"([\\()])", r"\\\1", text)


def _close(letters: list[_Letter], start: int) -> None:
    """The part from an open parenthesis on is complete: weigh it, or leave it as text."""
    tail = "".join("\0" if letter.plain else letter.text for letter in letters[start + 1 :])
    found = _NUMBER.search(tail)
    if found is None:
        letters.append(_Letter(")", 1.0, False))
        return
    weight = float(found[1])
    inner = letters[start + 1 : start + 1 + found.start()]
    if not 0 <= weight <= MOST:
        said = "".join(letter.text for letter in inner)
        raise UserError(
            f"the weight {found[1]} of '({said}:{found[1]})' is outside 0 to {MOST:g}; "
            "0.5 to 1.5 are usual, and \\( is a parenthesis that means nothing"
        )
    letters[start:] = [_Letter(letter.text, letter.weight * weight, letter.plain) for letter in inner]


def _tidy(letters: list[_Letter]) -> str:
    """One blank where removing marks has left two, none at the ends."""
    kept: list[_Letter] = []
    for letter in letters:
        if letter.text != " " or (kept and kept[-1].text != " "):
            kept.append(letter)
    if kept and kept[-1].text == " ":
        kept.pop()
    text = "".join(letter.text for letter in kept)
    return text if all(letter.weight == 1 for letter in kept) else Weighted(text, [letter.weight for letter in kept])


def weights_of(text: str, spans: Sequence[tuple[int, int]]) -> list[float]:
    """The weight of each token of a text: the mean over its characters. spans: first character and the one after the last.

    A token of no characters (the mark of a beginning or end) weighs 1.
    """
    if not isinstance(text, Weighted):
        return [1.0] * len(spans)
    return [sum(text.weights[a:b]) / (b - a) if b > a else 1.0 for a, b in spans]


def reweigh(tokens: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """Move every token away from, or towards, the mean of its text:

        z_i' = m + w_i (z_i - m),   m = mean of the text's real tokens z

    tokens: (B, L, D); weights: (B, L); mask: (B, L), True where a token is real; the others become 0. Weights of 1 change
    nothing, 0 makes a token say no more than the text as a whole. Around the mean and not around 0, because cross-attention
    normalises each token and would undo a plain product. What interfaces of Stable Diffusion do with `(word:1.3)` is alike:
    they multiply, and restore the mean.
    """
    real = mask[:, :, None].to(tokens.dtype)
    mean = (tokens * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)
    return (mean + weights[:, :, None].to(tokens) * (tokens - mean)) * real


def padded(rows: Sequence[Sequence[float]], length: int) -> Tensor:
    """Rows of weights as one tensor (B, length), 1 beyond the end of a row."""
    made = torch.ones(len(rows), length)
    for out, row in zip(made, rows):
        out[: len(row)] = torch.tensor(row)
    return made
