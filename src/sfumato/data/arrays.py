"""Arrays of any rank and channel count from .npz and .npy files."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

from sfumato.data.base import choose_split, file_digest
from sfumato.data.columns import Columns, read_captions, read_labels, read_numbers
from sfumato.data.memory import InMemory
from sfumato.errors import UserError
from sfumato.pictures import Look, from_array

Layout = Literal["auto", "first", "last", "none"]
Loaded = dict[str, NDArray[Any]]

_X = ("x", "images", "image", "data", "samples", "audio", "arr_0")
_Y = ("y", "labels", "label", "targets", "target", "classes", "arr_1")
_CAPTIONS = ("captions", "caption", "texts", "text", "prompts")
_NUMBERS = ("numbers", "number")
_NAMES = ("label_names", "class_names")
_MOST_UNPACKED = 4 << 30
_MOST_RATIO = 100
_FEW = 4  # an axis this short at one end of an item is taken for channels


@dataclass(frozen=True)
class _Part:
    """What one file holds for one side of the split."""

    media: NDArray[Any]
    labels: NDArray[Any] | None
    captions: NDArray[Any] | None
    numbers: NDArray[Any] | None
    test: bool
    where: str


@final
@dataclass(frozen=True, kw_only=True)
class Arrays(InMemory, name="arrays"):
    """Items along the first axis of an array in one or more .npz or .npy files.

    x, y, captions, numbers: keys in an .npz, found by the usual names if not set (x_train, images, arr_0, ...; y_train,
    labels, ...); numbers (N,) or (N, K). A pair x_train / x_test makes the test part the held-out one. layout: where the
    channels of an item are: `first` (C, *S), `last` (*S, C), `none` (*S), or found from the shape: items of one axis are
    vectors (C,) up to 4 numbers long and signals (1, L) beyond; `first` makes them vectors of any length. read_as: uint8
    of two spatial axes is read as `image`, all else as `array` (float32); `array` can be asked for. size: side in pixels that
    images are scaled and cropped to; needed where files differ. classes: number of classes, by default the largest
    label plus 1. flip: images left to right for half of the draws. held_out: share of the items that training does not
    see; by default the test part, else 0.05.
    """

    path: str | tuple[str, ...]
    x: str | None = None
    y: str | None = None
    captions: str | None = None
    numbers: str | None = None
    layout: Layout = "auto"
    read_as: Literal["auto", "image", "array"] = "auto"
    size: int | None = None
    classes: int | None = None
    flip: bool = False
    held_out: float | None = None

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise UserError(f"size = {self.size}: must be at least 1 pixel")
        if self.flip and self.media.dtype != np.uint8:
            raise UserError("flip = True: is for images, and these are arrays; set flip=false")
        _ = self.info, self.table, self._mask
        for name in ("_parts", "_loaded"):  # the joined arrays are all that is needed from here on
            self.__dict__.pop(name, None)

    @property
    def mirrored(self) -> bool:
        return self.flip

    @property
    def where(self) -> str:
        """What messages call the set."""
        return ", ".join(map(str, self._files))

    def held_out_mask(self) -> NDArray[np.bool_]:
        return self._mask

    def fingerprint(self) -> str:
        return file_digest(self._files)

    @cached_property
    def media(self) -> NDArray[Any]:
        """(N, C, *S), uint8 for images, else as stored; one .npy file stays on disk (memory-mapped)."""
        parts = [self._shaped(part.media, part.where) for part in self._parts]
        if len({part.shape[1:] for part in parts}) > 1:
            sizes = "; ".join(f"{of.where}: {part.shape[1:]}" for part, of in zip(parts, self._parts))
            remedy = "set size=PIXELS" if all(part.dtype == np.uint8 for part in parts) else "bring them to one shape"
            raise UserError(f"items have different shapes ({sizes}); {remedy}")
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    @cached_property
    def table(self) -> Columns:
        """Labels, captions and numbers of all items."""
        labelled, captioned, numbered = (self._joined(k) for k in ("labels", "captions", "numbers"))
        captions = [read_captions(c, self.where) for c in captioned.tolist()] if captioned is not None else None
        numbers, number_names = None, tuple[str, ...]()
        if numbered is not None:
            rows = numbered.reshape(len(numbered), -1)
            number_names = tuple(f"number{k}" for k in range(rows.shape[1]))
            numbers = read_numbers(rows.tolist(), number_names, self.where)
        if labelled is None:
            return Columns(captions=captions, numbers=numbers, number_names=number_names)
        names = [str(n) for n in self._label_names] if self._label_names is not None else []
        labels, known = read_labels(labelled, self.where, classes=self.classes, names=names)
        return Columns(labels, known, captions, numbers, number_names)

    def _joined(self, name: str) -> NDArray[Any] | None:
        """A column of all parts, or None if no part has it."""
        found = [values for part in self._parts if (values := getattr(part, name)) is not None]
        if found and len(found) < len(self._parts):
            raise UserError(
                f"{self.where}: only {len(found)} of {len(self._parts)} parts have {name}; give all or none"
            )
        return np.concatenate(found) if found else None

    @cached_property
    def _mask(self) -> NDArray[np.bool_]:
        own = np.concatenate([np.full(len(part.media), part.test) for part in self._parts])
        return choose_split(len(own), self.held_out, own)

    @cached_property
    def _files(self) -> list[Path]:
        files = [Path(p) for p in ((self.path,) if isinstance(self.path, str) else self.path)]
        if not files:
            raise UserError("path is empty; name an .npz or .npy file")
        for file in files:
            if not file.is_file():
                raise UserError(f"{file}: there is no such file; give the path of an .npz or .npy file")
        return files

    @cached_property
    def _loaded(self) -> list[tuple[Path, Loaded]]:
        return [(file, read_npz(file)) for file in self._files]

    @cached_property
    def _label_names(self) -> NDArray[Any] | None:
        for _, arrays in self._loaded:
            for name in _NAMES:
                if name in arrays and arrays[name].ndim == 1 and arrays[name].dtype.kind == "U":
                    return arrays[name]
        return None

    @cached_property
    def _parts(self) -> list[_Part]:
        parts: list[_Part] = []
        for file, arrays in self._loaded:
            keys = {suffix: _find(arrays, _X, suffix, self.x) for suffix in ("train", "", "test")}
            if keys["train"] is not None:
                keys[""] = None
            for suffix, key in keys.items():
                if key is None:
                    continue
                count = len(arrays[key])
                labels = _matching(arrays, _Y, suffix, self.y, count, file)
                captions = _matching(arrays, _CAPTIONS, suffix, self.captions, count, file)
                numbers = _matching(arrays, _NUMBERS, suffix, self.numbers, count, file)
                parts.append(_Part(arrays[key], labels, captions, numbers, suffix == "test", f"{file}[{key}]"))
            if all(key is None for key in keys.values()):
                shown = ", ".join(f"{k} {a.shape}" for k, a in arrays.items())
                asked = f"'{self.x}'" if self.x else "none of the usual names (x, images, data, x_train, ...)"
                raise UserError(f"{file}: {asked} is not among its arrays: {shown}; set x=KEY")
        return parts

    def _shaped(self, array: NDArray[Any], where: str) -> NDArray[Any]:
        """One part as (N, C, *S), checked."""
        if array.dtype.kind not in "uifb":
            raise UserError(
                f"{where}: has type {array.dtype}; store real numbers (uint8 for images, float32 for all else)"
            )
        if array.ndim < 2 or 0 in array.shape:
            raise UserError(
                f"{where}: has shape {array.shape}; items lie along the first of at least two axes, none of them empty"
            )
        if array.dtype.kind == "b":
            array = array.astype(np.uint8) * 255
        shaped = channels_first(array, self.layout, where)
        image = array.dtype == np.uint8 and shaped.ndim == 4 and self.read_as != "array"
        if self.read_as == "image" and not image:
            raise UserError(
                f"{where}: read_as = image needs uint8 of shape (N, H, W) or with channels, not {array.dtype} {array.shape}"
            )
        if not image:
            _all_finite(shaped, where)
            if self.size is not None:
                raise UserError(f"size = {self.size}: is for images, and {where} holds arrays; leave size out")
            return (
                shaped.astype(np.float32)
                if shaped.dtype != np.float32 and array.dtype != np.uint8
                else _not_image(shaped)
            )
        if self.size is None or shaped.shape[2:] == (self.size, self.size):
            return shaped
        look = Look(self.size, self.size, shaped.shape[1])
        return np.stack([from_array(item, look) for item in shaped])


def channels_first(array: NDArray[Any], layout: Layout, where: str) -> NDArray[Any]:
    """(N, ...) -> (N, C, *S). `auto` takes an axis of at most 4 at one end of an item, or the one that differs.

    Items of one axis that is channels stay (N, C): plain vectors.
    """
    shape = array.shape[1:]
    if layout == "auto":
        layout = _layout_of(shape, where)
    if layout == "none":
        return array[:, None]
    return array if layout == "first" else np.moveaxis(array, -1, 1)


def _layout_of(shape: tuple[int, ...], where: str) -> Layout:
    if len(shape) == 1:
        return "first" if shape[0] <= _FEW else "none"
    first, last = shape[0] <= _FEW, shape[-1] <= _FEW
    if first != last:
        return "first" if first else "last"
    if len(shape) == 2 or len(set(shape)) == 1:
        return "none"
    if len(set(shape[1:])) == 1 and not first:
        return "first"
    if len(set(shape[:-1])) == 1 and not last:
        return "last"
    raise UserError(
        f"{where}: can't tell which axis of an item {shape} holds the channels; set layout=first, last or none"
    )


def _not_image(array: NDArray[Any]) -> NDArray[Any]:
    """uint8 media mean images, so other uint8 arrays are stored as int16: half the memory of float32."""
    return array.astype(np.int16) if array.dtype == np.uint8 else array


def read_npz(file: Path) -> Loaded:
    """All arrays of an .npz or .npy file (there called `x`); raises UserError for what is none, and for pickles and bombs."""
    try:
        if file.suffix.lower() == ".npy":
            return {"x": np.load(file, mmap_mode="r", allow_pickle=False)}
        _refuse_bomb(file)
        with np.load(file, allow_pickle=False) as loaded:
            if isinstance(loaded, np.ndarray):
                return {"x": loaded}
            return {key: loaded[key] for key in loaded.files}
    except (zipfile.BadZipFile, EOFError, KeyError, OSError) as error:
        raise UserError(
            f"{file}: is not a readable .npz or .npy file ({error}); save it with numpy.savez or numpy.save"
        ) from None
    except ValueError as error:
        if "pickle" in str(error).lower() or "object" in str(error).lower():
            raise UserError(
                f"{file}: holds Python objects (a pickle), which can run code; save plain arrays of one shape"
            ) from None
        raise UserError(
            f"{file}: is not a readable .npz or .npy file ({error}); save it with numpy.savez or numpy.save"
        ) from None


def _refuse_bomb(file: Path) -> None:
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > _MOST_UNPACKED and unpacked > _MOST_RATIO * file.stat().st_size:
        raise UserError(f"{file}: would unpack to {unpacked / 2**30:.0f} GiB, over 100 times its size; save it as .npy")


def _find(arrays: Loaded, names: Sequence[str], suffix: str, asked: str | None) -> str | None:
    """The key of an array by the usual names, for one of the parts 'train', 'test' and '' (all)."""
    if asked is not None:
        return asked if suffix == "" and asked in arrays else None
    lower = {key.lower(): key for key in arrays}
    for name in names:
        for wanted in (f"{name}_{suffix}", f"{suffix}_{name}") if suffix else (name,):
            if wanted in lower:
                return lower[wanted]
    if suffix or names is not _X:
        return None
    large = [key for key, array in arrays.items() if array.ndim >= 2]
    return large[0] if len(large) == 1 else None


def _matching(
    arrays: Loaded, names: Sequence[str], suffix: str, asked: str | None, count: int, file: Path
) -> NDArray[Any] | None:
    """The column beside a part's media, of the same length."""
    if asked is not None and asked not in arrays:
        raise UserError(f"{file}: has no array '{asked}'; its arrays are {', '.join(arrays)}")
    key = asked if asked is not None else _find(arrays, names, suffix, None)
    if key is None:
        return None
    if arrays[key].ndim == 0 or len(arrays[key]) != count:
        found = len(arrays[key]) if arrays[key].ndim else 1
        raise UserError(f"{file}: '{key}' has {found} entries for {count} items; they must be as many")
    return arrays[key]


def _all_finite(array: NDArray[Any], where: str) -> None:
    if array.dtype.kind != "f":
        return
    for start in range(0, len(array), 1024):
        good = np.isfinite(array[start : start + 1024]).reshape(len(array[start : start + 1024]), -1).all(1)
        if not good.all():
            bad = start + int(np.flatnonzero(~good)[0])
            raise UserError(f"{where}: item {bad} holds NaN or infinite values; remove or repair it")
