"""Where a run's numbers and pictures go besides its own folder: TensorBoard, Weights & Biases, trackio.

`metrics.jsonl` is always written and has everything; a tracker is a copy for other eyes, so nothing that happens to one may
end a training. A run keeps one id for them in `trackers.json`: going on later, from the same folder, goes on there too.
"""

from __future__ import annotations

import json
import netrc
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, final
from urllib.parse import urlparse

import numpy as np

from sfumato.errors import UserError
from sfumato.files import make_folder, write_atomic

if TYPE_CHECKING:
    from PIL.Image import Image

TRACKERS = ("tensorboard", "wandb", "trackio")
_PROJECT = "sfumato"
_ENOUGH = 5  # calls in a row that may fail before a tracker is left alone
Say = Callable[[str], object]


class Tracker(Protocol):
    """Somewhere else to send metrics and pictures: TensorBoard, a service, a test."""

    def log(self, metrics: Mapping[str, float], samples: int) -> None:
        """Numbers at a position of the run."""
        ...

    def image(self, name: str, picture: Image, samples: int) -> None:
        """A picture at a position of the run."""
        ...

    def close(self) -> None:
        """The run has ended."""
        ...


@final
@dataclass(frozen=True)
class Begin:
    """What a tracker is told at the start.

    folder: of the run; its name is the tracker's name of it. samples: seen so far, 0 for a new run. config: the settings by
    dotted path. id: kept with the run. say: for a sentence to the user.
    """

    folder: Path
    samples: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""
    say: Say = lambda text: None

    @property
    def name(self) -> str:
        """The run's name."""
        return self.folder.resolve().name


@final
class TensorBoard:
    """Writes event files for TensorBoard to `tensorboard/`; what a resumed run does again takes the old one's place."""

    def __init__(self, begin: Begin) -> None:
        writer = _need("torch.utils.tensorboard.writer", "tensorboard", "TensorBoard").SummaryWriter
        self._writer = writer(str(begin.folder / "tensorboard"), purge_step=begin.samples or None)

    def log(self, metrics: Mapping[str, float], samples: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, samples)

    def image(self, name: str, picture: Image, samples: int) -> None:
        self._writer.add_image(name, np.asarray(picture.convert("RGB")), samples, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


@final
class WandB:
    """A run of Weights & Biases, by samples. Without a key, and unless WANDB_MODE says otherwise, it writes to `wandb/` only.

    WANDB_PROJECT, WANDB_ENTITY and the like are obeyed.
    """

    def __init__(self, begin: Begin) -> None:
        wandb = _need("wandb", "wandb", "Weights & Biases")
        asked = os.environ.get("WANDB_MODE")
        offline = asked is None and not has_key()
        with redirect_stdout(StringIO()):
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", _PROJECT),
                name=begin.name,
                id=begin.id,
                resume="allow",
                config=dict(begin.config),
                dir=str(make_folder(begin.folder)),
                mode="offline" if offline else None,
                settings=wandb.Settings(console="off", silent=True),
            )
        self._run.define_metric("samples")
        self._run.define_metric("*", step_metric="samples")
        self._image = wandb.Image
        url = getattr(self._run, "url", None)
        if offline:
            begin.say(
                f"wandb has no key here and writes to {begin.folder / 'wandb'}; `wandb sync` sends that when there is one"
            )
        elif url:
            begin.say(f"wandb: {url}")

    def log(self, metrics: Mapping[str, float], samples: int) -> None:
        self._run.log({**metrics, "samples": samples})

    def image(self, name: str, picture: Image, samples: int) -> None:
        self._run.log({name: self._image(picture), "samples": samples})

    def close(self) -> None:
        with redirect_stdout(StringIO()):
            self._run.finish()


@final
class Trackio:
    """A run of trackio, by samples. It lies in trackio's folder on this machine (TRACKIO_DIR), unless TRACKIO_SPACE_ID or
    TRACKIO_SERVER_URL names a place for it.

    trackio finds a run by its name, so that has the id in it: a run that is started over is another one there.
    """

    def __init__(self, begin: Begin) -> None:
        trackio = _need("trackio", "trackio", "trackio")
        with redirect_stdout(StringIO()):
            self._run = trackio.init(
                project=os.environ.get("TRACKIO_PROJECT", _PROJECT),
                name=f"{begin.name}-{begin.id}",
                resume="allow",
                config=dict(begin.config),
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        self._image, self._finish = trackio.Image, trackio.finish

    def log(self, metrics: Mapping[str, float], samples: int) -> None:
        self._run.log(dict(metrics), step=samples)

    def image(self, name: str, picture: Image, samples: int) -> None:
        self._run.log({name: self._image(picture)}, step=samples)

    def close(self) -> None:
        with redirect_stdout(StringIO()):
            self._finish()  # and not the run's own, after which it would be ended once more when Python ends


@final
class Guarded:
    """A tracker whose errors are said once and end nothing; after five calls in a row that failed it is left alone."""

    def __init__(self, tracker: Tracker, name: str, say: Say) -> None:
        self._tracker, self._name, self._say = tracker, name, say
        self._failed = 0  # calls in a row
        self._said = False

    def log(self, metrics: Mapping[str, float], samples: int) -> None:
        self._try(lambda: self._tracker.log(metrics, samples))

    def image(self, name: str, picture: Image, samples: int) -> None:
        self._try(lambda: self._tracker.image(name, picture, samples))

    def close(self) -> None:
        self._failed = 0  # what it has should reach the disk, whatever was before
        self._try(self._tracker.close)

    def _try(self, call: Callable[[], None]) -> None:
        if self._failed >= _ENOUGH:
            return
        try:
            call()
        except Exception as error:
            self._failed += 1
            if not self._said:
                self._said = True
                self._say(_went_wrong(self._name, error))
            return
        self._failed = 0


_KINDS: dict[str, Callable[[Begin], Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB, "trackio": Trackio}


def make_trackers(
    names: Sequence[str],
    folder: Path,
    start: int = 0,
    *,
    config: Mapping[str, Any] | None = None,
    say: Say = lambda text: None,
) -> list[Tracker]:
    """The trackers of these names, started; one that can't be is said to be missing and left out.

    folder: of the run. start: samples seen so far. config: the settings by dotted path. Raises UserError where a package is
    not installed.
    """
    made: list[Tracker] = []
    for name in dict.fromkeys(names):
        begin = Begin(folder, start, plain(config or {}), kept_id(folder), say)
        try:
            made.append(Guarded(_KINDS[name](begin), name, say))
        except UserError:
            raise
        except Exception as error:
            say(_went_wrong(name, error))
    return made


def kept_id(folder: Path) -> str:
    """The id of a run for trackers, from its `trackers.json`; made at the first call."""
    file = folder / "trackers.json"
    try:
        known = json.loads(file.read_text(encoding="utf-8"))["id"]
        if isinstance(known, str) and known:
            return known
    except (OSError, ValueError, KeyError, TypeError):
        pass
    fresh = uuid.uuid4().hex[:8]
    make_folder(folder)
    write_atomic(file, json.dumps({"id": fresh}) + "\n")
    return fresh


def has_key() -> bool:
    """Whether Weights & Biases would find a key: in WANDB_API_KEY, or in the netrc file for its host."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON has them."""
    content: dict[str, Any] = json.loads(json.dumps(dict(config), default=str))
    return content


def _need(module: str, name: str, words: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise UserError(f'train.trackers={name} needs {words}; pip install "sfumato[track]"') from None


def _went_wrong(name: str, error: Exception) -> str:
    said = " ".join(str(error).split())[:200]
    return (
        f"warning: the tracker {name} failed ({type(error).__name__}{': ' if said else ''}{said}); "
        "training goes on, and metrics.jsonl has everything"
    )
