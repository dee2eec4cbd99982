"""From a request to media: what everybody who only wants samples uses.

Pipeline.from_pretrained("runs/digits")("a handwritten seven", seed=0).images[0]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, TypeVar, final

import torch
from torch import Tensor, nn

from sfumato import modelfolder
from sfumato.core import Cond, Denoiser, Grid, LogisticGrid, NetDenoiser, Network, SampleNoise, TunedGrid
from sfumato.core.denoiser import recalling
from sfumato.errors import SfumatoError, UserError
from sfumato.guidance import Bound, ClassifierFree, Guidance, Threshold
from sfumato.model import Model, ModelSpec
from sfumato.nn.captured import Captured
from sfumato.nn.lowbit import KINDS, is_lowbit, lowbit
from sfumato.nn.offload import Offload, check_offload
from sfumato.nn.tiling import Sliced, sliced
from sfumato.output import Output, OutputType, images_of
from sfumato.registry import Registered
from sfumato.request import Request, resolve
from sfumato.samplers import ExpAdams, Solver, Tuned, sample, start
from sfumato.spec import as_spec, parse

T = TypeVar("T", bound=Registered)
OnStepEnd = Callable[["Pipeline", int, Tensor, dict[str, Tensor]], Mapping[str, Tensor] | None]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@final
@dataclass(frozen=True)
class Sampling(Registered, family="sampling", name="sampling"):
    """How a model is sampled when nothing else is asked for; stored with the model.

    solver, grid, steps: the walk from noise to data. guidance: how the condition is strengthened; none for not at all.
    threshold: how estimates are kept in the range of the media; none for not at all.
    """

    solver: Solver = field(default_factory=ExpAdams)
    grid: Grid = field(default_factory=LogisticGrid)
    steps: int = 20
    guidance: Guidance | None = field(default_factory=ClassifierFree)
    threshold: Threshold | None = None

    def __post_init__(self) -> None:
        _check_steps(self.steps)


@final
class Pipeline:
    """A model ready to be asked. Neither torch's global generator nor the model's training mode is changed by a call."""

    def __init__(
        self,
        model: Model,
        spec: ModelSpec,
        sampling: Sampling | None = None,
        *,
        trained: Mapping[str, Any] | None = None,
        compile: bool = False,
    ) -> None:
        """compile: on a GPU, also compile the blocks of networks that gain from it, up to a minute at the first call."""
        self.model = model
        self.spec = spec
        self.sampling = Sampling() if sampling is None else sampling
        self.trained = dict(trained or {})
        self.compile = compile
        self._acting: NetDenoiser | None = None  # the denoiser with its network recorded, or in slices
        self._tile: int | None = None
        self._slice: int | None = None
        self._offloading = False
        self._away: Offload | None = None
        self._others: dict[str, Model] = {}  # models that guidance compares with, by path

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Self:
        """Read a model folder, or the model of a run folder, on the CPU."""
        stored = modelfolder.load(path)
        try:
            sampling = parse(Sampling, {"type": "sampling", **stored.sampling}, path="sampling").build()
        except UserError as error:
            raise UserError(f"{modelfolder.find_folder(path) / modelfolder.CONFIG}: {error}") from None
        stored.model.eval()
        return cls(stored.model, stored.spec, sampling, trained=stored.trained)

    load = from_pretrained

    def save_pretrained(self, path: str | Path, card: str | None = None) -> Path:
        """Write the model folder, as a whole or not at all; `card` replaces the model card that is made up."""
        if is_lowbit(self.model):
            raise UserError(f"{path}: the model's weights are low-bit and can't be saved; load the model again")
        sampling = as_spec(self.sampling).to_dict()
        return modelfolder.save(path, self.model, self.spec, sampling=sampling, trained=self.trained, card=card)

    def to(
        self, device: torch.device | torch.dtype | str | None = None, dtype: torch.dtype | str | None = None
    ) -> Self:
        """Move the model; `dtype` (bf16, fp16, fp32) casts network and conditioner, solver and codec stay in float32.

        dtype int8, int8-dynamic or fp8: low-bit weights in the blocks of a transformer (extra `lowbit`).
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        kind = dtype if isinstance(dtype, str) and dtype in KINDS else None
        if dtype is not None and is_lowbit(self.model.denoiser.network):
            raise UserError(f"dtype={dtype}: the model's weights are low-bit and can't be cast; load the model again")
        if kind is not None:
            if self._offloading:
                raise UserError(f"dtype={kind}: not together with offload; leave one of them out")
            dtype = torch.float32 if str(device or self.model.device).startswith("cpu") else torch.bfloat16
        chosen = _DTYPES.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
        if dtype is not None and (chosen is None or not chosen.is_floating_point):
            raise UserError(f"dtype={dtype}: not a type to compute in; use {', '.join((*_DTYPES, *KINDS))}")
        self._acting = None  # what is recorded of the network is of where and what it was
        try:
            where = self.model.device if device is None else torch.device(device)
            if self._away is not None:
                self._away.remove()
                self._away = None
            for part in (self.model.denoiser, self.model.conditioner) if chosen is not None else ():
                if part is not None:
                    part.to(chosen)
            self._place(where)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, AssertionError):
            raise UserError(
                f"device={device}: this machine or this build of torch has no such device; use cpu"
            ) from None
        if kind is not None:
            lowbit(self.model.denoiser.network, kind)
            self.compile = self.compile or kind != "int8"  # the others need it on a GPU, or do not pay without
        return self

    def _place(self, device: torch.device) -> None:
        """Move everything, or all but the blocks of the network."""
        if not self._offloading or device.type == "cpu":
            self.model.to(device)
            return
        network = self.model.denoiser.network
        self._away = Offload(network, device)
        for part in (*self.model.children(), *self.model.denoiser.children()):
            if part is not network and part is not self.model.denoiser:
                part.to(device)

    def save_memory(self, *, tile: int | None = None, slice: int | None = None, offload: bool = False) -> Self:
        """How samples that do not fit are computed; settings take the place of earlier ones, none is all off.

        tile: media are decoded in tiles of at most this side, blended where they overlap, by a codec with a network; of a
        larger picture every tile has its own statistics in group norms. slice: at most so many samples go through the
        network at once (a guided one counts twice) and through the codec. offload: on a GPU the blocks of the network lie in
        the host's memory, and two at a time on the device; set it before `to("cuda")` for a network that does not fit. Works
        without gradients only, and without CUDA graphs. Slices and offload change samples by rounding.
        Networks that guidance compares with (`auto`) stay whole. Raises UserError for values that mean nothing.
        """
        for name, value in (("tile", tile), ("slice", slice)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise UserError(f"{name}={value!r}: must be a whole number, at least 1")
        if offload and self._away is None:
            check_offload(self.model.denoiser.network)
        self._tile, self._slice, self._offloading = tile, slice, offload
        return self.to(self.model.device)

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        label: int | str | Sequence[int | str] | None = None,
        number: float | Sequence[float] | Sequence[Sequence[float]] | None = None,
        given: Mapping[str, Any] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        n: int = 1,
        seed: int | Sequence[int] = 0,
        num_inference_steps: int | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        solver: Solver | str | Mapping[str, Any] | None = None,
        grid: Grid | str | Mapping[str, Any] | None = None,
        guidance: Guidance | str | Mapping[str, Any] | None = None,
        threshold: Threshold | str | Mapping[str, Any] | None = None,
        batch_size: int = 64,
        callback_on_step_end: OnStepEnd | None = None,
        output_type: OutputType = "pil",
    ) -> Output:
        """`n` samples of each prompt (or label, or number); sample i of prompt j has the seed `seed + j n + i`.

        given: files, pictures or tensors (B, C, *S) by the columns that a model reads them from: {"picture": "chair.png"}.
        Several prompts, labels, numbers and files go together one by one; a single one goes with all. A list of seeds has
        one a sample. A sample's noise is a function of its seed alone, so it does not depend on `batch_size` or its
        neighbours: bit for bit within batches of one shape, and up to rounding (about 1e-6 of a deviation) between shapes.

        guidance_scale: one, or one a prompt; 1 is no guidance, 0 needs no condition and gives "anything" (the scales of
        `pag`, `cfg++` and of gradients differ: see their classes).
        callback_on_step_end: `f(pipeline, step, t, {"x": x})` after every step of every batch, with the time reached; it
        may return `{"x": ...}` to go on from. Raises UserError for anything that the model can't be asked.
        """
        if output_type not in ("pil", "np", "pt"):
            raise UserError(f"output_type={output_type!r}: use pil, np or pt")
        plan = self.plan(
            prompt,
            label=label,
            number=number,
            given=given,
            negative_prompt=negative_prompt,
            n=n,
            seed=seed,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            solver=solver,
            grid=grid,
            guidance=guidance,
            threshold=threshold,
        )
        made = torch.cat(list(self.run(plan, batch_size, callback_on_step_end)))
        images = images_of(made, output_type, self.model.info)
        return Output(made, images, plan.request.seeds, plan.request.texts, plan.settings, self.model.info)

    def plan(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        label: int | str | Sequence[int | str] | None = None,
        number: float | Sequence[float] | Sequence[Sequence[float]] | None = None,
        given: Mapping[str, Any] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        n: int = 1,
        seed: int | Sequence[int] = 0,
        num_inference_steps: int | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        solver: Solver | str | Mapping[str, Any] | None = None,
        grid: Grid | str | Mapping[str, Any] | None = None,
        guidance: Guidance | str | Mapping[str, Any] | None = None,
        threshold: Threshold | str | Mapping[str, Any] | None = None,
    ) -> Plan:
        """Check a call without making it. For very many samples: `run(plan)` gives them batch by batch."""
        own = self.sampling
        steps = own.steps if num_inference_steps is None else num_inference_steps
        _check_steps(steps)
        chosen = own.guidance if guidance is None else _built(Guidance, guidance, "guidance")
        acting = chosen or ClassifierFree()
        unconditional = self.model.conditioner is None
        if guidance is not None and unconditional and acting.by_condition:
            raise UserError(
                f"guidance={acting.kind}: this model is unconditional, there is nothing to guide it by; use auto or pag"
            )
        request = resolve(
            self.model.info,
            () if self.model.conditioner is None else self.model.conditioner.columns,
            prompt=prompt,
            label=label,
            number=number,
            given=given or {},
            shown={} if self.model.conditioner is None else self.model.conditioner.media,
            negative_prompt=negative_prompt,
            n=n,
            seed=seed,
            guidance_scale=guidance_scale,
            guidance=acting,
            guided=chosen is not None,
        )
        if self.model.conditioner is not None:  # prompts too long, numbers out of range
            for columns in (request.columns, request.negative_columns if request.negative else {}):
                if columns:
                    self.model.conditioner.prepare(columns)
        walker, rule = _together(
            own.solver if solver is None else _built(Solver, solver, "solver"),
            own.grid if grid is None else _built(Grid, grid, "grid"),
            steps,
        )
        return Plan(
            request,
            walker,
            rule,
            steps,
            acting if (request.guided or request.scale) and not (unconditional and acting.by_condition) else None,
            own.threshold if threshold is None else _built(Threshold, threshold, "threshold"),
        )

    def run(self, plan: Plan, batch_size: int = 64, callback_on_step_end: OnStepEnd | None = None) -> Iterator[Tensor]:
        """The samples of a plan in order, as media (B, C, *S) on the CPU, at most `batch_size` at a time."""
        if not isinstance(batch_size, int) or batch_size < 1:
            raise UserError(f"batch_size={batch_size!r}: must be at least 1")
        for batch, real in plan.request.batches(batch_size):
            # no_grad, not inference_mode: a table that a network caches while it is sampled must still serve in training
            with torch.no_grad(), _evaluating(self.model):
                x0 = self._walk(replace(plan, request=batch), callback_on_step_end)[:real]
                made = self._decoded(x0)
            yield made

    def _decoded(self, x0: Tensor) -> Tensor:
        """x0 (B, *S) as media on the CPU, in slices and tiles where that is asked for."""
        codec, tile = self.model.codec, self._tile

        def decode(part: Tensor) -> Tensor:
            return (codec.decode(part) if tile is None else codec.decode_tiled(part, tile)).cpu()

        return sliced(decode, x0, self._slice or len(x0))

    def _walk(self, plan: Plan, callback: OnStepEnd | None) -> Tensor:
        """x0 (B, *S) of one batch."""
        model, process = self.model, self.model.denoiser.process
        intervals = plan.solver.intervals(process, plan.steps)
        times = plan.grid(process, intervals)
        denoiser, cond = self.guided(plan, times)
        noise = SampleNoise(plan.request.seeds)
        x = start(process, noise.prior(model.codec.shape, device=model.device), times[0])

        def on_step(done: int, t: Tensor, x: Tensor) -> Tensor | None:
            number = done - 1 - (intervals - plan.steps)  # steps that ask the network nothing are not counted
            if callback is None or number < 0:
                return None
            changed = (callback(self, number, t, {"x": x}) or {}).get("x")
            if changed is not None and changed.shape != x.shape:
                raise UserError(
                    f"callback_on_step_end gave x of shape {tuple(changed.shape)}; it must stay {tuple(x.shape)}"
                )
            return changed

        return sample(denoiser, plan.solver, x, times, cond, noise=noise, on_step=on_step)

    def guided(self, plan: Plan, times: Tensor | None = None) -> tuple[Denoiser, Cond | None]:
        """For all samples of a plan as one batch: the denoiser, guidance and threshold around it, and its condition.

        times: the sampling grid, for a guidance that depends on it. The mode of the model and gradients are the caller's.
        """
        request, model, conditioner = plan.request, self.model, self.model.conditioner
        denoiser = recalling(self._asked())
        cond = null = None if conditioner is None else conditioner.null(len(request.seeds))
        if request.columns:  # without: guidance_scale = 0, or nothing to ask by
            cond = model.condition(request.columns)
            null = model.condition(request.negative_columns) if request.negative else null
        scales = request.scale or (() if plan.guidance is None else (plan.guidance.scale,))
        if plan.guidance is not None and any(value != plan.guidance.neutral for value in scales):
            scale = None if request.scale is None else torch.tensor(request.scale, dtype=torch.float64)
            others = {path: self._other(path, request) for path in plan.guidance.models}
            denoiser = plan.guidance.wrap(denoiser, null, scale, times=times, models=others)
        if plan.threshold is not None:
            denoiser = plan.threshold.wrap(denoiser, model.codec.bounds())
        return denoiser, cond

    def _asked(self) -> NetDenoiser:
        """The denoiser with its network as it is computed: replayed from CUDA graphs on a GPU, and in slices."""
        ours = self.model.denoiser
        recorded = self.model.device.type == "cuda" and self._away is None
        if not recorded and self._slice is None:
            return ours
        if self._acting is None:
            network: Network = Captured(ours.network, compiled=self.compile) if recorded else ours.network
            network = network if self._slice is None else Sliced(network, self._slice)
            self._acting = ours.through(network)
        return self._acting

    def _other(self, path: str, request: Request) -> Denoiser:
        """The denoiser of another model of the same data, asked what this one is asked, in its own words."""
        if path not in self._others:
            try:
                other = modelfolder.load_model(path)
            except SfumatoError as error:
                raise UserError(f"guidance.model: {error}") from None
            _check_alike(path, self.model, other)
            self._others[path] = other.eval().requires_grad_(False)
        other = self._others[path].to(self.model.device)
        for ours, theirs in ((self.model.denoiser, other.denoiser), (self.model.conditioner, other.conditioner)):
            weight = None if ours is None else next(ours.parameters(), None)
            if weight is not None and theirs is not None:
                theirs.to(weight.dtype)
        if other.conditioner is None:
            return other.denoiser
        cond = other.condition(request.columns) if request.columns else other.conditioner.null(len(request.seeds))
        return Bound(other.denoiser, cond)


@final
@dataclass(frozen=True)
class Plan:
    """A call of a pipeline, checked: what is asked of every sample, and how all are sampled."""

    request: Request
    solver: Solver
    grid: Grid
    steps: int
    guidance: Guidance | None
    threshold: Threshold | None

    @property
    def settings(self) -> dict[str, Any]:
        """Keyword arguments of the call, all of them."""
        parts = {"solver": self.solver, "grid": self.grid, "guidance": self.guidance, "threshold": self.threshold}
        return {
            **({} if self.guidance is None else {"guidance_scale": self.guidance.scale}),
            **self.request.settings,
            "num_inference_steps": self.steps,
            **{name: _written(part) for name, part in parts.items() if part is not None},
        }

    def take(self, rows: Sequence[int]) -> Plan:
        """The plan of some of its samples."""
        return replace(self, request=self.request.take(rows))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode (no dropout), and every module back in the mode it was in afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _together(solver: Solver, grid: Grid, steps: int) -> tuple[Solver, Grid]:
    """Numbers and times that were fitted together to this many steps; what they fall back on wherever one is missing."""
    if isinstance(solver, Tuned) and isinstance(grid, TunedGrid):
        walk = solver.walk(steps)
        if walk is not None and walk.times[0] in grid.times:
            return walk, TunedGrid(walk.times, grid.otherwise)
    return (
        solver.otherwise if isinstance(solver, Tuned) else solver,
        grid.otherwise if isinstance(grid, TunedGrid) else grid,
    )


def _built(base: type[T], value: T | str | Mapping[str, Any], name: str) -> T:
    return value if isinstance(value, base) else parse(base, value, path=name).build()


def _written(part: Registered) -> Any:
    """A part as settings; one that has no name of its own (guidance by a function) as it is."""
    return as_spec(part).to_dict() if part.kind else part


def _check_alike(path: str, ours: Model, other: Model) -> None:
    """Raise UserError unless another model means the same by x0 and can be asked what this one is asked."""
    theirs, mine = other.codec.state_dict(), ours.codec.state_dict()
    same = (
        type(other.codec) is type(ours.codec) and other.codec.shape == ours.codec.shape and theirs.keys() == mine.keys()
    )
    if not same or not all(torch.allclose(theirs[k].to(mine[k]), mine[k], rtol=1e-3, atol=1e-3) for k in mine):
        raise UserError(
            f"guidance.model = {path}: its codec is another, it was not trained on the same data; use one that was"
        )
    known = () if ours.conditioner is None else ours.conditioner.columns
    more = [] if other.conditioner is None else [c for c in other.conditioner.columns if c not in known]
    if more:
        raise UserError(
            f"guidance.model = {path}: it is asked by {', '.join(more)} and this model is not; use one that is alike"
        )


def _check_steps(steps: int) -> None:
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise UserError(f"sampling needs a whole number of steps, at least 1, not {steps!r}; set steps= to 1 or more")
