"""`data=PATH`: which kind of data set lies there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sfumato.data.arrays import Arrays
from sfumato.data.audio_sets import AudioFolder, Clips, holds_clips, holds_sounds
from sfumato.data.base import Data
from sfumato.data.cifar10 import Cifar10, find_files
from sfumato.data.fields import Fields, holds_fields
from sfumato.data.folder import Folder
from sfumato.data.hugging_face import HuggingFace, is_saved
from sfumato.data.packed import Packed, is_packed
from sfumato.data.parquet import Parquet
from sfumato.data.places import is_address
from sfumato.data.tar import Tar
from sfumato.data.voxel_files import holds_models
from sfumato.data.voxels import SUFFIXES, Voxels, holds_voxels
from sfumato.errors import UserError, did_you_mean
from sfumato.registry import members
from sfumato.spec import Spec, parameters, parse, typed

_HUB = "hf:"
_BY_SUFFIX: dict[str, type[Data]] = {".npz": Arrays, ".npy": Arrays, ".parquet": Parquet, ".tar": Tar}


def open_data(text: str) -> Spec[Data]:
    """The data set that a name or a path means.

    A registered name that needs no path (`digits`, `shapes`, one of the user's own); an .npz, .npy, .parquet or .tar
    file, or a pattern of the last two; a folder holding packed data, a data set of the `datasets` library, CIFAR-10,
    parquet files, tar shards, pictures, sounds, voxel models or meshes, or one .npy file an item; `hf:NAME` on the Hugging
    Face hub; an address such as s3://bucket/train-*.tar, of tar shards unless it ends in .parquet; or a set with its
    settings, `{type: NAME, setting: value}`, which may be made of another one.
    """
    if isinstance(plain := typed(text), Mapping):
        return parse(Data, plain, path="data")
    known = {k: c for k, c in members("data").items() if "path" not in parameters(c)}
    if text in known:
        return parse(Data, text)
    if text.startswith(_HUB):
        return Spec(HuggingFace, path=text.removeprefix(_HUB))
    if is_address(text):
        return Spec(Parquet if text.lower().endswith(".parquet") else Tar, path=text)
    path = Path(text)
    by_suffix = _BY_SUFFIX.get(path.suffix.lower())
    if path.is_dir():
        return Spec(_kind_of(path), path=text)
    if by_suffix is Arrays and path.is_file() and holds_clips(path):
        return Spec(Clips, path=text)
    if by_suffix is Arrays and path.is_file() and holds_models(path):
        return Spec(Voxels, path=text)
    if by_suffix is not None and (path.is_file() or "*" in path.name):
        return Spec(by_suffix, path=text)
    if path.suffix.lower() in SUFFIXES and path.is_file():
        raise UserError(f"data = '{text}': is one model; put several into a folder and give that")
    if path.is_file():
        raise UserError(
            f"data = '{text}': .npz, .npy, .parquet and .tar files are read; give one of these or a folder of pictures"
        )
    raise UserError(f"data = '{text}': there is no such file, folder or built-in set; {did_you_mean(text, known)}")


def _kind_of(folder: Path) -> type[Data]:
    if is_packed(folder):
        return Packed
    if is_saved(folder):
        return HuggingFace
    try:
        find_files(folder)
        return Cifar10
    except UserError:
        pass
    for suffix, kind in _BY_SUFFIX.items():
        found = sorted(folder.glob(f"*{suffix}"))
        if suffix == ".npy" and len(found) != 1:
            continue
        if found and kind is Arrays:
            raise UserError(f"data = '{folder}': holds {len(found)} {suffix} files; name one, such as {found[0]}")
        if found:
            return kind
    if holds_sounds(folder):
        return AudioFolder
    if holds_voxels(folder):
        return Voxels
    return Fields if holds_fields(folder) else Folder
