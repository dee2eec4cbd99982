"""From what was typed to a recipe: a name, a file or a run, and `key=value` settings."""

from __future__ import annotations

import inspect
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from sfumato.codecs import Codec, open_codec
from sfumato.data import Data, open_data
from sfumato.errors import UserError, did_you_mean
from sfumato.recipes.base import Recipe, dials, find_recipe, recipes
from sfumato.spec import Marks, Spec, check_arguments, parameters, parse, read_yaml, typed

ALIASES = {
    "steps": "sampling.steps",
    "solver": "sampling.solver",
    "grid": "sampling.grid",
    "guidance": "sampling.guidance.scale",
    "minutes": "train.minutes",
    "samples": "train.samples",
    "batch": "train.batch",
    "lr": "train.lr",
}
_SUFFIXES = (".yaml", ".yml", ".json")


def load_recipe(source: str | Path, settings: Mapping[str, str] | None = None) -> Spec[Recipe]:
    """The recipe of a built-in name, a YAML file or a run folder, with settings changed.

    A setting is, in this order: a dial of the recipe function (`size=s`), a dotted path (`network.width=96`), a short
    name (`lr=`, see ALIASES), or the last part of a path where only one path ends so. `data=` takes a path or a name.
    """
    asked = dict(settings or {})
    path = Path(source)
    if path.is_dir() and str(source) not in recipes():
        if not (path / "recipe.yaml").is_file():
            raise UserError(f"{path}: not a run folder, it has no recipe.yaml; give a recipe's name, a file or a run")
        made = read_recipe(path / "recipe.yaml")
    elif path.suffix.lower() in _SUFFIXES:
        made = read_recipe(path)
    else:
        function = find_recipe(str(source))
        own: dict[str, Any] = {name: asked.pop(name) for name in dials(function) if name in asked}
        if "data" in own:
            own["data"] = _data_settings(_data(own["data"]), asked, taken=dials(function))
        if "codec" in own:
            own["codec"] = _codec(own["codec"])
        made = function(**check_arguments(function, own, name=f"recipe '{source}'"))
    return override_all(made, asked)


def read_recipe(file: Path) -> Spec[Recipe]:
    """A recipe from a YAML or JSON file; errors name file and line."""
    plain, marks = read_yaml(file)
    if not isinstance(plain, Mapping):
        raise UserError(f"{file}: must hold the settings of a recipe, not {plain!r}")
    plain = dict(plain)
    if isinstance(plain.get("data"), str):
        plain["data"] = _data(plain["data"], marks)
    if isinstance(plain.get("codec"), str):
        plain["codec"] = _codec(plain["codec"])
    made = parse(Recipe, plain, marks=marks)
    _check_complete(made, file)
    return made


def override_all(spec: Spec[Recipe], settings: Mapping[str, str]) -> Spec[Recipe]:
    """The recipe with `key=value` settings changed, types before the settings of types."""
    paths = {key: find_path(spec, key, value) for key, value in settings.items()}
    for path in (doubled := list(paths.values())):
        if doubled.count(path) > 1:
            keys = [key for key, found in paths.items() if found == path]
            raise UserError(f"{' and '.join(f'{key}=' for key in keys)} both set {path}; give one of them")
    for key, path in sorted(paths.items(), key=lambda item: item[1].count(".")):
        value: Any = settings[key]
        if path == "data":
            value = _data(value)
        elif path == "codec":
            value = _codec(value)
        elif path == "sampling.guidance.scale" and spec.override("sampling.guidance", "none") == spec:
            path, value = "sampling.guidance", {"type": "cfg", "scale": value}
        spec = spec.override(path, value)
    return _one_budget(spec, set(paths.values()))


def find_path(spec: Spec[Recipe], key: str, value: str) -> str:
    """The dotted path that a short or whole name means."""
    known = list(dict.fromkeys(path.removesuffix(".type") for path, _ in spec.leaves()))
    if key in parameters(spec.cls) or key in known or "." in key:
        return key
    if key == "guidance" and not _is_number(value):
        return "sampling.guidance"
    if key in ALIASES:
        return ALIASES[key]
    ends = [path for path in known if path.rpartition(".")[2] == key]
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise UserError(f"{key}= could mean {', '.join(ends)}; write the whole name")
    names = {*known, *ALIASES, *(path.rpartition(".")[2] for path in known)}
    raise UserError(f"there is no setting '{key}'; {_suggest(key, names, known)}")


def _suggest(key: str, names: set[str], known: list[str]) -> str:
    said = did_you_mean(key, names)
    near = said.removeprefix("did you mean '").removesuffix("'?")
    if near not in names:
        return "`sfumato show recipe NAME` lists all settings"
    whole = ALIASES.get(near) or next((path for path in known if path.endswith(f".{near}")), near)
    return said if whole == near else f"did you mean '{near}' ({whole})?"


def _one_budget(spec: Spec[Recipe], changed: set[str]) -> Spec[Recipe]:
    """A budget that was asked for takes the place of the other one."""
    for ours, other in (("samples", "minutes"), ("minutes", "samples")):
        if f"train.{ours}" in changed and f"train.{other}" not in changed and _get(spec, "train", ours) is not None:
            spec = spec.override(f"train.{other}", None)
    return spec


def _get(spec: Spec[Any], first: str, second: str) -> Any:
    return getattr(getattr(spec, first), second)


def _data(text: Any, marks: Marks | None = None) -> Any:
    """A path or a name, or `{type: NAME, setting: value}` for a set made of another one."""
    text = typed(text)
    if not isinstance(text, str):
        return text if isinstance(text, Spec) else parse(Data, text, path="data")
    try:
        return open_data(text)
    except UserError as error:
        where = (marks or {}).get("data")
        raise UserError(f"{where}: {error}" if where else str(error)) from None


def _codec(text: Any) -> Spec[Codec] | Any:
    """A codec's name, or the folder of an autoencoder; `none` and mappings are read as other settings are."""
    text = typed(text)
    return text if not isinstance(text, str) or text.lower() in ("none", "null") else open_codec(text)


def _data_settings(data: Spec[Data], asked: dict[str, str], taken: Container[str]) -> Spec[Data]:
    """Move settings of the data from `asked` into it before the recipe's function looks at its shape."""
    for key in list(asked):
        name = key.removeprefix("data.")
        if name.partition(".")[0] not in parameters(data.cls):
            continue  # a recipe that reads the path in its own way may have it
        if key != name or not (name in taken or name in ALIASES or name in parameters(Recipe)):
            data = data.override(name, asked.pop(key))
    return data


def _check_complete(spec: Spec[Recipe], file: Path) -> None:
    for name in (name for name, (_, usual) in parameters(spec.cls).items() if usual is inspect.Parameter.empty):
        if name not in spec.settings:
            raise UserError(f"{file}: the recipe needs '{name}'")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
