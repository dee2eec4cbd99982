"""An autoencoder on disk: what `codec=FOLDER` reads.

    model.safetensors   the averaged weights of the network, and what the inner codec has measured
    config.json         {"format": 1, "sfumato": version, "autoencoder": {"info", "codec"}, "sha256": ..., "trained": ...}
    README.md, MANIFEST.json   as in a model folder

Read as well: the folder of a latent diffusion model, for its codec, and those of diffusers' AutoencoderKL and AutoencoderDC.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import sfumato
from sfumato.codecs.base import Codec
from sfumato.codecs.latent import Latent, digest_of
from sfumato.compact import expanded
from sfumato.core import DataInfo
from sfumato.errors import UserError
from sfumato.files import CorruptError, refuse_pickle, replacing_folder, verify_manifest
from sfumato.nn.autoencoder_import import WEIGHTS as THEIRS
from sfumato.nn.autoencoder_import import read_settings, renamed
from sfumato.registry import members
from sfumato.spec import Spec, parse

FORMAT, WEIGHTS, CONFIG = 1, "model.safetensors", "config.json"
KEY = "autoencoder"  # of config.json; a diffusion model has `model`


def save_autoencoder(
    folder: Path, codec: Latent, spec: Spec[Codec], info: DataInfo, trained: Mapping[str, Any]
) -> Path:
    """Write an autoencoder's folder as a whole, replacing an older one."""
    if folder.exists() and not (folder / CONFIG).is_file() and any(folder.iterdir()):
        raise UserError(f"{folder}: something else is there, not an older autoencoder; choose another folder")
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in codec.weights().items()}
    sha = digest_of(tensors)
    config = {
        "format": FORMAT,
        "sfumato": sfumato.__version__,
        KEY: {"info": _plain(info), "codec": spec.with_(path=None, sha256=None).to_dict()},
        "sha256": sha,
        "trained": json.loads(json.dumps(trained, default=str), parse_constant=lambda name: None),
    }
    with replacing_folder(folder) as made:
        save_file(tensors, made / WEIGHTS, metadata={"format": "pt"})
        (made / CONFIG).write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (made / "README.md").write_text(_card(codec, info, config), encoding="utf-8")
    return folder


def open_codec(text: str) -> Spec[Codec]:
    """The codec that a name or a folder means: `pixels`, a run or model folder of `sfumato train ae`, one of diffusers.

    A folder's weights are hashed: what is built from the spec is these weights or an error.
    """
    if text in members("codec"):
        return parse(Codec, text)
    folder = Path(text)
    if not folder.is_dir():
        raise UserError(
            f"codec = '{text}': there is no such folder and no codec of that name; give the run of an autoencoder "
            f"(`sfumato train ae data=...` makes one) or one of {', '.join(members('codec'))}"
        )
    codec, tensors = _read(folder)
    return codec.with_(path=text, sha256=digest_of(tensors))


def load_weights(codec: Latent, path: str) -> None:
    """Fill a new codec with the weights of a folder; raises UserError if they are not those that its sha256 names."""
    _, tensors = _read(Path(path))
    sha = digest_of(tensors)
    if codec.sha256 not in (None, sha):
        raise UserError(
            f"codec.path = {path}: holds another autoencoder ({sha[:8]}) than the recipe was made with "
            f"({str(codec.sha256)[:8]}); give the old folder, or codec={path} to take this one"
        )
    own = codec.weights()
    wrong = [k for k in own if k not in tensors or tensors[k].shape != own[k].shape] + [
        k for k in tensors if k not in own
    ]
    if wrong:
        raise UserError(f"codec.path = {path}: its weights belong to other settings: {', '.join(wrong[:4])}")
    codec.load_state_dict(tensors, strict=False)
    codec.sha256 = sha


def _read(path: Path) -> tuple[Spec[Codec], dict[str, Tensor]]:
    """(settings without path, tensors by the codec's own names)."""
    folder = path if (path / CONFIG).is_file() else path / "model"
    if not (folder / CONFIG).is_file():
        more = "; let its training reach a checkpoint" if (path / "recipe.yaml").is_file() else ""
        raise UserError(f"codec = '{path}': has no autoencoder, {CONFIG} is missing{more}")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise CorruptError(folder / CONFIG, "is not JSON that can be read") from None
    if not isinstance(config, dict):
        raise CorruptError(folder / CONFIG, "holds no settings")
    if "_class_name" in config:
        settings = read_settings(config, folder)
        inner: Spec[Codec] = parse(Codec, "pixels")
        tensors = renamed(settings, _tensors(folder / THEIRS))
        whole = {f"net.{k}": v for k, v in tensors.items()}
        channels = settings.build((int(config.get("in_channels", 3)), 32, 32)).shape[0]
        unmeasured = inner.build(DataInfo((channels, 32, 32))).state_dict()
        return Spec(Latent, autoencoder=settings, inner=inner), whole | {f"inner.{k}": v for k, v in unmeasured.items()}
    verify_manifest(folder)
    if int(config.get("format", 0)) > FORMAT:
        raise UserError(
            f"{folder}: format {config['format']} is newer than this sfumato reads; `pip install -U sfumato`"
        )
    if KEY in config:
        spec = parse(Codec, config[KEY]["codec"], path="codec")
        return spec, _tensors(folder / WEIGHTS)
    stored = (config.get("model") or {}).get("codec") or {}
    if stored.get("type") != Latent.kind:
        raise UserError(
            f"codec = '{path}': is a model with codec={stored.get('type')}, which has no autoencoder; give the run of one"
        )
    named = {k.removeprefix("codec."): v for k, v in _tensors(folder / WEIGHTS).items() if k.startswith("codec.")}
    spec = parse(Codec, stored, path="codec")
    return spec, {k: v for k, v in named.items() if not k.startswith("whitening.")}


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        return expanded(load_file(file))
    except FileNotFoundError:
        if file.with_suffix(".bin").exists():
            refuse_pickle(file.with_suffix(".bin"))
        raise CorruptError(file, "is missing") from None
    except SafetensorError as error:
        raise CorruptError(file, f"is not a safetensors file that can be read ({error})") from None


def _plain(info: DataInfo) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(info).items()}


def _card(codec: Latent, info: DataInfo, config: Mapping[str, Any]) -> str:
    count = sum(p.numel() for p in codec.net.parameters())
    facts = {
        "media": f"{info.kind} of shape {' x '.join(map(str, info.shape))}",
        "latent": f"{' x '.join(map(str, codec.shape))}: one position of {codec.net.factor} in every direction",
        "network": f"autoencoder {codec.net.kind}, bottleneck {codec.net.bottleneck.kind}, {count:,} parameters",
        "sha256 of the weights": config["sha256"],
        **{f"trained: {k}": str(v) for k, v in config["trained"].items() if isinstance(v, str | int | float)},
        "written by": f"sfumato {config['sfumato']}",
    }
    table = "\n".join(f"| {key} | {' '.join(value.replace('|', ' ').split())} |" for key, value in facts.items())
    return (
        "---\nlibrary_name: sfumato\n---\n\n# Autoencoder\n\nThe codec of a latent diffusion model.\n\n"
        f"| | |\n| --- | --- |\n{table}\n\n"
        "`sfumato train image data=... codec=THIS_FOLDER` trains in its latent.\n"
    )
