"""`data=PATH`: which kind of data set lies there."""

from __future__ import annotations

from pathlib import Path

from sfumato.data.arrays import Arrays
from sfumato.data.base import Data
from sfumato.data.cifar10 import Cifar10, find_files
from sfumato.data.folder import Folder
from sfumato.data.parquet import Parquet
from sfumato.data.tar import Tar
from sfumato.errors import UserError, did_you_mean
from sfumato.registry import members
from sfumato.spec import Spec, parameters, parse

_BY_SUFFIX: dict[str, type[Data]] = {".npz": Arrays, ".npy": Arrays, ".parquet": Parquet, ".tar": Tar}


def open_data(text: str) -> Spec[Data]:
    """The data set that a name or a path means.

    A registered name that needs no path (`digits`, `shapes`, one of the user's own); an .npz, .npy, .parquet or .tar
    file, or a pattern of the last two; a folder holding CIFAR-10, parquet files, tar shards, or pictures.
    """
    known = {k: c for k, c in members("data").items() if "path" not in parameters(c)}
    if text in known:
        return parse(Data, text)
    path = Path(text)
    by_suffix = _BY_SUFFIX.get(path.suffix.lower())
    if path.is_dir():
        return Spec(_kind_of(path), path=text)
    if by_suffix is not None and (path.is_file() or "*" in path.name):
        return Spec(by_suffix, path=text)
    if path.is_file():
        raise UserError(
            f"data = '{text}': .npz, .npy, .parquet and .tar files are read; give one of these or a folder of pictures"
        )
    raise UserError(f"data = '{text}': there is no such file, folder or built-in set; {did_you_mean(text, known)}")


def _kind_of(folder: Path) -> type[Data]:
    try:
        find_files(folder)
        return Cifar10
    except UserError:
        pass
    for suffix, kind in _BY_SUFFIX.items():
        found = sorted(folder.glob(f"*{suffix}"))
        if found and kind is Arrays:
            raise UserError(f"data = '{folder}': holds {len(found)} {suffix} files; name one, such as {found[0]}")
        if found:
            return kind
    return Folder
