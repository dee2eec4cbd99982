"""A `Spec` is a constructor call written down: the class, its settings, checked at once, built later.

A recipe is a tree of them. It holds registered names and literals only, so it round-trips through YAML and JSON and is
safe to load from a stranger. In a file a spec is `{type: unet, width: 96}`, or `unet` when nothing is set.

Which arguments are settings: every field of a dataclass, and the keyword-only arguments of any other class. Positional
arguments of other classes (a network's shapes) are known only at run time and are given to `build`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar, Union, cast, get_args, get_origin

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from sfumato.errors import UserError, did_you_mean
from sfumato.registry import Registered, find

T = TypeVar("T", bound=Registered)
Marks = Mapping[str, str]  # "network.width" -> "recipe.yaml:12", for error messages


def parameters(cls: type) -> dict[str, tuple[Any, Any]]:
    """Settings of a class: name -> (annotation, default or `inspect.Parameter.empty`)."""
    return _parameters(cls)


@functools.cache
def _parameters(cls: Any) -> dict[str, tuple[Any, Any]]:
    if dataclasses.is_dataclass(cls):
        hints = typing.get_type_hints(cls)
        return {f.name: (hints[f.name], _default(f)) for f in dataclasses.fields(cls) if f.init}
    hints = typing.get_type_hints(cls.__init__)
    signature = inspect.signature(cls.__init__)
    keyword_only = inspect.Parameter.KEYWORD_ONLY
    return {k: (hints.get(k, Any), p.default) for k, p in signature.parameters.items() if p.kind is keyword_only}


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return inspect.Parameter.empty if field.default_factory is dataclasses.MISSING else field.default_factory()


class Spec(Generic[T]):
    """The class to build and its settings. Immutable; unset settings read as their defaults: `spec.width`."""

    __slots__ = ("cls", "settings")
    cls: type[T]
    settings: dict[str, Any]

    def __init__(self, cls: type[T], /, **settings: Any) -> None:
        object.__setattr__(self, "cls", cls)
        object.__setattr__(self, "settings", _check(cls, settings, path="", marks={}))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a Spec does not change; use .override(path, value) or .with_(...)")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in self.settings:
            return self.settings[name]
        known = parameters(self.cls)
        if name not in known:
            raise AttributeError(f"{self.cls.__name__} has no setting '{name}'; {did_you_mean(name, known)}")
        default = known[name][1]
        if default is inspect.Parameter.empty:
            raise AttributeError(f"{self.cls.__name__}.{name} is not set and has no default")
        return default

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spec) and self.cls is other.cls and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.cls, repr(self.to_dict())))

    def __repr__(self) -> str:
        inside = ", ".join(f"{k}={v!r}" for k, v in self.settings.items())
        return f"Spec({', '.join(filter(None, (self.cls.__name__, inside)))})"

    def build(self, *runtime: Any) -> T:
        """Call the constructor: run-time values by position, settings by keyword, nested specs built first."""
        known = parameters(self.cls)
        missing = [
            k for k, (_, default) in known.items() if default is inspect.Parameter.empty and k not in self.settings
        ]
        if missing:
            raise UserError(f"{self.cls.family} '{self.cls.kind}' needs the setting '{missing[0]}'")
        return self.cls(*runtime, **{k: _built(v, known[k][0]) for k, v in self.settings.items()})

    def with_(self, **settings: Any) -> Spec[T]:
        """A copy with some settings replaced."""
        return Spec(self.cls, **{**self.settings, **settings})

    def override(self, path: str, value: Any) -> Spec[T]:
        """A copy with the setting at a dotted path replaced; text is read as YAML, `1,2,4` as a tuple.

        Naming another type (`network=dit`, `network={type: dit, depth: 8}`) drops the settings of the one before.
        """
        return self._override(path, typed(value), full=path)

    def _override(self, path: str, value: Any, full: str) -> Spec[T]:
        head, _, rest = path.partition(".")
        known = parameters(self.cls)
        if head not in known:
            before = full.removesuffix(path)
            raise UserError(
                f"there is no setting '{full}'; {did_you_mean(full, [before + p for p in _all_paths(self)])}"
            )
        if not rest:
            return Spec._checked(self.cls, {**self.settings, head: value}, prefix=full.removesuffix(head))
        whole = full.removesuffix("." + rest)
        try:
            inner = getattr(self, head)
        except AttributeError:
            raise UserError(f"'{full}' is a part of {whole}, which is not set; give {whole}= first") from None
        if isinstance(inner, Registered):
            inner = as_spec(inner)
        if not isinstance(inner, Spec):
            raise UserError(f"there is no setting '{full}': {whole} is {inner!r} and has no parts")
        return Spec._checked(self.cls, {**self.settings, head: inner._override(rest, value, full)}, prefix="")

    @classmethod
    def _checked(
        cls, target: type[T], settings: dict[str, Any], prefix: str = "", marks: Marks | None = None
    ) -> Spec[T]:
        made = object.__new__(cls)
        object.__setattr__(made, "cls", target)
        object.__setattr__(made, "settings", _check(target, settings, prefix, marks or {}))
        return made

    def to_dict(self) -> dict[str, Any]:
        """Plain data: `{"type": name, setting: value, ...}` with nested specs likewise."""
        return {"type": self.cls.kind, **{k: _plain(v) for k, v in self.settings.items()}}

    def leaves(self, prefix: str = "") -> Iterator[tuple[str, Any]]:
        """(dotted path, value) of every setting, defaults included, types as `path.type`."""
        yield f"{prefix}type", self.cls.kind
        for key in parameters(self.cls):
            value = self.settings[key] if key in self.settings else parameters(self.cls)[key][1]
            if isinstance(value, Registered):
                value = as_spec(value)
            if isinstance(value, Spec):
                yield from value.leaves(f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", _plain(value)


def as_spec(value: Registered) -> Spec[Any]:
    """The spec of an instance whose class is a dataclass (its fields are its settings)."""
    if not dataclasses.is_dataclass(type(value)):
        raise UserError(f"{type(value).__name__} can't be written down as settings: it is not a dataclass")
    fields = {name: getattr(value, name) for name in parameters(type(value))}
    return Spec(type(value), **{k: as_spec(v) if isinstance(v, Registered) else v for k, v in fields.items()})


def parse(base: type[T], data: Any, *, path: str = "", marks: Marks | None = None) -> Spec[T]:
    """Read plain data as a spec of the family of `base`: a name, or a mapping with `type` and settings."""
    marks = marks or {}
    if isinstance(data, Spec):
        if not issubclass(data.cls, base):
            raise UserError(f"{_at(path, marks)} must be a {base.family}, not the {data.cls.family} '{data.cls.kind}'")
        return data
    if isinstance(data, Registered):
        return parse(base, as_spec(data), path=path, marks=marks)
    if isinstance(data, str):
        data = {"type": data}
    if not isinstance(data, Mapping):
        raise UserError(
            f"{_at(path, marks)} must be the name of a {base.family} or a mapping with 'type', not {data!r}"
        )
    settings = dict(data)
    kind = settings.pop("type", base.kind or None)
    if kind is None:
        raise UserError(f"{_at(path, marks)} names no type; add 'type: NAME'")
    try:
        cls = find(base.family, str(kind))
    except UserError as error:
        raise UserError(f"{_at(path, marks)}: {error}") from None
    return Spec._checked(cast(type[T], cls), settings, f"{path}." if path else "", marks)


def check_arguments(function: Callable[..., Any], given: Mapping[str, Any], *, name: str) -> dict[str, Any]:
    """Check keyword arguments of a function against its annotations, as settings are checked; text is read as YAML."""
    hints = typing.get_type_hints(function)
    known = inspect.signature(function).parameters
    for key, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and key not in given:
            raise UserError(f"{name} needs {key}=")
    for key in given:
        if key not in known:
            raise UserError(f"{name} has no '{key}'; {did_you_mean(key, known)}")
    return {key: _value(hints.get(key, Any), value, key, {}) for key, value in given.items()}


def _check(cls: type, settings: Mapping[str, Any], path: str, marks: Marks) -> dict[str, Any]:
    known = parameters(cls)
    checked = {}
    for key, value in settings.items():
        if key not in known:
            name = getattr(cls, "kind", "") or cls.__name__
            raise UserError(
                f"{_at(path + str(key), marks)}: {name} has no setting '{key}'; {did_you_mean(str(key), known)}"
            )
        checked[key] = _value(known[key][0], value, path + key, marks)
    return checked


def _value(annotation: Any, value: Any, path: str, marks: Marks) -> Any:
    """Check one value against the annotation of its setting; registered types become specs."""
    base, optional = _registered_in(annotation)
    if base is not None:
        if value is None and optional:
            return None
        if optional and isinstance(value, str) and value.lower() in ("none", "null"):
            return None
        return parse(base, value, path=path, marks=marks)
    value = _from_text(annotation, value)
    at = _at(path, marks)
    if isinstance(value, bool) and bool not in _options(annotation) and annotation is not Any:
        raise UserError(f"{at} = {str(value).lower()}: must not be true or false")
    try:
        return _adapter(annotation).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        inner = "".join(f"[{part}]" for part in first["loc"] if isinstance(part, int))
        if first["type"] in ("missing", "too_long") and isinstance(value, list | tuple):
            raise UserError(f"{at} = {value!r}: has {len(value)} values, which is not how many it takes") from None
        said = first["msg"][:1].lower() + first["msg"][1:]
        raise UserError(f"{at}{inner} = {first['input'] if inner else value!r}: {said}") from None


@functools.lru_cache(maxsize=512)
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return TypeAdapter(annotation)
    return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))


def _registered_in(annotation: Any) -> tuple[type[Registered] | None, bool]:
    """(base class, may be None) if the annotation is a Registered class, `Spec[...]` of one, or Optional of either."""
    origin = get_origin(annotation)
    if origin is Spec:
        return _registered_in(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        arguments = get_args(annotation)
        found = [base for base, _ in map(_registered_in, arguments) if base is not None]
        return (found[0] if found else None), type(None) in arguments
    if isinstance(annotation, type) and issubclass(annotation, Registered):
        return annotation, False
    return None, False


def _built(value: Any, annotation: Any) -> Any:
    """A nested spec is built, unless the setting asks for the `Spec` itself (to build it later, with run-time values)."""
    if not isinstance(value, Spec):
        return value
    return value if any(get_origin(option) is Spec for option in _options(annotation)) else value.build()


def _from_text(annotation: Any, value: Any) -> Any:
    """Text from the command line: `1,2,4` for a tuple, YAML for everything but plain strings."""
    if not isinstance(value, str):
        return value
    options = _options(annotation)
    if value.lower() in ("none", "null") and type(None) in options:
        return None
    single = any(option in (int, float, str) for option in options) and "," not in value
    if not single and any(get_origin(option) in (tuple, list) or option in (tuple, list) for option in options):
        text = value.strip().strip("()[]")
        return [yaml.safe_load(part) for part in text.split(",") if part.strip()]
    if str in options or any(get_origin(o) is typing.Literal for o in options):
        return value
    if int in options and re.fullmatch(r"\d+(\.\d+)?[eE]\+?\d+", value):  # 1e6, which YAML takes for text
        return float(value)
    try:
        loaded = yaml.safe_load(value)
    except yaml.YAMLError:
        return value
    return value if isinstance(loaded, str) else loaded


def typed(value: Any) -> Any:
    """Text such as `{type: cfg, scale: 2}` as the mapping that it is; anything else as it came."""
    if not isinstance(value, str) or not value.lstrip().startswith("{type:"):
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"{value} can't be read; write {{type: NAME, setting: value, ...}}") from None


def _options(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the one type."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _plain(value: Any) -> Any:
    if isinstance(value, Spec):
        return value.to_dict()
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, Path):
        return str(value)
    return value


def _all_paths(spec: Spec[Any]) -> list[str]:
    return [path.removesuffix(".type") for path, _ in spec.leaves() if path != "type"]


def _at(path: str, marks: Marks) -> str:
    where = marks.get(path)
    return f"{where}: {path}" if where else path or "the recipe"


# ---------------------------------------------------------------- files
_MAX_BYTES = 1 << 20
_PLAIN_TAGS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


def read_yaml(file: Path) -> tuple[Any, dict[str, str]]:
    """Read a YAML (or JSON) file as plain data and a map from dotted path to `file:line`.

    Refuses files over 1 MiB, aliases (a few bytes of them can expand to gigabytes), duplicate keys and any tag that
    would build an object.
    """
    if not file.is_file():
        raise UserError(f"{file}: there is no such recipe file")
    if file.stat().st_size > _MAX_BYTES:
        raise UserError(f"{file}: over 1 MiB is not a recipe")
    try:
        text = file.read_text(encoding="utf-8")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise UserError(f"{file}: YAML aliases are not read; write the value out")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        marks: dict[str, str] = {}
        return (_construct(node, "", file, marks) if node is not None else {}), marks
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        raise UserError(f"{file}{line}: not readable as YAML: {getattr(error, 'problem', None) or error}") from None


def _construct(node: yaml.Node, path: str, file: Path, marks: dict[str, str]) -> Any:
    marks[path] = f"{file}:{node.start_mark.line + 1}"
    if not isinstance(node, yaml.ScalarNode) and node.tag not in _PLAIN_TAGS:
        raise UserError(f"{marks[path]}: not readable as YAML: the tag {node.tag} is not plain data")
    if isinstance(node, yaml.MappingNode):
        made: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            inner = f"{path}.{key}" if path else key
            if key in made:
                raise UserError(f"{file}:{key_node.start_mark.line + 1}: '{inner}' is set twice")
            made[key] = _construct(value_node, inner, file, marks)
            marks[inner] = f"{file}:{key_node.start_mark.line + 1}"
        return made
    if isinstance(node, yaml.SequenceNode):
        return [_construct(item, f"{path}[{i}]", file, marks) for i, item in enumerate(node.value)]
    return yaml.SafeLoader("").construct_object(node)


def dump_yaml(spec: Spec[Any]) -> str:
    """The spec as YAML text that `read_yaml` and `parse` read back to an equal spec."""
    return yaml.safe_dump(spec.to_dict(), sort_keys=False, allow_unicode=True)
