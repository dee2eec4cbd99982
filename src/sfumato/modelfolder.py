"""The model folder: what a trained model is on disk.

    model.safetensors   the averaged weights, and the codec's measured buffers
    config.json         {"format": 1, "sfumato": version, "model": ..., "sampling": ..., "trained": ...}
    README.md           the model card
    MANIFEST.json       size and sha256 of each file, checked when the folder is read

Tensors and JSON only: nothing in it can run code. `config.json` may name registered types alone.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import sfumato
from sfumato.compact import compacted, expanded
from sfumato.core import DataInfo
from sfumato.errors import UserError
from sfumato.files import PICKLES, CorruptError, refuse_pickle, replacing_folder, verify_manifest
from sfumato.kinds import kind_of
from sfumato.model import Model, ModelSpec
from sfumato.tensorfile import StoredTensors

FORMAT = 1
SHIPPED = Path(__file__).parent / "models"
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
AVERAGES = "ema"  # of a checkpoint: averaged weights by the number of the average, 0.NAME, 1.NAME
CARD = "README.md"
_CODEC = "codec.net."  # how names of an autoencoder's weights begin
_NAMED = 6  # tensors listed in an error


@final
@dataclass(frozen=True)
class Stored:
    """What a model folder holds: the model with its weights, and the plain data beside it."""

    model: Model
    spec: ModelSpec
    sampling: Mapping[str, Any]
    trained: Mapping[str, Any]


def find_folder(path: str | Path) -> Path:
    """The model folder meant by a path: itself, or `model/` of a run folder. Raises UserError naming what is missing."""
    folder = Path(path)
    if folder.is_file():
        refuse_pickle(folder)
        raise UserError(f"{folder}: a model is a folder with {WEIGHTS} and {CONFIG}; give the folder, not a file of it")
    if not folder.exists():
        return _shipped(path)
    if (folder / CONFIG).is_file() or (folder / WEIGHTS).is_file():
        return folder
    if (folder / "model").is_dir():
        return folder / "model"
    if (folder / "recipe.yaml").is_file():
        raise UserError(f"{folder}: this run has saved no model yet; let `sfumato train {folder}` reach a checkpoint")
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in PICKLES:
            refuse_pickle(file)
    raise UserError(f"{folder}: not a model or run folder, it has no {CONFIG}; give a folder that sfumato has written")


def shipped() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(entry.name for entry in SHIPPED.iterdir() if (entry / CARD).is_file()) if SHIPPED.is_dir() else []


def _shipped(path: str | Path) -> Path:
    """The folder of a model that comes with the package, by its name. Raises UserError naming what is missing."""
    name = str(path)
    if name not in shipped():
        known = f", or one of the models that ship: {', '.join(shipped())}" if shipped() else ""
        raise UserError(
            f"{path}: there is no such model or run; `sfumato runs list` shows the runs that there are{known}"
        )
    if not (SHIPPED / name / WEIGHTS).is_file():
        raise UserError(
            f"{name}: the weights of this model are not in this installation; install sfumato again, or train it with "
            f"`sfumato train {name} data=PATH`"
        )
    return SHIPPED / name


def save(
    folder: str | Path,
    model: Model,
    spec: ModelSpec,
    *,
    sampling: Mapping[str, Any],
    trained: Mapping[str, Any],
    card: str | None = None,
) -> Path:
    """Write a model folder as a whole, replacing an older one; any other folder that holds files is left alone."""
    final = Path(folder)
    if final.exists() and not (final.is_dir() and ((final / CONFIG).is_file() or not any(final.iterdir()))):
        raise UserError(f"{final}: something else is there, not an older model; choose another folder")
    trained = json.loads(json.dumps(trained, default=str), parse_constant=lambda name: None)  # JSON has no NaN
    config = {
        "format": FORMAT,
        "sfumato": sfumato.__version__,
        "model": spec.to_dict(),
        "sampling": dict(sampling),
        "trained": trained,
    }
    with replacing_folder(final) as temporary:
        save_file(_tensors(model), temporary / WEIGHTS, metadata={"format": "pt"})
        _write_config(temporary, config)
        text = card if card is not None else write_card(final, model, config)
        (temporary / CARD).write_text(text, encoding="utf-8")
    return final


def save_sampling(path: str | Path, sampling: Mapping[str, Any]) -> Path:
    """Change how a model is sampled by default, as a whole or not at all; everything else in its folder stays.

    Needs room for a second copy while it works. Raises CorruptError rather than give a changed file a new manifest.
    """
    folder = find_folder(path)
    verify_manifest(folder)
    config = {**read_config(folder), "sampling": dict(sampling)}
    with replacing_folder(folder.resolve()) as temporary:
        shutil.copytree(folder, temporary, dirs_exist_ok=True)
        _write_config(temporary, config)
    return folder


def save_compact(path: str | Path, folder: str | Path, *, trained: Mapping[str, Any], card: str | None = None) -> Path:
    """Write a copy of a model folder with its weights in 8 bits (`compact`), a quarter of the size. It loads like any other.

    An autoencoder's weights get 16 bits: what they are off by is heard as hiss in silence, for every sample is decoded by
    them at full strength, where errors of the network that denoises are mended by its next steps.

    trained: what is added to the record of the training. card: in place of the model card.
    """
    source, final = find_folder(path), Path(folder)
    verify_manifest(source)
    config = read_config(source)
    config["trained"] = {**(config.get("trained") or {}), **json.loads(json.dumps(trained, default=str))}
    with replacing_folder(final) as temporary:
        save_file(compacted(read_tensors(source), half=_CODEC), temporary / WEIGHTS, metadata={"format": "pt"})
        _write_config(temporary, config)
        text = card if card is not None else (source / CARD).read_text(encoding="utf-8")
        (temporary / CARD).write_text(text, encoding="utf-8")
    return final


def _write_config(folder: Path, config: Mapping[str, Any]) -> None:
    (folder / CONFIG).write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def load(path: str | Path) -> Stored:
    """Read and check a model folder. Leaves torch's global generator as it was."""
    folder = find_folder(path)
    verify_manifest(folder)
    config = read_config(folder)
    spec = _model_spec(config, folder / CONFIG)
    with torch.random.fork_rng(devices=[]):  # the fresh weights are overwritten at once
        model = spec.build()
    fit(model, read_tensors(folder), folder / WEIGHTS)
    return Stored(model, spec, config.get("sampling") or {}, config.get("trained") or {})


def load_model(path: str | Path) -> Model:
    """The model of a model or run folder, or of a checkpoint of a run: its averaged weights as they were then.

    A checkpoint (`runs/x/checkpoints/step-00001200`) has weights alone: settings and codec are those of its run's model.
    """
    folder = Path(path)
    averages = sorted(folder.glob(f"{AVERAGES}*.safetensors"))  # one file, or one of each process that wrote
    if not averages:
        return load(folder).model
    verify_manifest(folder, [file.name for file in averages])
    model = load(folder.parent.parent).model
    stored = StoredTensors(folder, AVERAGES)
    first = {name.removeprefix("0."): stored[name] for name in stored if name.startswith("0.")}
    fit(model, {**model.state_dict(), **first}, averages[0])
    return model


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json`, with its format checked."""
    file = folder / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CorruptError(file, "is missing") from None
    except (ValueError, RecursionError):
        raise CorruptError(file, "is not JSON that can be read") from None
    number = config.get("format") if isinstance(config, dict) else None
    if not isinstance(number, int):
        raise CorruptError(file, "has no 'format' and is not the config of a sfumato model")
    if number > FORMAT:
        raise UserError(
            f"{file}: format {number} is newer than this sfumato reads ({FORMAT}); run `pip install -U sfumato`"
        )
    return dict(config)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of `model.safetensors` on the CPU, those in 8 bits as float32."""
    file = folder / WEIGHTS
    try:
        return expanded(load_file(file))
    except FileNotFoundError:
        raise CorruptError(file, "is missing") from None
    except SafetensorError as error:
        raise CorruptError(file, f"is not a safetensors file that can be read ({error})") from None


def fit(module: nn.Module, tensors: Mapping[str, Tensor], where: str | Path) -> None:
    """Copy tensors into a module of exactly these names and shapes; raises UserError naming each that does not fit."""
    own = module.state_dict()
    wrong = [f"{name} is missing" for name in own if name not in tensors]
    wrong += [f"{name} is not part of the model" for name in tensors if name not in own]
    wrong += [
        f"{name} is {_size(tensors[name])} and should be {_size(own[name])}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    if wrong:
        more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        raise UserError(f"{where}: these weights belong to other settings: {'; '.join(wrong[:_NAMED])}{more}")
    module.load_state_dict(dict(tensors))


def write_card(folder: Path, model: Model, config: Mapping[str, Any]) -> str:
    """The model card: what it is, what it was trained on, how to use it."""
    spec, trained, info = config["model"], config["trained"], model.info
    name = folder.resolve().parent.name if folder.name == "model" else folder.name
    shown = folder.name if folder.is_absolute() else folder.as_posix()  # no path of the machine that it was made on
    count = sum(p.numel() for p in model.parameters())
    given = {"caption": 'prompt="..."', "label": "label=0", "number": "number=0.5"}
    columns = () if model.conditioner is None else model.conditioner.columns
    files = ", ".join(f'"{c}": "FILE"' for c in (model.conditioner.media if model.conditioner is not None else ()))
    asked = [given[c] for c in columns if c in given] + ([f"given={{{files}}}"] if files else [])
    ask = ", ".join([*asked, "seed=0"])
    facts = {
        "makes": f"{info.kind} of shape {' x '.join(map(str, info.shape))}",
        "asked by": ", ".join(columns) or "nothing: unconditional",
        "network": f"{spec['network']['type']}, {count:,} parameters with codec and conditioner",
        "process, parameterization": f"{spec['process']['type']}, {spec['parameterization']['type']}",
        **{f"trained: {key}": str(value) for key, value in trained.items() if isinstance(value, str | int | float)},
        "written by": f"sfumato {config['sfumato']}",
    }
    table = "\n".join(f"| {_cell(key)} | {_cell(value)} |" for key, value in facts.items())
    return (
        f"---\nlibrary_name: sfumato\ntags: [diffusion]\n---\n\n# {_cell(name)}\n\n"
        f"A diffusion model trained with sfumato.\n\n| | |\n| --- | --- |\n{table}\n\n"
        "```python\nfrom sfumato import Pipeline\n\n"
        f"pipeline = Pipeline.from_pretrained({json.dumps(shown)})\npipeline({ask}).images[0]\n```\n\n"
        "The weights are in `model.safetensors`, every setting in `config.json`; `MANIFEST.json` has each file's sha256.\n"
        "The licence of the training data holds for what the model makes.\n"
    )


def _cell(value: str) -> str:
    return " ".join(str(value).replace("|", "\\|").replace("<", "&lt;").split())


def _model_spec(config: Mapping[str, Any], file: Path) -> ModelSpec:
    settings = config.get("model")
    if settings is None and "autoencoder" in config:
        raise UserError(
            f"{file.parent}: is an autoencoder, which samples nothing; train with codec={file.parent} first"
        )
    try:
        data = dict(settings) if isinstance(settings, Mapping) else {}
        kind_of(TypeAdapter(DataInfo).validate_python(data["info"]))
        return ModelSpec.from_dict(data)
    except KeyError as error:
        raise CorruptError(file, f"has no 'model.{error.args[0]}'") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("model", "info", *first["loc"])))
        raise CorruptError(file, f"'{where}' can't be read: {first['msg'].lower()}") from None
    except UserError as error:
        raise UserError(f"{file}: {error}; a type of your own is made known by --import FILE") from None


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """All weights and buffers on the CPU, each with memory of its own: safetensors stores no two names for one tensor."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a single number"
