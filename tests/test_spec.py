"""Specs: settings are checked when they are read, name what is wrong, and survive YAML."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.data import Pictured
from sfumato.errors import UserError
from sfumato.registry import Registered
from sfumato.spec import Spec, as_spec, check_arguments, dump_yaml, parameters, parse, read_yaml


class Part(Registered, family="test-part"):
    """A family of its own, so that these tests depend on no other package."""


@dataclass(frozen=True)
class Wheel(Part, name="wheel"):
    spokes: int = 8
    radius: float = 0.5
    finish: Literal["plain", "chrome"] = "plain"


@dataclass(frozen=True)
class Bell(Part, name="bell"):
    tone: str = "c"
    pattern: tuple[int, ...] = (1, 2)
    pair: tuple[float, float] = (0.0, 1.0)
    limit: float | None = 2.0
    side: int | tuple[int, ...] | None = None


class Whole(Registered, family="test-whole"):
    """Built with run-time values by position and settings by keyword."""


@dataclass(frozen=True)
class Bike(Whole, name="bike"):
    name: str
    part: Part = field(default_factory=Wheel)
    spare: Part | None = None
    later: Spec[Part] | None = None
    fast: bool = False
    gears: int | None = 3


class Shed(Whole, name="shed"):
    def __init__(self, where: str, *, bikes: int, doors: int = 1) -> None:
        self.where, self.bikes, self.doors = where, bikes, doors


def bike(**more: Any) -> Spec[Bike]:
    return Spec(Bike, name="a", **more)


def test_settings_of_a_class_are_its_fields_or_its_keyword_only_arguments() -> None:
    assert list(parameters(Bike)) == ["name", "part", "spare", "later", "fast", "gears"]
    assert list(parameters(Shed)) == ["bikes", "doors"]
    assert parameters(Bike)["part"][1] == Wheel()  # made by the factory


def test_build_gives_runtime_values_by_position_and_builds_nested_specs_first() -> None:
    shed = Spec(Shed, bikes=2).build("garden")
    assert (shed.where, shed.bikes, shed.doors) == ("garden", 2, 1)
    made = bike(part={"type": "bell", "tone": "d"}, later="wheel").build()
    assert made.part == Bell(tone="d")
    assert made.later == Spec(Wheel)  # asked for as a Spec: not built


def test_unset_settings_read_as_their_defaults() -> None:
    spec = bike()
    assert spec.fast is False and spec.part == Wheel()
    with pytest.raises(AttributeError, match="no setting 'fats'; did you mean 'fast'"):
        _ = spec.fats
    with pytest.raises(AttributeError, match="not set and has no default"):
        _ = Spec(Shed).bikes


def test_a_missing_setting_is_named_when_it_is_built() -> None:
    with pytest.raises(UserError, match="test-whole 'shed' needs the setting 'bikes'"):
        Spec(Shed).build("garden")


def test_a_spec_is_a_value() -> None:
    spec = bike(gears=5)
    with pytest.raises(AttributeError, match=r"override\(path, value\)"):
        spec.gears = 3  # type: ignore[misc]
    changed = spec.override("gears", 7)
    assert (spec.gears, changed.gears) == (5, 7)
    assert spec == bike(gears=5) and hash(spec) == hash(bike(gears=5)) and spec != changed
    assert spec.with_(gears=7) == changed


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("gears", "7", 7),
        ("gears", "none", None),
        ("gears", "1e3", 1000),
        ("fast", "true", True),
        ("name", "7", "7"),
        ("part.spokes", "36", 36),
        ("part.radius", "1e-3", 1e-3),
        ("part.finish", "chrome", "chrome"),
    ],
)
def test_text_is_read_by_the_type_of_the_setting(path: str, value: str, expected: object) -> None:
    made: Any = bike().override(path, value)
    for name in path.split("."):
        made = getattr(made, name)
    assert made == expected and type(made) is type(expected)


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("pattern", "3,4,5", (3, 4, 5)),
        ("pattern", "(3, 4)", (3, 4)),
        ("pattern", "3", (3,)),
        ("pattern", "", ()),
        ("pair", "-1,2.5", (-1.0, 2.5)),
        ("limit", "None", None),
        ("side", "16", 16),
        ("side", "16,24", (16, 24)),
    ],
)
def test_commas_make_tuples(path: str, value: str, expected: object) -> None:
    assert getattr(Spec(Bell).override(path, value).build(), path) == expected


def test_naming_another_type_drops_the_settings_of_the_one_before() -> None:
    spec = bike(part={"type": "wheel", "spokes": 12}).override("part", "bell")
    assert spec.part == Spec(Bell)
    assert spec.override("part.tone", "e").build().part == Bell(tone="e")


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("part.spoks", "3", "there is no setting 'part.spoks'; did you mean 'part.spokes'?"),
        ("prat", "bell", "there is no setting 'prat'; did you mean 'part'?"),
        ("part", "wheal", "part: there is no test-part 'wheal'; did you mean 'wheel'?"),
        ("part.spokes", "many", "part.spokes = 'many': input should be a valid integer"),
        (
            "part.spokes",
            "1.5",
            "part.spokes = 1.5: input should be a valid integer, got a number with a fractional part",
        ),
        ("part.spokes", "true", "part.spokes = true: must not be true or false"),
        ("part.finish", "gold", "part.finish = 'gold': input should be 'plain' or 'chrome'"),
        ("gears.low", "1", "there is no setting 'gears.low': gears is 3 and has no parts"),
        ("spare.spokes", "1", "there is no setting 'spare.spokes': spare is None and has no parts"),
        ("part", "3,4", "part: there is no test-part '3,4'; known: bell, wheel"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_the_remedy(path: str, value: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        bike().override(path, value)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_one_wrong_value_of_a_tuple_is_named() -> None:
    with pytest.raises(UserError, match=r"^pattern\[1\] = 'x': input should be a valid integer"):
        Spec(Bell).override("pattern", "3,x")
    with pytest.raises(UserError, match=r"^pair = \[1, 2, 3\]: has 3 values"):
        Spec(Bell).override("pair", "1,2,3")


def test_a_spec_of_another_family_is_refused() -> None:
    with pytest.raises(UserError, match="part must be a test-part, not the test-whole 'shed'"):
        bike(part=Spec(Shed))
    with pytest.raises(UserError, match="part must be the name of a test-part or a mapping with 'type', not 3"):
        bike(part=3)


def test_leaves_are_all_settings_with_defaults() -> None:
    found = dict(bike(part={"type": "wheel", "spokes": 4}).leaves())
    assert found == {
        "type": "bike",
        "name": "a",
        "part.type": "wheel",
        "part.spokes": 4,
        "part.radius": 0.5,
        "part.finish": "plain",
        "spare": None,
        "later": None,
        "fast": False,
        "gears": 3,
    }
    assert dict(bike().leaves())["part.spokes"] == 8


def test_an_instance_can_be_written_down() -> None:
    assert as_spec(Wheel(spokes=3)).to_dict() == {"type": "wheel", "spokes": 3, "radius": 0.5, "finish": "plain"}
    assert as_spec(Bike("b", part=Bell())).build() == Bike("b", part=Bell())
    with pytest.raises(UserError, match="Shed can't be written down as settings"):
        as_spec(Shed("garden", bikes=1))


# ---------------------------------------------------------------- arguments of functions


def _function(*, data: Spec[Part], size: Literal["s", "m"] = "s", minutes: float | None = None) -> None: ...


def test_arguments_of_a_function_are_checked_like_settings() -> None:
    made = check_arguments(_function, {"data": "bell", "minutes": "2.5", "size": "m"}, name="recipe 'f'")
    assert made == {"data": Spec(Bell), "minutes": 2.5, "size": "m"}
    with pytest.raises(UserError, match="recipe 'f' needs data="):
        check_arguments(_function, {}, name="recipe 'f'")
    with pytest.raises(UserError, match="recipe 'f' has no 'siez'; did you mean 'size'"):
        check_arguments(_function, {"data": "bell", "siez": "m"}, name="recipe 'f'")
    with pytest.raises(UserError, match="size = 'xl': input should be 's' or 'm'"):
        check_arguments(_function, {"data": "bell", "size": "xl"}, name="recipe 'f'")


# ---------------------------------------------------------------- files

_text = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=12)
_wheels = st.builds(
    lambda spokes, radius, finish: Spec(Wheel, spokes=spokes, radius=radius, finish=finish),
    st.integers(-(2**40), 2**40),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["plain", "chrome"]),
)
_bells = st.builds(
    lambda tone, pattern, limit: Spec(Bell, tone=tone, pattern=tuple(pattern), limit=limit),
    _text,
    st.lists(st.integers(-99, 99), max_size=4),
    st.none() | st.floats(0, 9),
)
_bikes = st.builds(
    lambda name, part, spare, later, fast: Spec(Bike, name=name, part=part, spare=spare, later=later, fast=fast),
    _text,
    _wheels | _bells,
    st.none() | _bells,
    st.none() | _wheels,
    st.booleans(),
)


@settings(max_examples=100, deadline=None)
@given(spec=_bikes)
def test_every_spec_comes_back_from_yaml_equal(spec: Spec[Bike], tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "round-trip.yaml"
    file.write_text(dump_yaml(spec), encoding="utf-8")
    plain, marks = read_yaml(file)
    back = parse(Bike, plain, marks=marks)
    assert back == spec and back.build() == spec.build()


def _write(folder: Path, text: str | bytes) -> Path:
    file = folder / "recipe.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("type: bike\nname: a\ngears: fast\n", ":3: gears = 'fast': input should be a valid integer"),
        (
            "type: bike\nname: a\npart:\n  type: wheel\n  spoks: 3\n",
            ":5: part.spoks: wheel has no setting 'spoks'; did you mean",
        ),
        ("type: bike\nname: a\npart: wheal\n", ":3: part: there is no test-part 'wheal'; did you mean 'wheel'?"),
        ("type: bike\nname: a\npart: {spokes: 3}\n", ":3: part names no type; add 'type: NAME'"),
        ("type: bike\nname: a\nname: b\n", ":3: 'name' is set twice"),
    ],
)
def test_mistakes_in_a_file_are_named_with_file_and_line(tmp_path: Path, text: str, said: str) -> None:
    file = _write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        plain, marks = read_yaml(file)
        parse(Whole, plain, marks=marks)
    assert str(caught.value).startswith(f"{file}{said}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &x 1\nb: *x\n", "aliases are not read"),
        ("a: !!python/object/apply:os.system ['true']\n", "not readable as YAML"),
        ("a: [1\n", "not readable as YAML"),
        (b"a: \xff\xfe\n", "not readable as YAML"),
        ("a: " + "x" * (1 << 20), "over 1 MiB is not a recipe"),
        ("a: " + "[" * 5000, "not readable as YAML"),
    ],
)
def test_unsafe_and_broken_files_are_refused(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_yaml(_write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.yaml: there is no such recipe file"):
        read_yaml(tmp_path / "none.yaml")


def test_files_are_plain_yaml(tmp_path: Path) -> None:
    spec = bike(part={"type": "bell", "pattern": (1, 2, 3)})
    assert yaml.safe_load(dump_yaml(spec)) == {
        "type": "bike",
        "name": "a",
        "part": {"type": "bell", "pattern": [1, 2, 3]},
    }


def test_a_part_of_what_is_not_set_is_refused_in_a_sentence() -> None:
    with pytest.raises(UserError, match=r"'data.count' is a part of data, which is not set; give data= first"):
        Spec(Pictured).override("data.count", "20")
