"""Names for classes: built-in ones, those of the user, and what happens when there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfumato.errors import UserError
from sfumato.registry import Registered, families, find, import_file, members


class Fruit(Registered, family="test-fruit"):
    """A family for these tests."""


class Apple(Fruit, name="apple"):
    """A member."""


def test_a_named_subclass_joins_its_family() -> None:
    assert members("test-fruit") == {"apple": Apple}
    assert find("test-fruit", "apple") is Apple and Apple.kind == "apple" and Apple.family == "test-fruit"

    class Unnamed(Fruit):
        """No name, no member."""

    assert Unnamed not in members("test-fruit").values()


def test_a_name_can_be_taken_once() -> None:
    with pytest.raises(UserError, match=r"the test-fruit name 'apple' is already taken by .*Apple"):

        class Other(Fruit, name="apple"):
            """Another class by a name that is taken."""

    assert find("test-fruit", "apple") is Apple


def test_the_nearest_name_is_suggested() -> None:
    with pytest.raises(UserError, match="there is no test-fruit 'aple'; did you mean 'apple'"):
        find("test-fruit", "aple")
    with pytest.raises(UserError, match="there is no family 'slover'; did you mean 'solver'"):
        members("slover")


@pytest.mark.parametrize(
    ("family", "some"),
    [
        ("process", {"flow", "vp", "ve", "cosine", "discrete-vp"}),
        ("parameterization", {"x0", "eps", "v", "velocity", "karras"}),
        ("solver", {"ddim", "ddpm", "euler", "heun", "dpmpp-2m"}),
        ("network", {"unet", "dit"}),
        ("conditioner", {"label", "number", "text"}),
        ("data", {"digits", "shapes", "folder", "arrays", "parquet", "tar"}),
        ("codec", {"pixels", "arrays"}),
        ("guidance", {"cfg"}),
        ("grid", {"uniform", "karras", "logsnr", "quadratic"}),
        ("sampling", {"sampling"}),
        ("training", {"training"}),
        ("recipe", {"diffusion"}),
    ],
)
def test_built_in_families_are_found_without_importing_them_first(family: str, some: set[str]) -> None:
    assert family in families()
    assert some <= set(members(family))


def test_a_file_of_the_user_joins_in(tmp_path: Path) -> None:
    file = tmp_path / "pears.py"
    file.write_text(
        "from sfumato.registry import _FAMILIES\n"
        "Fruit = _FAMILIES['test-fruit']['apple'].__mro__[1]\n"
        "class Pear(Fruit, name='pear'):\n    pass\n"
    )
    import_file(file)
    import_file(file)  # twice is the same class again, not a clash
    assert find("test-fruit", "pear").__name__ == "Pear"


def test_files_that_cannot_be_imported_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--import .*none\.py: there is no such file"):
        import_file(tmp_path / "none.py")
    text = tmp_path / "mine.txt"
    text.write_text("x = 1")
    with pytest.raises(UserError, match=r"--import .*mine\.txt: not a Python file"):
        import_file(text)
