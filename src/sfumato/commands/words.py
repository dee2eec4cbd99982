"""What was typed after a verb: `key=value` settings and other words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from sfumato.errors import UserError, did_you_mean

RUNS = Path("runs")
_SETTING = re.compile(r"[A-Za-z_][\w.\-]*=")


def split_words(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """(words without an equals sign after a name, settings). Raises UserError for one that is given twice."""
    plain: list[str] = []
    settings: dict[str, str] = {}
    for word in words:
        if not _SETTING.match(word):
            plain.append(word)
            continue
        key, _, value = word.partition("=")
        if key in settings:
            raise UserError(f"{key}= is given twice, as {settings[key]} and {value}; leave one out")
        settings[key] = value
    return plain, settings


def only_settings(words: Sequence[str]) -> dict[str, str]:
    """The settings; any other word is a mistake."""
    plain, settings = split_words(words)
    if plain:
        raise UserError(f"'{plain[0]}' is not a setting; settings are written key=value")
    return settings


def whole_number(settings: Mapping[str, str], key: str, default: int) -> int:
    """A setting that is a whole number."""
    if key not in settings:
        return default
    try:
        return int(settings[key])
    except ValueError:
        raise UserError(f"{key}={settings[key]}: must be a whole number") from None


def numbers(settings: Mapping[str, str], key: str) -> list[float] | None:
    """A setting that is a number or several with commas; None if it is not given."""
    if key not in settings:
        return None
    try:
        return [float(part) for part in settings[key].split(",")]
    except ValueError:
        raise UserError(f"{key}={settings[key]}: must be a number, or several with commas") from None


def check_keys(settings: Mapping[str, str], known: Sequence[str], verb: str) -> None:
    """Refuse settings that a verb does not know."""
    for key in settings:
        if key not in known:
            raise UserError(f"`sfumato {verb}` has no setting '{key}'; {did_you_mean(key, known)}")


def run_names() -> list[str]:
    """Folders of `runs/` that hold a recipe."""
    if not RUNS.is_dir():
        return []
    return sorted(entry.name for entry in RUNS.iterdir() if (entry / "recipe.yaml").is_file())


def find_run(name: str) -> Path:
    """The folder of a run, given by name or path."""
    for folder in (Path(name), RUNS / name):
        if (folder / "recipe.yaml").is_file():
            return folder
    known = run_names()
    there = did_you_mean(name, known) if known else "there are no runs in runs/ yet, `sfumato train` makes one"
    raise UserError(f"there is no run '{name}'; {there}")


def find_model(name: str) -> Path:
    """A run or model folder, given by name or path: the path itself, or the run of that name."""
    if Path(name).exists() or not (RUNS / name).exists():
        return Path(name)
    return RUNS / name
