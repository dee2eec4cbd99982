"""The settings of a training run."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Literal, final

from sfumato.errors import UserError
from sfumato.registry import Registered
from sfumato.spec import Spec
from sfumato.train.muon import Muon
from sfumato.train.optim import AdamW, Optimizer
from sfumato.train.optim8 import AdamW8

OPTIMIZERS = (AdamW, AdamW8, Muon)

# Settings that may differ when a run is resumed: they change how long it goes on, what is seen of it and how it is computed,
# not what is learnt.
FREE_TO_CHANGE = frozenset(
    {
        *(
            "minutes",
            "samples",
            "checkpoint_minutes",
            "keep",
            "keep_every",
            "keep_best",
            "save_async",
            "log_every",
            "evaluations",
            "pictures",
            "threads",
            "trackers",
            "watchdog",
            "snapshots",
        ),
        *("compile", "recompute", "memory", "offload", "parallel", "sequence"),
    }
)

_UNITS = {"": 1 << 30}  # a plain number is GiB
_UNITS |= {name: 1000**power for power, name in enumerate(("kb", "mb", "gb", "tb"), 1)}
_UNITS |= {name: 1024**power for power, name in enumerate(("kib", "mib", "gib", "tib"), 1)}


def parse_memory(text: str | float, name: str = "train.memory") -> int:
    """Bytes of `40GiB`, `512MiB`, `6GB`, or `24` (GiB). Raises UserError that names the setting."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Z]*)\s*", str(text))
    size = float(found[1]) * _UNITS.get(found[2].lower(), 0) if found else 0.0
    if size < 1:
        raise UserError(f"{name} = {text}: not an amount of memory; write 40GiB, 6GB, 512MiB, or 24 for 24 GiB")
    return int(size)


@final
@dataclass(frozen=True)
class Training(Registered, family="training", name="training"):
    """How a model is trained.

    batch: samples a step. accumulate: in how many parts a step is computed, to need less memory; the step is the same.
    minutes, samples: the budget, one of the two. With `samples` a run is a function of its settings, bit for bit; with
        `minutes` its length follows the machine, evaluation, pictures and saving included.
    optimizer: `adamw`; `adamw8`, its moments in 8 bits; `muon`, orthogonal momentum for the matrices of repeated layers.
    lr: AdamW's rate; the others are scaled so that it fits them too.
        warmup: it rises from 0 over this share of the run, or over so many samples if 1 or more.
        decay: it falls to 0 in a straight line over this share at the end.
    betas, weight_decay: AdamW's; weights of norms, biases and embeddings do not decay.
    clip: gradients longer than this are shortened to it; 0 for never.
    ema: relative deviations of the averages of the weights (power-function profile, EDM2). The first one is used.
    recompute: share of the network's blocks, the first ones, that keep no activations and run again in the backward pass.
    offload: what lies in the host's memory, updated there: the state of the `optimizer`, or `all`, the averages too.
    memory: of the device, such as 40GiB: `recompute` and then `accumulate` are raised until a step fits it.
    compile: record a step once and replay it; none: on a GPU. fp8: large linear layers of a transformer's blocks multiply in
        8-bit floats (extra `lowbit`, H100 and newer).
    parallel: how several processes (torchrun) share the work: `ddp`, each with the whole model; `fsdp`, each with a slice of
        every tensor; `hsdp`, slices among those of one machine, each machine with the whole; auto: ddp. A step is the same.
    sequence: how many processes, neighbours, share the tokens of each sample (`dit`, `mmdit`); every such group has its own
        part of the batch. A step is the same.
    drop: share of training samples whose condition is replaced by "anything", which guidance needs.
    precision: bf16 computes matrix products in bfloat16 and keeps weights in float32; auto takes it where the GPU has it.
    checkpoint_minutes: minutes between two checkpoints. keep: how many are kept, the newest. keep_every: and of every so many
        steps the first, for good; 0 for none. keep_best: and the one whose last held-out loss was the lowest.
    save_async: write checkpoints while the training goes on, from a copy in the host's memory; none: on a GPU.
    log_every: steps between two lines of metrics.jsonl.
    evaluations, pictures: how often over the run the held-out loss is measured and samples are drawn, evenly; 0 for never.
    threads: background threads that prepare batches. trackers: `tensorboard`, `wandb`, `trackio`.
    watchdog: seconds without a step after which the stacks of all threads are written down, and the process ends after as
        many again; none: 600, or 20 times the slowest step; 0 for never.
    snapshots: how often over the run the averages are kept, evenly, for `sfumato ema`; 0 for never.
    """

    batch: int = 64
    accumulate: int = 1
    minutes: float | None = None
    samples: int | None = None
    lr: float = 1e-3
    warmup: float = 0.02
    decay: float = 0.3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: tuple[float, ...] = (0.05,)
    drop: float = 0.1
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    checkpoint_minutes: float = 5.0
    keep: int = 2
    keep_every: int = 0
    keep_best: bool = False
    save_async: bool | None = None
    log_every: int = 20
    evaluations: int = 10
    pictures: int = 10
    threads: int = 1
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    watchdog: float | None = None
    snapshots: int = 0
    optimizer: Spec[Optimizer] = field(default_factory=lambda: Spec(AdamW))
    recompute: float = 0.0
    offload: Literal["none", "optimizer", "all"] = "none"
    memory: str | float | None = None
    compile: bool | None = None
    fp8: bool = False
    parallel: Literal["auto", "ddp", "fsdp", "hsdp"] = "auto"
    sequence: int = 1

    def __post_init__(self) -> None:
        for name in ("batch", "accumulate", "keep", "log_every", "threads", "sequence"):
            self._need(name, getattr(self, name) >= 1, "must be at least 1")
        for name in ("evaluations", "pictures", "snapshots", "weight_decay", "clip", "warmup", "keep_every"):
            self._need(name, 0 <= getattr(self, name) < math.inf, "can't be negative; 0 turns it off")
        self._need("accumulate", self.batch % self.accumulate == 0, f"must divide batch = {self.batch} evenly")
        self._need("minutes", self.minutes is None or 0 < self.minutes < math.inf, "must be above 0")
        self._need("samples", self.samples is None or self.samples >= 1, "must be at least 1")
        self._need("lr", 0 < self.lr < math.inf, "must be above 0; 1e-4 to 1e-3 are usual")
        self._need("decay", 0 <= self.decay <= 1, "is a share of the run, 0 to 1")
        self._need("recompute", 0 <= self.recompute <= 1, "is a share of the network's blocks, 0 to 1")
        self._need("drop", 0 <= self.drop < 1, "is a share of the samples, at least 0 and below 1")
        self._need("betas", all(0 <= beta < 1 for beta in self.betas), "must lie in [0, 1)")
        self._need("checkpoint_minutes", self.checkpoint_minutes > 0, "must be above 0")
        self._need("ema", len(self.ema) > 0 and all(0 < std < 0.28 for std in self.ema), "must lie in (0, 0.28)")
        self._need("watchdog", self.watchdog is None or 0 <= self.watchdog < math.inf, "is in seconds; 0 turns it off")
        if self.memory is not None:
            parse_memory(self.memory)
            self._need(
                "memory", self.sequence == 1, "not with train.sequence; set train.recompute and train.accumulate"
            )
        if self.minutes is not None and self.samples is not None:
            raise UserError(
                f"training has two budgets, minutes={self.minutes:g} and samples={self.samples}; set one of them to none"
            )

    def _need(self, name: str, good: bool, rule: str) -> None:
        if not good:
            raise UserError(f"train.{name} = {getattr(self, name)}: {rule}")
