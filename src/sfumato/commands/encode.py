"""`sfumato data encode`."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sfumato.codecs import Latent, load_weights, open_codec
from sfumato.commands.data import opened
from sfumato.commands.say import duration, say, say_json, size
from sfumato.commands.words import only_settings, whole_number
from sfumato.data import Latents, pack
from sfumato.data.packed import INDEX, is_packed
from sfumato.device import choose_device
from sfumato.errors import UserError
from sfumato.spec import parameters

_TAKEN = ("codec", "batch", "tile", "dtype", "cache")


def encode(source: str, words: Sequence[str], *, out: Path, fresh: bool, device: str, as_json: bool) -> None:
    """Write the latents of all items, unless the folder holds exactly these already."""
    settings = only_settings(words)
    path = settings.pop("codec", None)
    if path is None:
        raise UserError("`sfumato data encode` needs codec=RUN, the run or folder of an autoencoder")
    batch, tile = whole_number(settings, "batch", 64), whole_number(settings, "tile", 0)
    dtype, cache = settings.get("dtype", "float16"), settings.get("cache")
    if dtype not in ("float16", "float32"):
        raise UserError(f"dtype={dtype}: latents are kept as float16 or float32")
    spec = opened(source, settings, _TAKEN)
    if "cache" in parameters(spec.cls):
        spec = spec.with_(cache=0.0)
    data, codec_spec = spec.build(), open_codec(path)
    codec = codec_spec.build(data.info)
    if not isinstance(codec, Latent):
        raise UserError(f"codec={path}: has no network and nothing to encode; give the run or folder of an autoencoder")
    load_weights(codec, path)
    where = choose_device(device)
    codec.eval().requires_grad_(False).to(where)

    def latents(media: Tensor) -> Tensor:
        parts = torch.split(media, batch)
        made = [codec.encode_tiled(p.to(where), tile) if tile else codec.encode(p.to(where)) for p in parts]
        return torch.cat(made)

    encoded = Latents(data, latents, codec.sha256 or "", cache)
    if is_packed(out) and not fresh:
        _check_up_to_date(out, encoded, dtype, source, path)
        said = {"data": source, "folder": str(out), "items": len(data), "encoded": 0}
        say_json(said) if as_json else say(f"{out}: holds the latents of {source} already; nothing to do")
        return
    began = time.monotonic()
    made = pack(encoded, out, dtype=dtype, source=source, fresh=fresh)
    spent = time.monotonic() - began
    if as_json:
        say_json({"data": source, "folder": str(out), "items": made.items, "encoded": made.items, "bytes": made.bytes})
        return
    shape = " x ".join(map(str, codec.shape))
    say(f"{out}: {made.items:,} latents of {shape}, {size(made.bytes)}, in {duration(spent)}")
    say(f"next: sfumato train image data={out} codec={path}")


def _check_up_to_date(out: Path, encoded: Latents, dtype: str, source: str, path: str) -> None:
    """Raise UserError unless a folder holds these latents: of this data, by this autoencoder, in this type."""
    index = json.loads((out / INDEX).read_text(encoding="utf-8"))
    sha = (index.get("encoded") or {}).get("sha256", "")
    if sha != encoded.sha256:
        whose = (
            f"latents of another autoencoder ({sha[:8]}) than codec={path} ({encoded.sha256[:8]})"
            if sha
            else "no latents"
        )
        raise UserError(f"-o {out}: holds {whose}; --fresh replaces them, or give another folder")
    if index["source_fingerprint"] != encoded.fingerprint():
        raise UserError(f"-o {out}: holds latents of other data than {source} is now; --fresh replaces them")
    if index["dtype"] != dtype:
        raise UserError(f"-o {out}: holds latents as {index['dtype']}, not {dtype}; --fresh replaces them")
