"""The one training loop. It counts in samples, knows no kind of model, and can stop and go on at any step."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any, final

import numpy as np
import torch
from torch import nn

from sfumato import __version__
from sfumato.core import Batch, Draws
from sfumato.core.random import keys
from sfumato.data import Data, Loader
from sfumato.device import choose_precision
from sfumato.errors import Interrupted, SfumatoError, UserError
from sfumato.files import DiskFullError
from sfumato.progress import Display, Silent, Terminal
from sfumato.spec import as_spec
from sfumato.train.checkpoint import Loaded, load_weights, weights
from sfumato.train.clock import Clock
from sfumato.train.guard import diagnose
from sfumato.train.hook import Hook, Moment
from sfumato.train.keeper import Keeper
from sfumato.train.log import Meter
from sfumato.train.measure import Use, device_memory
from sfumato.train.memory import example, explain_oom, fitted, recomputed
from sfumato.train.parallel import begin
from sfumato.train.posthoc import Snapshots
from sfumato.train.record import Record
from sfumato.train.rollback import giving_up, going_back
from sfumato.train.run import Run, State
from sfumato.train.saving import Saver
from sfumato.train.schedule import Budget, Pace
from sfumato.train.settings import Training
from sfumato.train.sharing import Tally, part_of, shared
from sfumato.train.signals import Cut, StopSignals
from sfumato.train.step import Micro, Step, choose_step
from sfumato.train.task import Task
from sfumato.train.trackers import Tracker
from sfumato.train.watchdog import Watchdog

_READ_EVERY = 20  # steps between two looks at what became of them; part of what a run is (`rollback`)
_NOTE = "finishing this step and saving; once more to quit at once"


@dataclass(frozen=True)
class Result:
    """What a run came to. seconds: of all its starts together. loss: mean training loss of the last log line."""

    steps: int
    samples: int
    seconds: float
    loss: float
    run: Run


@final
class Trainer:
    """Trains a task on the training part of `data` until the budget of `settings` is used up.

    Running it again on the same `run` goes on from the newest checkpoint, or returns at once if the run is finished.
    Every random number is a function of (seed, name, sample number), torch's generators included, so a run that was
    interrupted equals one that was not, bit for bit on a CPU.

    Raises UserError for settings that can't work or differ from the run's, NoCheckpointError if all its checkpoints are
    damaged, Interrupted after Ctrl-C once the state is saved, SfumatoError when training diverges or can't be saved.
    """

    def __init__(
        self,
        task: Task,
        data: Data,
        settings: Training,
        *,
        run: Run,
        seed: int = 0,
        device: str = "auto",
        hooks: Sequence[Hook] = (),
        trackers: Sequence[Tracker] = (),
        display: Display | None = None,
    ) -> None:
        self.parallel, self.device = begin(settings.parallel, device, settings.sequence)
        self.dtype = choose_precision(settings.precision, self.device)
        self.asked, self.run, self.seed = settings, run, seed  # what a resume must agree with
        self.settings = settings = fitted(task, data, settings, device=self.device, dtype=self.dtype, seed=seed)
        self.data, self.hooks = data, list(hooks)
        self.task = task.to(self.device).train()
        self.recomputed = recomputed(task, settings)
        self.pace = Pace()
        self.budget = Budget(settings, self.pace)
        self.micro = part_of(settings, self.parallel)
        self.use = Use(None, settings.batch, None)
        if self.device.type == "cuda":  # before the parameters are divided
            self.use = Use.of(task, example(data, settings, seed), settings, self.device, self.parallel.size)
        self.optimizer, self.ema = shared(task, settings, self.parallel, self.dtype)
        self.meter = Meter(task.process)
        self.tally = Tally(self.parallel)  # items that could not be read
        self.checkpoints = run.checkpoints(settings.keep, every=settings.keep_every, best=settings.keep_best)
        self._score: float | None = None  # the last held-out loss
        self.snapshots = Snapshots(run.folder / "averages")
        self.step: Step | None = None  # made when training begins
        self._display: Display = Silent()
        if self.parallel.main:
            self._display = display if display is not None else Terminal()
        say = self._display.say
        self._signals = StopSignals(lambda: say(_NOTE))
        minutes = settings.checkpoint_minutes
        self.clock = Clock(self.budget, self.parallel, self.device, self._signals, self.hooks, minutes)
        rank = self.parallel.rank if self.parallel.size > 1 else None
        self.watchdog = Watchdog(run.folder, settings.watchdog, rank=rank, say=say)
        self.record = Record(run, self._display, trackers, self.parallel.main)
        later = self.device.type == "cuda" if settings.save_async is None else settings.save_async
        self.keeper = Keeper(Saver(self.checkpoints, self.parallel), self.parallel, self.ema, hooks, say, later)
        self._loss: float | None = None
        self._saved_at = 0.0
        self._owed: tuple[float, str, int] | None = (
            None  # what `_call_hooks` was at when left off, and lines of the log
        )

    def fit(self) -> Result:
        """Train to the end of the budget."""
        cuda = [self.device.index or 0] if self.device.type == "cuda" else []
        held = self.run.lock() if self.parallel.main else nullcontext()
        with self.parallel.bound(), held, torch.random.fork_rng(devices=cuda), self._signals:
            try:
                return self._fit()
            except torch.OutOfMemoryError as error:
                batch = example(self.data, self.settings, self.seed)
                said = explain_oom(self.task, self.settings, batch, device=self.device, dtype=self.dtype)
                raise SfumatoError(said) from error
            finally:
                self.keeper.close()
                self.record.close()

    def settings_of_run(self) -> dict[str, Any]:
        """Every setting by dotted path: the recipe's if the run has one. A resume must agree with them."""
        if self.run.recipe is not None:
            return dict(self.run.recipe.leaves())
        own = {"seed": self.seed, **dict(as_spec(self.asked).leaves("train."))}
        return {**own, **self.task.describe()}

    # ------------------------------------------------------------ one run

    def _fit(self) -> Result:
        say = self._display.say
        resumed = self._resume()
        lines = None if self._owed is None else self._owed[2]
        self.record.open(self.data, self.pace, self.settings.trackers, self.settings_of_run(), lines)
        if self.parallel.main:
            self.snapshots.truncate(self.pace.step)
        if resumed and self.budget.done:
            say(f"the run '{self.run.folder}' is finished; raise its minutes= or samples= to go on")
            return self._result()
        if resumed:
            say(f"going on from {self.pace.samples:,} samples")
        try:
            self._loop()
        except BaseException as error:
            state: State = "interrupted" if isinstance(error, Interrupted) else "failed"
            state = "stopped" if isinstance(error, KeyboardInterrupt) else state
            self._end(state)
            raise
        self._end("finished")
        return self._result()

    def _end(self, state: State) -> None:
        self.record.state(state, self.pace, self._loss)
        for hook in self.hooks if self.parallel.main else ():
            self.record.attempt(lambda hook=hook: hook.end(self.run))  # type: ignore[misc]

    def _loop(self) -> None:
        """Steps to the end of the budget; after a rollback a loader begins anew."""
        s, pace = self.settings, self.pace
        self._saved_at = pace.seconds
        self.record.state("running", self.pace, self._loss)
        train = self.data.split("train")
        who = {"rank": self.parallel.data_rank, "world": self.parallel.data_size}
        how: dict[str, Any] = {"threads": s.threads, "prefetch": max(2, s.accumulate), **who}
        while not self.budget.done:
            self._prepare(train)
            self.clock.start()
            if self._owed is not None:
                self._call_hooks(*self._owed[:2])
            if self._owed is not None:
                raise Interrupted(f"nothing is lost of {pace.samples:,} samples; run the same command to go on")
            with self.watchdog, Loader(train, self.micro, self.seed, self._next, **how) as loader:
                loader.replaced = self.tally.own
                self._steps(loader, train)

    def _steps(self, loader: Loader, train: Data) -> None:
        """Steps to the end of the budget, or until the run goes back to a checkpoint."""
        s, pace, budget = self.settings, self.pace, self.budget
        while not budget.done:
            before, lr = pace.progress, budget.lr()
            last = self._step(self._fetch(loader, train), lr)
            self.clock.stepped()
            self.keeper.look()
            self.watchdog.beat({"step": pace.step, "samples": pace.samples, "lr": lr, "seconds": pace.seconds})
            if (pace.step % _READ_EVERY == 0 or budget.done) and self._went_back(*last, lr):
                return
            if pace.step % s.log_every == 0 or budget.done:
                self._write_metrics(lr)
            self._call_hooks(before)
            stop = budget.done or self.clock.asked
            due = pace.seconds - self._saved_at > 60 * s.checkpoint_minutes and not self.keeper.busy
            if stop or (due and self._sound()):
                with self.watchdog.paused("save", longest=3600.0):
                    self._save(must=stop)
                self._saved_at = pace.seconds
            self._show()
            if stop and not budget.done:
                raise Interrupted(f"saved at {pace.samples:,} samples; run the same command to go on")

    @property
    def _next(self) -> int:
        """The number of the next sample."""
        return self.pace.samples + self.meter.recovery.shift

    def _fetch(self, loader: Loader, train: Data) -> list[Micro]:
        """The parts of the next step's batch. A process that can't have its own says so before the others count on it."""
        begun, found, error = time.monotonic(), [], None
        try:
            for _ in range(self.settings.accumulate):
                numbers, batch = next(loader)
                found.append((batch, Draws(self.seed, int(numbers[0]), len(numbers))))
        except Exception as failed:
            error = failed
        told = self.clock.fetched(time.monotonic() - begun, self.tally.own.samples, error)
        self.tally.update(told, train, self._next + self.settings.batch)
        return found

    def _step(self, micros: Sequence[Micro], lr: float) -> Micro:
        """One step; returns the last part of its batch."""
        assert self.step is not None
        before = self.step.setup_seconds
        value, norm, bad, parts = self.step(micros, lr, self.pace.step + 1)
        self._recorded(self.step.setup_seconds - before)
        first, size = self._next, self.settings.batch
        self.budget.advance(size)
        self.meter.add(value, norm, bad, parts, self.pace.step, (first, first + size - 1))
        return micros[-1]

    def _prepare(self, train: Data) -> None:
        """Record the step, where it is recorded, before the clock starts."""
        self.step = None  # what another one has recorded is let go first
        first, size = self._next, self.micro
        batch = train.fetch_bucket(train.order(self.seed)(np.arange(first, first + size)))
        self.step = choose_step(
            self.task,
            self.optimizer,
            self.ema,
            self.dtype,
            self._seed_generators,
            record=self.settings.compile,
            micro=(batch, Draws(self.seed, first, size)),
            count=self.settings.accumulate,
            in_the_way=self._in_the_way(train),
            fp8=self.settings.fp8,
            parallel=self.parallel,
            say=self._display.say,
        )
        self._tell_recorded(self.step.setup_seconds)

    def _recorded(self, seconds: float) -> None:
        """A batch of another shape was met: the step was recorded for it too."""
        if seconds > 0:
            self.clock.uncounted(seconds)
            self._tell_recorded(seconds)

    def _tell_recorded(self, seconds: float) -> None:
        if seconds > 1:
            self._display.say(f"the step was recorded for the GPU in {seconds:.0f} s, which the budget does not count")

    def _in_the_way(self, train: Data) -> str | None:
        """Why a step can't be recorded, of what the step does not know itself."""
        if not self.recomputed.capturable:
            return "dropout in recomputed blocks draws on the host"
        if self.parallel.unrecorded is not None:
            return self.parallel.unrecorded
        return None if train.bucketing is None else "data.buckets gives batches of several shapes"

    def _seed_generators(self, number: int) -> None:
        """Make dropout a function of the sample number: there is no generator's state to save, on any device."""
        key = int(keys(self.seed, "generators", [number])[0]) >> 1
        torch.default_generator.manual_seed(key)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(key)
        elif self.device.type == "mps":
            torch.mps.manual_seed(key)

    # ------------------------------------------------------------ writing

    def _write_metrics(self, lr: float) -> None:
        means = self.meter.take()
        self._loss = means["loss"]
        entry: dict[str, Any] = {**means, "lr": lr}
        if self.meter.skipped:
            entry["skipped"] = self.meter.skipped
        if left_out := self.meter.recovery.take():
            entry["left_out"] = left_out
        if replaced := self.tally.total.samples:
            entry["replaced"] = replaced
        if self.keeper.failed:
            entry["saves_failed"] = self.keeper.failed
        rate = self.budget.rate()
        entry |= {"samples_per_second": rate and round(rate, 2), "seconds": round(self.pace.seconds, 3)}
        entry |= {**self.use.entry(rate), **device_memory(self.device), "data_wait": self.clock.data_wait()}
        self.record.line(self.pace, entry)

    def _call_hooks(self, before: float, first: str | None = None) -> None:
        """Call what is due on the way from `before` to now. A hook that was left off is called when the run goes on.

        first: the hook to begin with.
        """
        names = [hook.name for hook in self.hooks]
        for hook in self.hooks[names.index(first) if first in names else 0 :]:
            due = hook.times and _crossed(before, self.pace.progress, hook.times) and self.clock.affords(hook)
            if due and not self._call(hook):
                self._owed = (before, hook.name, self.record.log.lines)
                return
        self._owed = None
        if _crossed(before, self.pace.progress, self.settings.evaluations):
            self.record.line(self.pace, {"levels": self.meter.take_levels()})
        if _crossed(before, self.pace.progress, self.settings.snapshots):
            self._snapshot()

    def _call(self, hook: Hook) -> bool:
        """Call a hook. False: it was left off, for the run was asked to stop; not at the end, nor what belongs to a save."""
        self.clock.training()
        self.ema.copy_buffers()
        pace, last, say, cut = self.pace, self.budget.done, self._display.say, False
        moment = self._moment(self.ema.models[0])
        found: Mapping[str, Any] = {}
        failed: Exception | None = None
        try:
            with self.watchdog.paused(hook.name), self._signals.cutting(hook.times is not None and not last):
                found = (hook(moment) if self.parallel.main else None) or {}
        except Cut:
            cut = True
        except DiskFullError as error:
            say(f"warning: {error}")
        except Exception as error:
            failed = error
        self.clock.cost(hook.name, self.clock.lap(failed))
        if self.clock.asked and self.parallel.share(cut):
            return False
        self.record.found(pace, found)
        self._score = found.get("held_out", self._score)
        return True

    def _moment(self, model: nn.Module) -> Moment:
        pace, last = self.pace, self.budget.done
        return Moment(model, self.task, self.run, pace.step, pace.samples, pace.progress, pace.seconds, last)

    def _snapshot(self) -> None:
        """Keep the averages as they are now, for `sfumato ema`."""
        self.clock.training()
        pace, stds = self.pace, self.settings.ema
        failed: Exception | None = None
        with self.watchdog.paused("snapshot", longest=3600.0):
            averages = self.parallel.whole(self.ema.state())
            try:
                if self.parallel.main:
                    self.record.attempt(lambda: self.snapshots.save(pace.step, pace.samples, stds, averages))
            except Exception as error:
                failed = error
        self.clock.lap(failed)

    def _sound(self) -> bool:
        """Whether the last steps went well: a checkpoint is kept of good weights only."""
        self.meter.read()
        return self.meter.recovery.streak == 0 and self.meter.recovery.verdict == "continue"

    def _save(self, must: bool) -> None:
        """Write a checkpoint; a full disk is a warning unless this is the last chance."""
        self.keeper.look(wait=True)
        self.clock.training()
        begun = self.pace.seconds
        groups = {"weights": weights(self.task), "ema": self.ema.state(), "optimizer": self.optimizer.state()}
        behind, failed = self.keeper.save(groups, self._info(), self._moment(self.task), must)
        self.clock.lap(failed)
        for hook in self.hooks:
            if hook.times is None and not (behind and hook.behind):
                self._call(hook)
        self.record.state("running", self.pace, self._loss)
        self.clock.lap()
        self.clock.saved(self.pace.seconds - begun)

    def _info(self) -> dict[str, Any]:
        return {
            **asdict(self.pace),
            "seed": self.seed,
            "settings": self.settings_of_run(),
            "data": {"fingerprint": self.data.fingerprint(), "items": len(self.data)},
            "meter": self.meter.state(),
            "replaced": self.tally.total.state(),
            "costs": self.clock.costs,
            "owed": self._owed,
            "score": self._score,
            "versions": {"sfumato": __version__, "torch": torch.__version__},
        }

    # ------------------------------------------------------------ going on

    def _resume(self) -> bool:
        say = self._display.say
        loaded = self.keeper.load()
        if loaded is None:
            if self.parallel.main and self.run.metrics.exists():
                say(f"the run '{self.run.folder}' stopped before its first checkpoint; starting from the beginning")
            return False
        info = loaded.info
        self.run.compare(info, self.settings_of_run())
        fingerprint = self.data.fingerprint()
        if info["data"]["fingerprint"] != fingerprint:
            raise UserError(
                f"the data of the run '{self.run.folder}' has changed: {info['data']['items']} items "
                f"({info['data']['fingerprint']}) -> {len(self.data)} items ({fingerprint}); start over with --fresh, "
                f"choose another name=, or start from its weights with init={self.run.folder}"
            )
        self._restore(loaded)
        self.meter.load(info["meter"])
        self.tally = Tally(self.parallel, info.get("replaced"))
        self._score = info.get("score")
        self.clock.costs = {k: list(v) for k, v in info["costs"].items()}
        self.budget.resume(info["settings"].get("train.minutes"))
        self.clock.resume()
        owed = info.get("owed")
        self._owed = None if owed is None else (float(owed[0]), str(owed[1]), int(owed[2]))
        return True

    def _restore(self, loaded: Loaded) -> None:
        """Weights, averages, optimizer and pace as they were."""
        own = self.parallel.own
        load_weights(self.task, loaded.groups["weights"], str(loaded.folder / "weights.safetensors"), own)
        self.ema.load(own(loaded.groups["ema"]))
        self.optimizer.load(own(loaded.groups["optimizer"]))
        for key in asdict(self.pace):
            setattr(self.pace, key, loaded.info[key])

    def _went_back(self, batch: Batch, draws: Draws, lr: float) -> bool:
        """Go back to a checkpoint if too many steps in a row were not finite (`rollback`). Raises SfumatoError if that is
        no longer of use."""
        self.meter.read()
        recovery, pace = self.meter.recovery, self.pace
        if recovery.verdict == "continue":
            return False
        self.keeper.look(wait=True)
        reason = diagnose(self.task, batch, draws, lr, self.dtype, self.parallel)
        there = {int(path.name.removeprefix("step-")): path.name for path in self.checkpoints.all()}
        target = recovery.target(list(there))
        name = self.parallel.share(None if target is None else there[target])
        if recovery.verdict == "stop" or name is None:
            raise SfumatoError(giving_up(reason, recovery, name))
        step, samples, seconds = pace.step, pace.samples, pace.seconds
        loaded = self.checkpoints.read(name)
        self._restore(loaded)
        self.meter.back(loaded.info["meter"])
        following, pace.seconds = recovery.back(step, samples, pace.samples), seconds
        self.budget.forget()
        self._display.say(going_back(reason, recovery, name, following))
        if self.parallel.main:
            for kept in (self.record.log, self.snapshots, self.checkpoints):
                kept.truncate(pace.step)
        entry = {"rollback": recovery.rollbacks, "next_sample": following, "left_out": recovery.take()}
        self.record.line(pace, entry)
        return True

    def _show(self) -> None:
        rate, total, pace = self.budget.rate(), self.budget.total_seconds, self.pace
        left = None if total is None else max(0.0, total - pace.seconds)
        if total is None and rate and pace.horizon is not None:
            left = (pace.horizon - pace.samples) / rate
        self._display.update(pace.progress, pace.samples, left, self._loss, rate)

    def _result(self) -> Result:
        state = self.run.read("state.json")
        loss = self._loss if self._loss is not None else state.get("loss")
        return Result(
            self.pace.step, self.pace.samples, self.pace.seconds, float("nan") if loss is None else loss, self.run
        )


def _crossed(before: float, after: float, times: int) -> bool:
    """Whether a k / times, k = 1, 2, ..., lies in (before, after]."""
    return int(after * times + 1e-9) > int(before * times + 1e-9)
