"""Error against network evaluations on a trained network: ours and diffusers' schedulers against its own exact solution.

    python -m benchmarks.solvers_network MODEL [--device cpu] [--n 64] [--seed 0] [--listed] [--tune N]
                                         [--prompt TEXT | --label NAME] [--json] [--write NAME]

MODEL is a model or run folder. The truth is the network's own probability-flow ODE from t = 1 to t = 1/1000 and one
denoising there, 4,001 evaluations: 1,000 steps of Runge-Kutta 4 in the angle phi = atan(sigma / alpha), equal in
sqrt(phi),

    dy / dphi = (cos(phi) y - E[x0 | x]) / sin(phi),   y = x / sqrt(alpha^2 + sigma^2) = cos(phi) x0 + sin(phi) eps,

which is finite at both ends of every process. It stops at t = 1/1000 because the peer's schedulers do. `truth_change`
is its relative change from half as many steps. A network asks for more steps than a formula: the fastest of its
sinusoids of the noise level turns 160 times on the way, and on digits 1,000 evaluations are 2e-4 to 9e-4 from the
limit, 4,001 are 2e-6.

Both sides start from one noise, in float64; the network computes in its own type and without TF32. A model on a
variance-preserving process (discrete-vp, vp) is handed to the ordinary schedulers as an eps-predictor
(`benchmarks._peers`), one on `flow` to the flow-matching ones as a velocity, v = (x - x0) / t at t = timestep / 1000.
Guidance is off; without a prompt or label a conditional model is asked for "anything".

Of the flow-matching schedulers: DPM-Solver, DEIS and SA-Solver start at sigma = 0.999 instead of 1, and they and UniPC
truncate the timestep to an integer, so the network is asked up to 0.001 away from the sigma. DEIS and SA-Solver repeat
their last sigma instead of going on to 0: after 5 steps x is handed back at sigma = 0.2. `shift` of the Euler and Heun
ones acts twice on the last sigma (0.001 becomes 0.009 for shift 3).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from benchmarks._peers import LISTED, AnyPeer, Net, peers
from benchmarks._table import RESULTS, machine, versions
from benchmarks.solvers import NFE, Found, ours, show
from sfumato.core import Cond, Denoiser, Process, lift
from sfumato.errors import UserError
from sfumato.pipeline import Pipeline
from sfumato.tuning import Start, Tuning, tune

LAST = 1e-3  # the time at which the truth, and the peer's grids, denoise
RK4_STEPS = 1000


@final
class Bound:
    """A denoiser with its condition bound, so that peers and ours call one thing."""

    def __init__(self, denoiser: Denoiser, cond: Cond | None) -> None:
        self.process, self._denoiser, self._cond = denoiser.process, denoiser, cond

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        return self._denoiser(x_t, t, self._cond)


@final
@dataclass(frozen=True)
class NetworkTask:
    """A network and the noise that every solver starts from, (B, *S)."""

    denoiser: Bound
    start: Tensor

    @property
    def process(self) -> Process:
        return self.denoiser.process


def truth(task: NetworkTask, steps: int = RK4_STEPS) -> Tensor:
    """The end of the paths from the start at t = 1: 4 `steps` + 1 evaluations."""
    process = task.process
    alpha, sigma = process.scales(torch.tensor([1.0, LAST], dtype=torch.float64))
    first, last = (float(v) for v in torch.atan2(sigma, alpha))
    root, width = math.sqrt(first), (math.sqrt(last) - math.sqrt(first)) / steps

    def x0(y: Tensor, phi: float) -> Tensor:
        noisiest = phi >= first - 1e-12
        logsnr = torch.tensor(-2 * math.log(math.tan(phi)), dtype=torch.float64)
        t = (torch.ones_like(logsnr) if noisiest else process.time(logsnr)).expand(len(y))
        a, s = process.scales(t)
        return task.denoiser(lift(torch.hypot(a, s), y) * y, t)

    def slope(y: Tensor, at: float) -> Tensor:  # with respect to sqrt(phi)
        phi = at * at
        return (math.cos(phi) * y - x0(y, phi)) * (2 * at / math.sin(phi))

    y = task.start / float(torch.hypot(alpha[0], sigma[0]))
    for i in range(steps):
        at = root + i * width
        k1 = slope(y, at)
        k2 = slope(y + width / 2 * k1, at + width / 2)
        k3 = slope(y + width / 2 * k2, at + width / 2)
        k4 = slope(y + width * k3, at + width)
        y = y + width / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x0(y, last)


@final
@dataclass(frozen=True)
class FlowPeer:
    """A flow-matching scheduler with its settings."""

    solver: str
    grid: str
    cls: str
    settings: dict[str, Any] = field(default_factory=dict)

    def run(self, task: NetworkTask, nfe: int) -> tuple[Tensor, int]:
        """(x0, evaluations made), at most `nfe`."""
        import diffusers

        scheduler = getattr(diffusers, self.cls)(**self.settings)
        for steps in range(nfe, 0, -1):
            scheduler.set_timesteps(steps)
            if len(scheduler.timesteps) <= nfe:
                break
        scheduler.set_begin_index(0)
        x = task.start
        for k in scheduler.timesteps:
            t = torch.full((len(x),), float(k) / 1000, dtype=torch.float64)
            velocity = (x - task.denoiser(x, t)) / lift(t, x)
            x = scheduler.step(velocity, k, x, return_dict=False)[0].to(x.dtype)
        return x, len(scheduler.timesteps)


def flow_peers() -> list[FlowPeer]:
    """The deterministic flow-matching schedulers, without a shift and with Stable Diffusion 3's."""
    found = []
    multistep: dict[str, tuple[str, dict[str, Any]]] = {
        "deis-3": ("DEISMultistepScheduler", {"solver_order": 3}),
        "dpmpp-2m": ("DPMSolverMultistepScheduler", {"solver_order": 2}),
        "dpmpp-3m": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
        "sa-3-4": ("SASolverScheduler", {"predictor_order": 3, "corrector_order": 4, "tau_func": _no_noise}),
        "unipc-2": ("UniPCMultistepScheduler", {"solver_order": 2}),
        "unipc-3": ("UniPCMultistepScheduler", {"solver_order": 3}),
    }
    for shift in (1.0, 3.0):
        grid = f"shift {shift:g}"
        for name in ("uniform", "karras", "exponential", "beta"):
            more = {} if name == "uniform" else {f"use_{name}_sigmas": True}
            found.append(
                FlowPeer("euler", f"{name} {grid}", "FlowMatchEulerDiscreteScheduler", {"shift": shift, **more})
            )
        found.append(FlowPeer("heun", grid, "FlowMatchHeunDiscreteScheduler", {"shift": shift}))
        for name, (cls, settings) in multistep.items():
            flow = {"use_flow_sigmas": True, "flow_shift": shift, "prediction_type": "flow_prediction"}
            found.append(FlowPeer(name, grid, cls, {**settings, **flow}))
    return found


def _no_noise(t: float) -> float:
    return 0.0


def peer_results(task: NetworkTask, listed: bool) -> list[tuple[AnyPeer | FlowPeer, int, Tensor, int]]:
    """(peer, nfe, x0, evaluations) of each peer that works on the task's process."""
    alpha, sigma = task.process.scales(torch.linspace(0, 1, 11, dtype=torch.float64))
    flow = torch.allclose(alpha + sigma, torch.ones_like(alpha))
    candidates: Sequence[AnyPeer | FlowPeer] = flow_peers() if flow else peers()
    found = []
    for peer in candidates:
        if listed and not isinstance(peer, FlowPeer) and (peer.solver, peer.grid) not in LISTED:
            continue
        for nfe in NFE:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    if isinstance(peer, FlowPeer):
                        done: tuple[Tensor, int] | None = peer.run(task, nfe)
                    else:
                        done = peer.run(Net(task.denoiser), task.start, nfe)
            except (ImportError, IndexError, ValueError, torch.linalg.LinAlgError) as error:
                print(f"diffusers: {peer.solver} on {peer.grid} at {nfe}: {str(error).strip()[:90]}", file=sys.stderr)
                continue
            if done is not None:
                found.append((peer, nfe, *done))
    return found


def fitted(pipeline: Pipeline, options: argparse.Namespace) -> dict[int, Tuning]:
    """Walks fitted to the network from other starts than the ones measured, in its own type."""
    process, model, batches = pipeline.model.denoiser.process, pipeline.model, []
    for k in range(12):
        task = load(pipeline, argparse.Namespace(**{**vars(options), "seed": 1000 + options.seed + k, "n": 32}))
        scale = float(process.sigma(torch.ones((), dtype=torch.float64)))
        batches.append(Start(task.denoiser, (task.start / scale).float()))
    model.requires_grad_(False)
    return {nfe: tune(batches[:8], batches[8:], nfe, iterations=options.tune) for nfe in (5, 8, 10)}


def compare(
    task: NetworkTask, exact: Tensor, tunings: dict[int, Tuning], *, listed: bool, only: Sequence[str] | None = None
) -> list[Found]:
    """Rows of both libraries, with `error` = |x0 - exact| / |exact| over the whole batch."""
    rows: list[Found] = []

    def add(library: str, nfe: int, solver: str, grid: str, evaluations: int, x0: Tensor, **more: Any) -> None:
        error = float((x0 - exact).norm() / exact.norm())
        if math.isfinite(error):
            row = {"nfe": nfe, "solver": solver, "grid": grid, "library": library, "error": error}
            rows.append({**row, "evaluations": evaluations, **more})

    for nfe in NFE:
        for solver, grid, role, evaluations, x0 in ours(task, nfe, tunings, only):
            add("sfumato", nfe, solver, grid, evaluations, x0, role=role)
    for peer, nfe, x0, evaluations in peer_results(task, listed):
        named = (peer.solver, peer.grid) in LISTED
        add("diffusers", nfe, peer.solver, peer.grid, evaluations, x0, listed=named)
    return rows


def load(pipeline: Pipeline, options: argparse.Namespace) -> NetworkTask:
    """The model on its device, with the condition asked for and a start for each of n samples."""
    torch.backends.cudnn.allow_tf32 = False
    model = pipeline.model
    cond = None
    if model.conditioner is not None and (options.prompt or options.label):
        plan = pipeline.plan(options.prompt, label=options.label, n=options.n, guidance_scale=1.0)
        cond = model.condition(plan.request.columns)
    elif model.conditioner is not None:
        cond = model.conditioner.null(options.n)
    generator = torch.Generator().manual_seed(options.seed)
    noise = torch.randn(options.n, *model.codec.shape, generator=generator, dtype=torch.float64)
    return NetworkTask(Bound(model.denoiser, cond), noise.to(options.device))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.solvers_network", description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, help="a model or run folder")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--n", type=int, default=64, help="samples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompt")
    parser.add_argument("--label")
    parser.add_argument("--rk4", type=int, default=RK4_STEPS, help="steps of the truth, of four evaluations")
    parser.add_argument("--only", nargs="+", help="of ours, only these solvers")
    parser.add_argument("--tune", type=int, default=0, metavar="N", help="fit walks of 5, 8, 10 in N iterations too")
    parser.add_argument("--listed", action="store_true", help="only the peer's solvers of benchmarks.solvers' list")
    parser.add_argument("--json", action="store_true", help="print all rows as JSON")
    parser.add_argument("--write", metavar="NAME", help="keep the rows in benchmarks/results/NAME.json")
    options = parser.parse_args()
    try:
        pipeline = Pipeline.from_pretrained(options.model).to(options.device)
        pipeline.model.eval()
        tunings = fitted(pipeline, options) if options.tune else {}
        with torch.no_grad():
            task = load(pipeline, options)
            exact = truth(task, options.rk4)
            change = float((truth(task, options.rk4 // 2) - exact).norm() / exact.norm())
            rows = compare(task, exact, tunings, listed=options.listed, only=options.only)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        print(f"truth: relative change {change:.1e} from half as many steps")
        show(rows)
    if options.write:
        about = machine(device=_device_name(options.device), threads=torch.get_num_threads())
        settings = {"n": options.n, "seed": options.seed, "process": task.process.kind, "truth_change": change}
        packages = versions("sfumato", "diffusers", "numpy", "scipy")
        found = {"rows": rows, "settings": settings, "machine": about, "versions": packages}
        (RESULTS / f"{options.write}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


if __name__ == "__main__":
    main()
