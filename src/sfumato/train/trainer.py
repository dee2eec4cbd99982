"""The one training loop. It counts in samples, knows no kind of model, and can stop and go on at any step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from typing import Any, final

import numpy as np
import torch

from sfumato import __version__
from sfumato.core import Batch, Draws
from sfumato.core.random import keys
from sfumato.data import Data, Loader, Replaced
from sfumato.errors import Interrupted, SfumatoError, UserError
from sfumato.files import DiskFullError
from sfumato.spec import as_spec
from sfumato.train.checkpoint import Checkpoints, load_weights, weights
from sfumato.train.device import choose_precision, wait
from sfumato.train.guard import PATIENCE, diagnose
from sfumato.train.hook import Hook, Moment
from sfumato.train.log import Meter, MetricsLog, Tracker, make_trackers
from sfumato.train.memory import example, explain_oom, fitted, recomputed
from sfumato.train.parallel import begin
from sfumato.train.progress import Display, Silent, Terminal
from sfumato.train.run import Run, State
from sfumato.train.schedule import Budget, Pace
from sfumato.train.settings import Training
from sfumato.train.sharing import part_of, shared
from sfumato.train.signals import StopSignals
from sfumato.train.step import Micro, Step, choose_step
from sfumato.train.task import Task

_READ_EVERY = 20  # steps that may lie unread on a device
_HOOK_SHARE = 0.05  # of a budget of minutes, for hooks that are called evenly


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
        self.parallel, self.device = begin(settings.parallel, device)
        self.dtype = choose_precision(settings.precision, self.device)
        self.asked, self.run, self.seed = settings, run, seed  # what a resume must agree with
        self.settings = settings = fitted(task, data, settings, device=self.device, dtype=self.dtype, seed=seed)
        self.data, self.hooks = data, list(hooks)
        self.task = task.to(self.device).train()
        self.recomputed = recomputed(task, settings)
        self.pace = Pace()
        self.budget = Budget(settings, self.pace)
        self.micro = part_of(settings, self.parallel)
        self.optimizer, self.ema = shared(task, settings, self.parallel)
        self.meter = Meter(task.process)
        self.checkpoints: Checkpoints = run.checkpoints(settings.keep)
        self.log = MetricsLog(run.metrics)
        self.step: Step | None = None  # made when training begins
        self.replaced = Replaced()  # items that could not be read
        self._signals: StopSignals | None = None
        self._asked = False  # whether any process was asked to stop
        self._trackers = list(trackers)
        self._display = display
        self._loss: float | None = None
        self._costs: dict[str, list[float]] = {}  # hook -> [seconds spent, seconds of the last call]
        self._mark = self._training_seconds = self._measured_at = 0.0
        self._waited = self._written_at = (
            0.0  # seconds waited for data since the last line of the log, and when that was
        )

    def fit(self) -> Result:
        """Train to the end of the budget."""
        display = self._display if self._display is not None else Terminal()
        display = display if self.parallel.main else Silent()
        note = "finishing this step and saving; once more to quit at once"
        cuda = [self.device.index or 0] if self.device.type == "cuda" else []
        signals = StopSignals(lambda: display.say(note))
        held = self.run.lock() if self.parallel.main else nullcontext()
        with held, torch.random.fork_rng(devices=cuda), signals:
            try:
                return self._fit(display, signals)
            except torch.OutOfMemoryError as error:
                batch = example(self.data, self.settings, self.seed)
                said = explain_oom(self.task, self.settings, batch, device=self.device, dtype=self.dtype)
                raise SfumatoError(said) from error
            finally:
                display.close()
                for tracker in self._trackers:
                    tracker.close()

    def settings_of_run(self) -> dict[str, Any]:
        """Every setting by dotted path: the recipe's if the run has one. A resume must agree with them."""
        if self.run.recipe is not None:
            return dict(self.run.recipe.leaves())
        own = {"seed": self.seed, **dict(as_spec(self.asked).leaves("train."))}
        return {**own, **self.task.describe()}

    # ------------------------------------------------------------ one run

    def _fit(self, display: Display, signals: StopSignals) -> Result:
        resumed = self._resume(display)
        if self.parallel.main:
            self.run.open()
            self.log.truncate(self.pace.step)
            self._warn_if_full(display, lambda: self.run.write("data.json", describe_data(self.data)))
            self._trackers += make_trackers(self.settings.trackers, self.run.folder, self.pace.samples)
        if resumed and self.budget.done:
            display.say(f"the run '{self.run.folder}' is finished; raise its minutes= or samples= to go on")
            return self._result()
        if resumed:
            display.say(f"going on from {self.pace.samples:,} samples")
        try:
            self._loop(display, signals)
        except BaseException as error:
            state: State = "interrupted" if isinstance(error, Interrupted) else "failed"
            state = "stopped" if isinstance(error, KeyboardInterrupt) else state
            self._end(display, state)
            raise
        self._end(display, "finished")
        return self._result()

    def _end(self, display: Display, state: State) -> None:
        self._set_state(state)
        for hook in self.hooks if self.parallel.main else ():
            self._warn_if_full(display, lambda hook=hook: hook.end(self.run))  # type: ignore[misc]

    def _loop(self, display: Display, signals: StopSignals) -> None:
        s, pace, budget = self.settings, self.pace, self.budget
        saved_at, self._measured_at = pace.seconds, 0.0
        self._set_state("running")
        train = self.data.split("train")
        who = {"rank": self.parallel.rank, "world": self.parallel.size}
        how: dict[str, Any] = {"threads": s.threads, "prefetch": max(2, s.accumulate), **who}
        self._prepare(display, signals, train)
        self._mark = time.monotonic()
        with Loader(train, self.micro, self.seed, pace.samples, **how) as loader:
            loader.replaced = self.replaced
            while not budget.done:
                before = pace.progress
                batch, draws, lr = self._step(loader)
                self._keep_time()
                if pace.step % _READ_EVERY == 0 or budget.done:
                    self._stop_if_diverging(batch, draws, lr)
                if pace.step % s.log_every == 0 or budget.done:
                    self._write_metrics(display, lr)
                self._call_hooks(display, before)
                stop = budget.done or self._asked
                if stop or pace.seconds - saved_at > 60 * s.checkpoint_minutes:
                    self._save(display, must=stop)
                    saved_at = pace.seconds
                self._show(display)
                if stop and not budget.done:
                    raise Interrupted(f"saved at {pace.samples:,} samples; run the same command to go on")

    def _step(self, loader: Loader) -> tuple[Batch, Draws, float]:
        s, lr = self.settings, self.budget.lr()
        last: list[Micro] = []

        def micros() -> Iterator[Micro]:
            for _ in range(s.accumulate):
                begun = time.monotonic()
                numbers, batch = next(loader)
                self._waited += time.monotonic() - begun
                last[:] = [(batch, Draws(self.seed, int(numbers[0]), len(numbers)))]
                yield last[0]

        assert self.step is not None
        value, norm, bad, parts = self.step(micros(), lr, self.pace.step + 1)
        self.budget.advance(s.batch)
        self.meter.add(value, norm, bad, parts)
        return *last[0], lr

    def _prepare(self, display: Display, signals: StopSignals, train: Data) -> None:
        """Record the step, where it is recorded, before the clock starts."""
        self._signals = signals
        first, size = self.pace.samples, self.micro
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
            say=display.say,
        )
        if self.step.setup_seconds > 1:
            display.say(
                f"the step was recorded for the GPU in {self.step.setup_seconds:.0f} s, which the budget does not count"
            )

    def _in_the_way(self, train: Data) -> str | None:
        """Why a step can't be recorded, of what the step does not know itself."""
        if not self.recomputed.capturable:
            return "dropout in recomputed blocks draws on the host"
        if self.parallel.size > 1:
            return "steps of several processes are not recorded"
        return None if train.bucketing is None else "data.buckets gives batches of several shapes"

    def _seed_generators(self, number: int) -> None:
        """Make dropout a function of the sample number: there is no generator's state to save, on any device."""
        key = int(keys(self.seed, "generators", [number])[0]) >> 1
        torch.default_generator.manual_seed(key)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(key)
        elif self.device.type == "mps":
            torch.mps.manual_seed(key)

    # ------------------------------------------------------------ time

    def _lap(self) -> float:
        """Seconds since the last lap, added to the run's: the main process's, on all of them."""
        now = time.monotonic()
        asked = self._signals is not None and self._signals.asked
        lap, self._asked = self.parallel.agree(now - self._mark, asked)
        self._mark = now
        self.pace.seconds += lap
        return lap

    def _keep_time(self) -> None:
        total = self.budget.total_seconds
        due = self.pace.seconds - self._measured_at >= (1.0 if total is None else 0.01 * total) or self.pace.step <= 10
        if due:
            wait(self.device)  # steps are only queued on a GPU
        self._training_seconds += self._lap()
        if due or self.budget.done:
            self._measured_at = self.pace.seconds
            self.budget.measure(self._training_seconds, self._reserved())

    def _reserved(self) -> float:
        """Seconds that hooks and checkpoints will still take, from what they took so far."""
        total, progress = self.budget.total_seconds, self.pace.progress
        if total is None:
            return 0.0
        reserved = 0.0
        for hook in self.hooks:
            if not hook.times:
                continue
            spent, last = self._costs.get(hook.name, (0.0, 0.0))
            calls = hook.times - int(progress * hook.times)
            reserved += max(last, min(last * calls, self._share(total) - spent))
        saves = 1 + int((total - self.pace.seconds) / (60 * self.settings.checkpoint_minutes))
        return reserved + saves * self._costs.get("save", [0.0, 0.0])[1]

    def _share(self, seconds: float) -> float:
        """How much of some seconds one hook may have."""
        return _HOOK_SHARE * seconds / sum(1 for hook in self.hooks if hook.times)

    def _affords(self, hook: Hook) -> bool:
        """Whether a hook may be called before the end: the first call is always made, so that its cost is known."""
        total, (spent, last) = self.budget.total_seconds, self._costs.get(hook.name, (0.0, 0.0))
        return total is None or self.budget.done or last == 0 or spent + last <= self._share(total * self.pace.progress)

    # ------------------------------------------------------------ writing

    def _write_metrics(self, display: Display, lr: float) -> None:
        means = self.meter.take()
        self._loss = means["loss"]
        entry: dict[str, Any] = {"step": self.pace.step, "samples": self.pace.samples, **means, "lr": lr}
        if self.meter.skipped:
            entry["skipped"] = self.meter.skipped
        if self.replaced.samples:
            entry["replaced"] = self.replaced.samples
        rate = self.budget.rate()
        entry |= {"samples_per_second": rate and round(rate, 2), "seconds": round(self.pace.seconds, 3)}
        since = self.pace.seconds - self._written_at
        entry["data_wait"] = round(self._waited / since, 4) if since > 0 else 0.0
        self._waited, self._written_at = 0.0, self.pace.seconds
        self._record(display, entry)

    def _record(self, display: Display, entry: Mapping[str, Any]) -> None:
        if not self.parallel.main:
            return
        self._warn_if_full(display, lambda: self.log.append(entry))
        numbers = {k: v for k, v in entry.items() if isinstance(v, int | float) and k not in ("step", "samples")}
        for tracker in self._trackers:
            tracker.log(numbers, self.pace.samples)

    def _call_hooks(self, display: Display, before: float) -> None:
        for hook in self.hooks:
            if hook.times and _crossed(before, self.pace.progress, hook.times) and self._affords(hook):
                self._call(hook, display, self.budget.done)
        if _crossed(before, self.pace.progress, self.settings.evaluations):
            position = {"step": self.pace.step, "samples": self.pace.samples}
            self._record(display, {**position, "levels": self.meter.take_levels()})

    def _call(self, hook: Hook, display: Display, last: bool) -> None:
        wait(self.device)
        self._training_seconds += self._lap()
        self.ema.copy_buffers()
        pace = self.pace
        model = self.ema.models[0]
        moment = Moment(model, self.task, self.run, pace.step, pace.samples, pace.progress, pace.seconds, last)
        found: Mapping[str, Any] | None = None
        try:
            found = hook(moment) if self.parallel.main else None
        except DiskFullError as error:
            display.say(f"warning: {error}")
        if found:
            plain = {k: v for k, v in found.items() if not hasattr(v, "save")}
            if plain:
                self._record(display, {"step": pace.step, "samples": pace.samples, **plain})
            for name in found.keys() - plain.keys():
                for tracker in self._trackers:
                    tracker.image(name, found[name], pace.samples)
        seconds = self._lap()
        cost = self._costs.setdefault(hook.name, [0.0, 0.0])
        cost[0] += seconds
        cost[1] = seconds

    def _save(self, display: Display, must: bool) -> None:
        """Write a checkpoint; a full disk is a warning unless this is the last chance."""
        wait(self.device)
        self._training_seconds += self._lap()
        begun = self.pace.seconds
        try:
            groups = {"weights": weights(self.task), "ema": self.ema.state(), "optimizer": self.optimizer.state()}
            groups = {name: self.parallel.whole(group) for name, group in groups.items()}
            info = self._info()
            if self.parallel.main:
                self.checkpoints.save(self.pace.step, groups, info)
        except DiskFullError as error:
            if must:
                raise
            display.say(f"warning: {error}; training goes on and will try again")
        for hook in self.hooks:
            if hook.times is None:
                self._call(hook, display, self.budget.done)
        self._set_state("running")
        self._lap()
        self._costs["save"] = [0.0, self.pace.seconds - begun]

    def _info(self) -> dict[str, Any]:
        return {
            **asdict(self.pace),
            "seed": self.seed,
            "settings": self.settings_of_run(),
            "data": {"fingerprint": self.data.fingerprint(), "items": len(self.data)},
            "meter": self.meter.state(),
            "replaced": self.replaced.state(),
            "costs": self._costs,
            "versions": {"sfumato": __version__, "torch": torch.__version__},
        }

    # ------------------------------------------------------------ going on

    def _resume(self, display: Display) -> bool:
        loaded = self.checkpoints.load(display.say) if self.parallel.main else None
        name = self.parallel.share(None if loaded is None else loaded.folder.name)
        if loaded is None and name is not None:
            loaded = self.checkpoints.read(name)
        if loaded is None:
            if self.parallel.main and self.run.metrics.exists():
                display.say(
                    f"the run '{self.run.folder}' stopped before its first checkpoint; starting from the beginning"
                )
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
        own = self.parallel.own
        load_weights(self.task, loaded.groups["weights"], str(loaded.folder / "weights.safetensors"), own)
        self.ema.load(own(loaded.groups["ema"]))
        self.optimizer.load(own(loaded.groups["optimizer"]))
        self.meter.load(info["meter"])
        self.replaced = Replaced.of(info.get("replaced"))
        self._costs = {k: list(v) for k, v in info["costs"].items()}
        for key in asdict(self.pace):
            setattr(self.pace, key, info[key])
        self.budget.resume(info["settings"].get("train.minutes"))
        self._written_at = self.pace.seconds
        return True

    def _stop_if_diverging(self, batch: Batch, draws: Draws, lr: float) -> None:
        self.meter.read()
        if self.meter.worst < PATIENCE:
            return
        reason = diagnose(self.task, batch, draws, lr, self.dtype, whole=self.parallel.size == 1)
        newest = self.checkpoints.all()
        kept = f"; the checkpoint {newest[-1].name} is from before" if newest else ""
        raise SfumatoError(reason + kept)

    def _set_state(self, state: State) -> None:
        if not self.parallel.main:
            return
        with suppress(DiskFullError):
            pace = self.pace
            self.run.set_state(
                state,
                step=pace.step,
                samples=pace.samples,
                seconds=round(pace.seconds, 1),
                progress=round(pace.progress, 4),
                loss=self._loss,
            )

    def _show(self, display: Display) -> None:
        rate, total, pace = self.budget.rate(), self.budget.total_seconds, self.pace
        left = None if total is None else max(0.0, total - pace.seconds)
        if total is None and rate and pace.horizon is not None:
            left = (pace.horizon - pace.samples) / rate
        display.update(pace.progress, pace.samples, left, self._loss, rate)

    def _warn_if_full(self, display: Display, write: Callable[[], object]) -> None:
        try:
            write()
        except DiskFullError as error:
            display.say(f"warning: {error}")

    def _result(self) -> Result:
        state = self.run.read("state.json")
        loss = self._loss if self._loss is not None else state.get("loss")
        return Result(
            self.pace.step, self.pace.samples, self.pace.seconds, float("nan") if loss is None else loss, self.run
        )


def _crossed(before: float, after: float, times: int) -> bool:
    """Whether a k / times, k = 1, 2, ..., lies in (before, after]."""
    return int(after * times + 1e-9) > int(before * times + 1e-9)


def describe_data(data: Data) -> dict[str, Any]:
    """What a data set is, for data.json and the report."""
    return {
        "kind": data.kind,
        **{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(data.info).items()},
        "train": len(data.split("train")),
        "held_out": len(data.split("held_out")),
        "fingerprint": data.fingerprint(),
        "problems": list(data.problems),
    }
