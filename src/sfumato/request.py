"""What was asked of a pipeline, checked and spread out: one row for each sample."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch

from sfumato.conditioners.prompt import parse
from sfumato.core import Column, DataInfo
from sfumato.errors import UserError, did_you_mean
from sfumato.given import Given, read_given
from sfumato.guidance import Guidance

_WORDS = {
    "caption": "prompt",
    "label": "label",
    "number": "number",
}  # column of a batch -> argument of a pipeline; others
# hold media and are given in `given` by their own names
ASKED = (*_WORDS.values(), "given")  # the arguments of a pipeline that say what is asked for
_SEEDS = 1 << 62


@final
@dataclass(frozen=True)
class Request:
    """B samples. columns: what the conditioner reads, empty for none; negative: B prompts or empty; both with their weights
    read (`prompt.parse`).

    scale: B guidance scales, None for the setting of the guidance. guided: whether that setting acts.
    settings: arguments of the call, with the prompts and seeds as they were resolved; of media, names and contents' digests.
    """

    seeds: tuple[int, ...]
    columns: Mapping[str, Column]
    texts: tuple[str, ...]
    negative: tuple[str, ...]
    scale: tuple[float, ...] | None
    guided: bool
    settings: dict[str, Any]

    @property
    def negative_columns(self) -> dict[str, Column]:
        """The columns with the negative prompts in place of the prompts."""
        return {**self.columns, "caption": self.negative}

    def batches(self, most: int) -> Iterator[tuple[Request, int]]:
        """Batches of one shape, at most `most` samples each: (batch, how many of it are real).

        The last one is filled up by repeating its last sample, so that every sample meets the same kernels.
        """
        total = len(self.seeds)
        size = math.ceil(total / math.ceil(total / most))
        for first in range(0, total, size):
            rows = [min(i, total - 1) for i in range(first, first + size)]
            yield self.take(rows), min(size, total - first)

    def take(self, rows: Sequence[int]) -> Request:
        """The request for some of its samples. `settings` stay those of the whole call."""
        rows = list(rows)
        columns: dict[str, Column] = {
            k: v[rows] if isinstance(v, torch.Tensor) else [v[i] for i in rows] for k, v in self.columns.items()
        }
        return Request(
            tuple(self.seeds[i] for i in rows),
            columns,
            tuple(self.texts[i] for i in rows),
            tuple(self.negative[i] for i in rows) if self.negative else (),
            None if self.scale is None else tuple(self.scale[i] for i in rows),
            self.guided,
            self.settings,
        )


def word_of(column: str) -> str:
    """What people call a column of a batch: `prompt` for captions, else its name."""
    return _WORDS.get(column, column)


def as_arguments(columns: Mapping[str, Column]) -> dict[str, Any]:
    """Columns of a batch as the arguments of a pipeline that ask for the same."""
    media = {column: values for column, values in columns.items() if column not in _WORDS}
    plain = {
        _WORDS[column]: values.tolist() if isinstance(values, torch.Tensor) else list(values)
        for column, values in columns.items()
        if column in _WORDS
    }
    return plain | ({"given": media} if media else {})


def resolve(
    info: DataInfo,
    needed: Sequence[str],
    *,
    prompt: str | Sequence[str] | None,
    label: int | str | Sequence[int | str] | None,
    number: float | Sequence[float] | Sequence[Sequence[float]] | None,
    given: Mapping[str, Any],
    shown: Mapping[str, DataInfo],
    negative_prompt: str | Sequence[str] | None,
    n: int,
    seed: int | Sequence[int],
    guidance_scale: float | Sequence[float] | None,
    guidance: Guidance,
    guided: bool,
) -> Request:
    """Check a call of a pipeline whose conditioner reads the columns `needed`. Raises UserError.

    given: what there is for columns of media. shown: what an item of each such column is.
    guidance: what a scale is for. guided: whether it acts where no scale is given.
    """
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise UserError(f"n={n!r}: the number of samples of each prompt must be at least 1")
    asked: dict[str, list[Any]] = {}
    if prompt is not None:
        asked["caption"] = _prompts(prompt, "prompt")
    if label is not None:
        asked["label"] = _labels(label, info)
    if number is not None:
        asked["number"] = _numbers(number, info)
    for column, values in given.items():  # one that the model does not read is refused below
        asked[column] = read_given(column, values, shown[column]) if column in shown else []
    scales = _scales(guidance_scale, guidance)
    _check_columns(asked, needed, info, free=guidance.by_condition and scales is not None and not any(scales))
    negative = [] if negative_prompt is None else _prompts(negative_prompt, "negative_prompt")
    _check_guidance(needed, scales, negative, guidance, guided)
    lists = {word_of(column): values for column, values in asked.items()}
    lists |= {"negative_prompt": negative} if negative else {}
    lists |= {"guidance_scale": scales} if scales else {}
    lists = _together(lists)
    count = max((len(values) for values in lists.values()), default=1)
    seeds = _seeds(seed, count, n)

    def each(values: list[Any]) -> list[Any]:
        return [value for value in values for _ in range(n)]

    columns = {column: _column(column, each(lists[word_of(column)])) for column in asked}
    settings: dict[str, Any] = {**_written(lists), "n": n, "seed": seed if isinstance(seed, int) else list(seeds)}
    if scales and len(set(scales)) == 1:
        settings["guidance_scale"] = scales[0]
    return Request(
        seeds,
        columns,
        _texts({k: each(v) for k, v in lists.items()}, info, len(seeds)),
        tuple(map(parse, each(lists.get("negative_prompt", [])))),
        tuple(each(lists["guidance_scale"])) if scales else None,
        guided and (bool(asked) or not guidance.by_condition),
        settings,
    )


def _written(lists: Mapping[str, list[Any]]) -> dict[str, Any]:
    """The arguments as plain data: media by their names and contents."""
    plain = {word: values for word, values in lists.items() if not isinstance(values[0], Given)}
    media = {word: [value.written for value in values] for word, values in lists.items() if word not in plain}
    return plain | ({"given": media} if media else {})


def _column(column: str, values: list[Any]) -> Column:
    """A value a sample as the column of a batch."""
    if column == "caption":
        return list(map(parse, values))
    if column not in _WORDS:
        return torch.stack([value.media for value in values])
    return torch.tensor(values, dtype=torch.int64 if column == "label" else torch.float32)


def _prompts(prompt: str | Sequence[str], name: str) -> list[str]:
    texts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not texts:
        raise UserError(f"{name}=[] asks for nothing; give at least one text")
    for text in texts:
        if not isinstance(text, str):
            raise UserError(f"{name} must be text, not {text!r}")
    return texts


def _labels(label: int | str | Sequence[int | str], info: DataInfo) -> list[int]:
    values = [label] if isinstance(label, int | float | str) else list(label)
    if not values:
        raise UserError("label=[] asks for nothing; give at least one class")
    return [_label(value, info.labels) for value in values]


def _label(value: int | str, names: Sequence[str]) -> int:
    if isinstance(value, str):
        if value in names:
            return names.index(value)
        if not value.strip().lstrip("-").isdigit():
            raise UserError(f"label={value!r}: there is no such class; {did_you_mean(value, names)}")
    elif isinstance(value, bool) or value != int(value):
        raise UserError(f"label={value!r}: a label is a class name or a whole number")
    index = int(value)
    if names and not 0 <= index < len(names):
        raise UserError(f"label={index}: outside 0..{len(names) - 1}, this model knows {len(names)} classes")
    return index


def _numbers(number: Any, info: DataInfo) -> list[list[float]]:
    width = len(info.numbers)
    rows = [number] if isinstance(number, int | float) else list(number)
    if width > 1 and rows and all(isinstance(value, int | float) for value in rows):
        rows = [rows]
    made = [[float(v) for v in ([row] if isinstance(row, int | float) else row)] for row in rows]
    for row in made:
        if len(row) != width or not all(map(math.isfinite, row)):
            raise UserError(
                f"number={row}: this model takes {width} finite numbers, {', '.join(info.numbers) or 'none'}"
            )
    if not made:
        raise UserError("number=[] asks for nothing; give at least one")
    return made


def _scales(guidance_scale: float | Sequence[float] | None, guidance: Guidance) -> list[float] | None:
    if guidance_scale is None:
        return None
    values = [guidance_scale] if isinstance(guidance_scale, int | float) else list(guidance_scale)
    for value in values:
        guidance.check(value)
    return [float(value) for value in values] or None


def _check_columns(asked: Mapping[str, Any], needed: Sequence[str], info: DataInfo, *, free: bool) -> None:
    takes = " and ".join(f"{word_of(column)}=" for column in needed)
    for column in asked:
        if column not in needed:
            how = f"ask it by {takes}" if takes else "it is unconditional, so ask it for n= samples alone"
            raise UserError(f"{word_of(column)}= can't be given to this model; {how}")
    missing = [column for column in needed if column not in asked]
    if missing and not (free and not asked):
        kinds = {"caption": "a text", "label": _known(info.labels), "number": f"{', '.join(info.numbers)}"}
        kind = kinds.get(missing[0], "a file")
        raise UserError(
            f"this model is asked by {takes}, and {word_of(missing[0])}= is missing; give it {kind}, "
            "or guidance=0 for samples of anything"
        )


def _known(names: Sequence[str]) -> str:
    if not names:
        return "a class"
    return ", ".join(names) if len(names) <= 12 else f"one of {len(names)} classes such as {names[0]}"


def _check_guidance(
    needed: Sequence[str], scales: list[float] | None, negative: list[str], guidance: Guidance, guided: bool
) -> None:
    acts = any(scale != guidance.neutral for scale in scales) if scales is not None else guided
    if not needed and scales is not None and acts and guidance.by_condition:
        raise UserError(
            f"guidance={scales[0]:g}: this model is unconditional, there is nothing to guide it by; leave it out"
        )
    if negative and "caption" not in needed:
        raise UserError("negative_prompt= needs a model that is asked by prompt=; leave it out")
    if negative and not guidance.by_condition:
        raise UserError(
            f"negative_prompt= does nothing with guidance={guidance.kind}; use guidance=cfg, or leave it out"
        )
    if negative and not acts:
        raise UserError("negative_prompt= does nothing without guidance; set guidance= above 1")


def _together(lists: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    count = max((len(values) for values in lists.values()), default=1)
    for name, values in lists.items():
        if len(values) not in (1, count):
            other = next(k for k, v in lists.items() if len(v) == count)
            raise UserError(f"{len(values)} values of {name}= do not go with {count} of {other}=; give one, or {count}")
    return {name: values * count if len(values) == 1 else values for name, values in lists.items()}


def _seeds(seed: int | Sequence[int], prompts: int, n: int) -> tuple[int, ...]:
    total = prompts * n
    seeds = tuple(range(seed, seed + total)) if isinstance(seed, int) else tuple(int(s) for s in seed)
    if len(seeds) != total:
        raise UserError(f"{len(seeds)} seeds for {total} samples ({prompts} prompts, n={n}); give one seed or {total}")
    if min(seeds) < 0 or max(seeds) >= _SEEDS:
        raise UserError(f"seed={min(seeds) if min(seeds) < 0 else max(seeds)}: must lie in 0 ... 2^62 - 1")
    return seeds


def _texts(lists: Mapping[str, list[Any]], info: DataInfo, total: int) -> tuple[str, ...]:
    """What was asked of each sample, for captions and file names."""
    made: list[list[str]] = [[] for _ in range(total)]
    for i in range(total):
        if "prompt" in lists:
            made[i].append(lists["prompt"][i])
        if "label" in lists:
            index = lists["label"][i]
            made[i].append(info.labels[index] if info.labels else str(index))
        if "number" in lists:
            names = info.numbers if len(info.numbers) > 1 else ("",) * len(info.numbers)
            made[i].append(" ".join(f"{k}={v:g}" if k else f"{v:g}" for k, v in zip(names, lists["number"][i])))
        made[i] += [values[i].stem for values in lists.values() if isinstance(values[i], Given)]
    return tuple(", ".join(parts) for parts in made)
