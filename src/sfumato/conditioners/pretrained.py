"""Text encoders of the transformers library, from a folder on this machine or a name of the hub."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor

from sfumato.conditioners.encoder import Encoder, Span
from sfumato.errors import UserError
from sfumato.files import sha256

DType = Literal["float32", "bfloat16", "float16"]
ENCODERS = (
    "SFUMATO_ENCODERS"  # environment variable: a folder in which encoders are looked for by the last part of a path
)
_TOKENIZERS = (
    "tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "spiece.model", "tokenizer.model", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
_VOCABULARIES = _TOKENIZERS[:6]
_WANTED = ["*.safetensors", "*.json", "*.txt", "*.model"]


class Pretrained(Encoder):
    """An encoder in a folder: `config.json`, `*.safetensors`, and a tokenizer there or in `tokenizer`.

    path: a folder; else a folder of that name below $SFUMATO_ENCODERS; else the name of a model of the hub, taken from the
    cache on this machine (online: or downloaded). Weights are read from safetensors alone and no code of the folder is run.
    They are loaded when a text is not in the cache. dtype: of weights and computation. length: tokens of a window.
    """

    loader: str  # class of transformers

    def __init__(
        self, kind: str, path: str, *, tokenizer: str | None, online: bool, dtype: DType, length: int, key: str
    ) -> None:
        self.transformers = _transformers(kind)
        self.folder = locate(kind, path, online)
        self.tokenizer = self.folder if tokenizer is None else locate(kind, tokenizer, online)
        self.name, self.dtype = f"{kind} {path}", getattr(torch, dtype)
        self.fingerprint = _fingerprint(kind, self.folder, self.tokenizer)
        config = self._asked(self.transformers.AutoConfig.from_pretrained, self.folder)
        self.config = getattr(config, "text_config", None) or config
        longest = self.longest
        if length < 0 or length > longest:
            raise UserError(f"{self.name}: length = {length} must be 1 to {longest}, the most that this encoder takes")
        self.length = length or longest
        room = self.length - len(self.reader.before) - len(self.reader.after)
        if room < 1:
            raise UserError(f"{self.name}: length = {length} leaves no room beside the marks of beginning and end")
        self.key = f"{key} {dtype}"

    @property
    @abstractmethod
    def longest(self) -> int:
        """The most tokens that a window may have."""

    @abstractmethod
    def output(self, model: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states (R, N, D) and pooled vectors (R, P) of the loaded model."""

    @cached_property
    def reader(self) -> _Reader:
        return _Reader(self._asked(self.transformers.AutoTokenizer.from_pretrained, self.tokenizer), self.name)

    @cached_property
    def model(self) -> Any:
        """The model of the library, in evaluation mode."""
        load = getattr(self.transformers, self.loader).from_pretrained
        how = {"use_safetensors": True, "dtype": self.dtype, "output_loading_info": True}
        model, found = self._asked(load, self.folder, **how)
        # What a file lacks, or has in another shape, is drawn at random by the library, with no more than a warning.
        for what in ("missing_keys", "mismatched_keys"):
            if wrong := sorted(map(str, found.get(what, ()))):
                raise UserError(
                    f"{self.name}: {len(wrong)} of the weights can't be read, such as {wrong[0]}; get it again"
                )
        return model.eval().requires_grad_(False)

    @final
    def run(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        model = self.model
        if model.device != ids.device:
            model.to(ids.device)
        return self.output(model, ids, mask)

    def _asked(self, load: Callable[..., Any], folder: Path, **more: Any) -> Any:
        try:
            return load(str(folder), local_files_only=True, trust_remote_code=False, **more)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            said = " ".join(str(error).split())[:200]
            raise UserError(f"{self.name}: {folder} can't be read by the transformers library: {said}") from None


def locate(kind: str, path: str, online: bool) -> Path:
    """The folder meant by a path or a name of the hub. Raises UserError if there is none."""
    beside = os.environ.get(ENCODERS)
    if not path.strip():
        raise UserError(f"conditioner={kind} needs conditioner.path, the folder of an encoder or its name on the hub")
    for folder in (Path(path).expanduser(), *([Path(beside) / Path(path).name] if beside else [])):
        if folder.is_dir():
            return folder
        if folder.is_file():
            raise UserError(f"{folder}: a text encoder is a folder with config.json and *.safetensors; give the folder")
    if path.count("/") == 1 and not path.startswith((".", "/", "~")):
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(path, local_files_only=not online, allow_patterns=_WANTED))
        except Exception as error:  # the library raises many kinds, some of them of packages below it
            said = type(error).__name__
            if online:
                raise UserError(f"conditioner.path = {path}: it can't be downloaded from the hub ({said})") from None
    raise UserError(
        f"conditioner.path = {path}: there is no such folder, and no model of that name in the hub's cache on this machine; "
        f"set conditioner.online=true to download it, or ${ENCODERS} to a folder that has it"
    )


def _fingerprint(kind: str, folder: Path, tokenizer: Path) -> str:
    """sha256 of the names and contents of all that is read. Raises UserError for what is missing."""
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise UserError(
            f"{folder}: has no *.safetensors, and other weights can run code and are not read; save them as safetensors"
        )
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: has no config.json; give the folder of an encoder that transformers has written")
    words = [tokenizer / name for name in _TOKENIZERS if (tokenizer / name).is_file()]
    if not any(file.name in _VOCABULARIES for file in words):
        raise UserError(
            f"{tokenizer}: has no tokenizer ({', '.join(_VOCABULARIES[:2])}, {_VOCABULARIES[4]}, ...); put its files there, "
            f"or name their folder, conditioner={{type: {kind}, tokenizer: FOLDER, ...}}"
        )
    digest = hashlib.sha256()
    for file in (*weights, folder / "config.json", *words):
        digest.update(f"{file.name} {sha256(file)}\n".encode())
    return digest.hexdigest()


def _transformers(kind: str) -> Any:
    if importlib.util.find_spec("transformers") is None:
        raise UserError(f'conditioner={kind} needs the package transformers; run `pip install "sfumato[text]"`')
    library = importlib.import_module("transformers")
    library.utils.logging.disable_progress_bar()
    return library


class _Reader:
    """A tokenizer of transformers. What it puts before and after a text is found by asking it."""

    def __init__(self, tokenizer: Any, name: str) -> None:
        self._tokenizer, self._name = tokenizer, name
        bare: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
        marked: list[int] = tokenizer("a", add_special_tokens=True)["input_ids"]
        start = next((i for i in range(len(marked)) if marked[i : i + len(bare)] == bare), 0)
        self.before: Sequence[int] = tuple(marked[:start])
        self.after: Sequence[int] = tuple(marked[start + len(bare) :])
        ends = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        self.pad = int(next(value for value in ends if value is not None))

    def read(self, text: str) -> tuple[list[int], list[Span]]:
        fast = bool(getattr(self._tokenizer, "is_fast", False))
        found = self._tokenizer(
            str(text), add_special_tokens=False, return_offsets_mapping=fast, truncation=False, verbose=False
        )
        ids: list[int] = found["input_ids"]
        if fast:
            return ids, [(int(a), int(b)) for a, b in found["offset_mapping"]]
        return ids, [(0, 0)] * len(ids)  # where tokens stand is not known: weights of prompts act on none
