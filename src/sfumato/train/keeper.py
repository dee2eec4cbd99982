"""What a run saves, when a disk may be full, and what is made of a checkpoint beside the training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final

from torch import Tensor, nn

from sfumato.errors import SfumatoError
from sfumato.files import DiskFullError, UnwritableError
from sfumato.train.checkpoint import Loaded
from sfumato.train.hook import Hook, Moment
from sfumato.train.optim_offload import on_host
from sfumato.train.parallel import Parallel
from sfumato.train.saving import Saver, fill
from sfumato.train.sharded import ShardedEma
from sfumato.train.sharing import Averages

PASSING = (DiskFullError, UnwritableError)  # what a run goes on after, unless it was the last save


@final
class Keeper:
    """Saves the state of a run, at once or behind its back (`Saver`). Every process must call each method.

    later: while the training goes on, from a copy in the host's memory. hooks: of these, the ones that belong to a checkpoint
    and can be called behind the training's back are, with a model that is made of the checkpoint.
    """

    def __init__(
        self,
        saver: Saver,
        parallel: Parallel,
        ema: Averages,
        hooks: Sequence[Hook],
        say: Callable[[str], None],
        later: bool,
    ) -> None:
        self.saver, self.later = saver, later
        self._parallel, self._ema, self._say = parallel, ema, say
        self._hooks = [hook for hook in hooks if hook.times is None and hook.behind]
        self._twin: nn.Module | None = None

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is under way: the next one waits until it is done, and the training for none of them."""
        return self.saver.busy

    @property
    def failed(self) -> int:
        """Checkpoints that could not be written, since the process began."""
        return self.saver.failed

    def look(self, wait: bool = False) -> None:
        """Learn what became of a checkpoint that was under way, or `wait` for it. `PASSING` errors are a warning."""
        try:
            self.saver.wait() if wait else self.saver.poll()
        except PASSING as error:
            self._warn(error)

    def save(
        self, groups: Mapping[str, Mapping[str, Tensor]], info: Mapping[str, Any], moment: Moment, must: bool
    ) -> tuple[bool, Exception | None]:
        """Save what `groups` hold at a moment whose `model` will be replaced. must: now, and no error is a warning.

        Returns (whether it is being written behind the training's back, what went wrong).
        """
        slices = {name: self._parallel.slices(group) for name, group in groups.items()}
        try:
            if self.later and not must and self.saver.start(moment.step, slices, info, self._beside(moment)):
                return True, None
            self.saver.save(moment.step, slices, info)
        except PASSING as error:
            if must:
                return False, error
            self._warn(error)
        except Exception as error:
            return False, error
        return False, None

    def load(self) -> Loaded | None:
        """The newest checkpoint that is intact (`Saver.load`)."""
        return self.saver.load(self._say)

    def close(self) -> None:
        """The run has ended."""
        self.saver.close()

    def _warn(self, error: SfumatoError) -> None:
        self._say(f"warning: {error}; training goes on and will try again")

    def _beside(self, moment: Moment) -> Callable[[Path], None]:
        """What calls the hooks, in the thread that wrote the checkpoint."""
        if self._twin is None and self._parallel.main and self._hooks:
            self._twin = on_host(self._ema.spare if isinstance(self._ema, ShardedEma) else self._ema.models[0])
        twin = self._twin

        def call(folder: Path) -> None:
            if twin is None:
                return
            model = fill(twin, self.saver.checkpoints.read(folder.name, verify=False))
            for hook in self._hooks:
                try:
                    hook(replace(moment, model=model))
                except PASSING as error:
                    self._say(f"warning: {error}")

        return call
