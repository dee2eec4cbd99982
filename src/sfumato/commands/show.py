"""`sfumato show`: the parts that there are, a recipe, a run, a model."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sfumato.commands.say import facts, say, say_json, size
from sfumato.commands.words import RUNS, find_model, split_words
from sfumato.errors import UserError, did_you_mean
from sfumato.modelfolder import CONFIG, find_folder, read_config, shipped
from sfumato.recipes import dials, find_recipe, load_recipe, recipes
from sfumato.registry import Registered, families, find, members
from sfumato.samplers import Solver
from sfumato.spec import dump_yaml, parameters

_PLURALS = {"processes": "process", "weightings": "weighting", "data": "data", "times": "times", "guidance": "guidance"}
_ALIASES = {"sampler": "solver", "samplers": "solvers"}  # other words for a family


def show(what: str, words: Sequence[str], *, as_json: bool) -> None:
    """A family (`solvers`), a member (`solver heun`), `recipes`, `recipe NAME`, or a run or model."""
    if what in ("recipe", "recipes"):
        _recipe(words, as_json) if words else _recipes(as_json)
        return
    family = _family(_ALIASES.get(what, what))
    if family is not None:
        plain, settings = split_words(words)
        if settings or len(plain) > 1:
            raise UserError(f"`sfumato show {what}` takes one name at most, not {' '.join(words)}")
        _members(family, {plain[0]: find(family, plain[0])} if plain else members(family), as_json)
        return
    folder = find_model(what)
    if not folder.exists() and what not in shipped():
        regular = {f"{name}s" for name in families()} - {f"{name}s" for name in _PLURALS.values()}
        known = [*_PLURALS, *_ALIASES, *regular, "recipes", "recipe"]
        raise UserError(
            f"there is nothing to show by the name '{what}', no run or model either; {did_you_mean(what, known)}"
        )
    _model(folder, as_json)


def _family(what: str) -> str | None:
    name = _PLURALS.get(what, what)
    return next((n for n in (name, name.removesuffix("s")) if n in families()), None)


def _members(family: str, known: dict[str, type[Registered]], as_json: bool) -> None:
    found = {name: _settings(cls) for name, cls in sorted(known.items())}
    if as_json:
        said = {name: {"about": _about(known[name]), **_numbers(known[name])} for name in found}
        say_json({name: {**said[name], "settings": settings} for name, settings in found.items()})
        return
    for name, settings in found.items():
        say(f"{name}: {_about(known[name])}")
        if numbers := _numbers(known[name]):
            evaluations = f"{numbers['evaluations']} evaluation{'s' if numbers['evaluations'] != 1 else ''} a step"
            noise = "draws noise" if numbers["stochastic"] else "deterministic"
            say(f"    order {numbers['order']}, {evaluations}, {noise}")
        if settings:
            say(facts(settings, indent="    "))


def _numbers(cls: type[Registered]) -> dict[str, Any]:
    """What a solver with its default settings declares; nothing for other families, and where a setting must be given."""
    if not issubclass(cls, Solver) or any(
        default is inspect.Parameter.empty for _, default in parameters(cls).values()
    ):
        return {}
    solver: Solver = cls()
    return {"order": solver.order, "evaluations": solver.evaluations, "stochastic": solver.stochastic}


def _settings(cls: type) -> dict[str, str]:
    return {name: _shown(default) for name, (_, default) in parameters(cls).items()}


def _shown(default: Any) -> str:
    if default is inspect.Parameter.empty:
        return "(must be given)"
    if isinstance(default, Registered):
        return default.kind
    if isinstance(default, tuple):
        return ",".join(map(str, default)) or "()"
    return "none" if default is None else str(default)


def _about(what: Any) -> str:
    return (inspect.getdoc(what) or "").partition("\n")[0]


def _recipes(as_json: bool) -> None:
    if as_json:
        say_json({name: {"about": _about(f), "dials": _dials(f)} for name, f in recipes().items()})
        return
    for name, function in recipes().items():
        say(f"{name}: {_about(function)}")
        say(facts(_dials(function), indent="    "))


def _dials(function: Any) -> dict[str, str]:
    return {name: _shown(default) for name, default in dials(function).items()}


def _recipe(words: Sequence[str], as_json: bool) -> None:
    plain, settings = split_words(words)
    if len(plain) != 1:
        raise UserError("`sfumato show recipe` takes one name, file or run, and settings")
    name = plain[0]
    in_runs = (RUNS / name / "recipe.yaml").is_file()
    source = RUNS / name if in_runs and name not in recipes() and not Path(name).exists() else name
    missing = [] if not isinstance(source, str) or source not in recipes() else _missing(source, settings)
    if missing:  # nothing to build without its data: show the dials
        function = find_recipe(name)
        say_json({"about": _about(function), "dials": _dials(function)}) if as_json else say(
            inspect.getdoc(function) or ""
        )
        if not as_json:
            say(facts(_dials(function)))
            say(f"needs {', '.join(f'{key}=' for key in missing)} to show its settings")
        return
    spec = load_recipe(source, settings)
    say_json(spec.to_dict()) if as_json else say(dump_yaml(spec).rstrip())


def _missing(name: str, settings: dict[str, str]) -> list[str]:
    empty = inspect.Parameter.empty
    return [key for key, default in dials(find_recipe(name)).items() if default is empty and key not in settings]


def _model(path: Path, as_json: bool) -> None:
    folder = find_folder(path)
    config = read_config(folder)
    if as_json:
        say_json({"model": str(folder), **config})
        return
    if "autoencoder" in config:
        _autoencoder(folder, config)
        return
    model, info = config.get("model", {}), config.get("model", {}).get("info", {})
    conditioner = model.get("conditioner")
    trained = {k: str(v) for k, v in (config.get("trained") or {}).items() if isinstance(v, str | int | float)}
    weights = folder / "model.safetensors"
    say(str(folder))
    say(
        facts(
            {
                "makes": f"{info.get('kind')} of shape {' x '.join(map(str, info.get('shape', [])))}",
                "asked by": conditioner["type"] if conditioner else "nothing",
                **{name: _inline(model.get(name)) for name in ("network", "process", "parameterization", "codec")},
                "sampling": _inline(config.get("sampling")),
                **trained,
                "files": f"{CONFIG}, {weights.name} ({size(weights.stat().st_size) if weights.is_file() else 'missing'})",
            }
        )
    )


def _autoencoder(folder: Path, config: dict[str, Any]) -> None:
    """The settings of an autoencoder's folder."""
    codec, info = config["autoencoder"]["codec"], config["autoencoder"]["info"]
    trained = {k: str(v) for k, v in (config.get("trained") or {}).items() if isinstance(v, str | int | float)}
    shape = " x ".join(map(str, info["shape"]))
    about = {"autoencoder of": f"{info['kind']} of shape {shape}", "network": _inline(codec["autoencoder"])}
    say(str(folder))
    say(
        facts(
            {
                **about,
                "works on": _inline(codec.get("inner") or "the media's own codec"),
                "sha256": config["sha256"],
                **trained,
            }
        )
    )


def _inline(settings: Any) -> str:
    if isinstance(settings, dict):
        inside = ", ".join(f"{k}={_inline(v)}" for k, v in settings.items() if k != "type")
        return f"{settings.get('type')}({inside})" if inside else str(settings.get("type"))
    if isinstance(settings, list) and any(isinstance(part, list) for part in settings):
        return " and ".join(f"{len(part)} numbers" for part in settings)
    return ",".join(map(str, settings)) if isinstance(settings, list) else str(settings)
