"""diffusers' schedulers as solvers: the deterministic ones with the settings they offer, driven as its pipelines drive
them.

A `Peer` is a scheduler class with settings. `run(net, start, nfe)` takes as many steps as `nfe` evaluations allow and
returns x0 and the evaluations made: one an entry of the scheduler's own `timesteps`, so 2 n - 1 for Heun and DPM2, n +
1 for PNDM.

The network is E[x0 | x_t] of a sfumato denoiser, turned into what a scheduler asks for: eps = (x - alpha x0) / sigma
for a variance-preserving process, at time t = (k + 1) / 1000 for index k. Between two indices, where Euler, Heun and
LMS stand on fractional ones, sigma / alpha is interpolated geometrically, which is how those schedulers find the index.
A scheduler that rounds its timesteps is given the network at the rounded one: that is what it does to a user's network
too.

All begin with x_T: a scheduler whose x is x_t / alpha gets x_T sqrt(1 + sigma^2), sigma being its own first level (its
`init_noise_sigma` is sigma, smaller by 2e-5). `leading` spacing begins below the last index and takes x_T for the x
there.

Peculiarities of diffusers 0.42 that show in the figures:

* DDIM and PNDM step by 1000 // n indices whatever their timesteps are: where n does not divide 1000, x is left at one
  index and the network asked at another (15 trailing steps: 933 and 932), and DDIM ends at index 0 instead of clean.
  `euler` on the same grid is the same method done right.
* trailing counts its timesteps with `np.arange(1000, 0, -1000 / n)`: 61 steps are 62, the last one -1.
* trailing: the last timestep is 1000 / n - 1 and the step from there goes to sigma = 0. At 50 steps that is a jump from
  sigma = 0.05, so DDIM, DPM-Solver and UniPC do not get below 0.043 on the mixture with this grid.
* `use_karras_sigmas` and `use_lu_lambdas` of DPM-Solver, UniPC, DEIS, SA-Solver and DPM2 round the timesteps to
  integers while the sigmas stay where they were, so network and solver disagree by up to half an index;
  `use_exponential_sigmas` and `use_beta_sigmas` truncate, up to a whole one. The grid of `use_exponential_sigmas` is
  that of `use_lu_lambdas`.
* DEIS and SA-Solver end at the sigma of index 0 and hand x back there, without the last denoising; with Karras,
  exponential or beta sigmas the last level is repeated, so the last evaluation is spent on a step of length 0.
* `final_sigmas_type="sigma_min"` of DPM-Solver and UniPC ends the same way. With Karras, exponential, beta or lu grids
  the last step then has length 0, and DPM-Solver++ 3M without `lower_order_final` divides 0 by 0 in it.
* UniPC with `solver_type="bh1"` and `predict_x0` gives NaN whenever the last sigma is 0 (the default): B(h) = h is
  infinite. `lower_order_final=False` of order 3 and above stops with a singular matrix there.
* `lower_order_final` of DPM-Solver and DEIS acts below 15 steps only. From 15 on DEIS-3 goes to index 0 in a last step
  of full order: three times worse with 15 trailing evaluations than with 10.
* Heun, Euler, LMS and DPM2 take the ends of Karras, exponential and beta grids from the grid of `timestep_spacing`, so
  with trailing spacing those grids too end high.
* PNDM evaluates the second timestep twice; n steps are n + 1 evaluations.
* iPNDM's `trained_betas` are not betas but sigmas, one a step and a last 0; its network predicts v.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from sfumato.core import Cond, Denoiser, DiscreteVP, lift
from sfumato.errors import UserError

Settings = dict[str, Any]
TRAINED = 1000  # indices of the schedulers
_VE = ("EulerDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler", "KDPM2DiscreteScheduler")


@final
class Net:
    """A denoiser on a variance-preserving process as diffusers' schedulers see it; counts its evaluations."""

    def __init__(self, denoiser: Denoiser, cond: Cond | None = None) -> None:
        self.denoiser, self.cond, self.evaluations = denoiser, cond, 0
        self.process = denoiser.process
        alpha, sigma = self.process.scales(torch.arange(1, TRAINED + 1, dtype=torch.float64) / TRAINED)
        if not torch.allclose(alpha**2 + sigma**2, torch.ones_like(alpha)) or float(alpha[-1]) == 0:
            raise UserError(
                f"the ordinary schedulers of diffusers need a variance-preserving process that keeps alpha(1) > 0, "
                f"not '{self.process.kind}'; train with process=discrete-vp"
            )
        self.log_sigmas = (sigma.log() - alpha.log()).numpy()

    def x0(self, x: Tensor, log_sigma: float) -> tuple[Tensor, Tensor, Tensor]:
        """(E[x0 | x], alpha, sigma) for x (B, *S) of the process at log(sigma / alpha)."""
        self.evaluations += 1
        t = self.process.time(torch.tensor(-2 * log_sigma, dtype=torch.float64)).expand(len(x))
        return self.denoiser(x, t, self.cond), *(lift(c, x) for c in self.process.scales(t))

    def eps(self, x: Tensor, index: float) -> Tensor:
        """The noise in x (B, *S) at an index of the betas, 0 to 999, whole or not."""
        log_sigma = float(np.interp(index, np.arange(len(self.log_sigmas)), self.log_sigmas))
        x0, alpha, sigma = self.x0(x, log_sigma)
        return (x - alpha * x0) / sigma

    @property
    def betas(self) -> Settings:
        """The settings that give a scheduler this process."""
        if self.process == DiscreteVP("linear"):
            return {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
        kept = 1 / (1 + np.exp(2 * self.log_sigmas))
        return {"trained_betas": (1 - kept / np.concatenate([[1.0], kept[:-1]])).tolist()}


@final
@dataclass(frozen=True)
class Peer:
    """A scheduler with its settings. solver and grid: the names it is listed under."""

    solver: str
    grid: str
    cls: str
    settings: Settings = field(default_factory=dict)
    timesteps: tuple[int, ...] = ()  # a fixed list, for that many evaluations only

    def run(self, net: Net, start: Tensor, nfe: int) -> tuple[Tensor, int] | None:
        """(x0, evaluations made), at most `nfe`; None where the scheduler can't."""
        scheduler = self._ready(net.betas, nfe)
        if scheduler is None:
            return None
        before = net.evaluations
        if self.cls in _VE:
            x = start * float(1 + scheduler.sigmas[0].double() ** 2) ** 0.5
        else:
            x = start
        for k in scheduler.timesteps:
            at = scheduler.scale_model_input(x, k)
            x = scheduler.step(net.eps(at, float(k)), k, x, return_dict=False)[0]
        return x, net.evaluations - before

    def _ready(self, betas: Settings, nfe: int) -> Any:
        """The scheduler after `set_timesteps`, with the most steps that `nfe` evaluations pay for."""
        import diffusers

        logging.getLogger("diffusers").setLevel(logging.ERROR)
        scheduler = getattr(diffusers, self.cls)(**betas, **self.settings)
        if self.timesteps:
            if len(self.timesteps) != nfe:
                return None
            scheduler.set_timesteps(timesteps=list(self.timesteps))
        else:
            for steps in range(nfe, 0, -1):
                try:
                    scheduler.set_timesteps(steps)
                except (IndexError, ValueError):
                    return None
                if len(scheduler.timesteps) <= nfe:
                    break
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        return scheduler


@final
@dataclass(frozen=True)
class PeerEDM:
    """The schedulers of EDM, in x / alpha, with their own grids between the process's first and last sigma, unrounded."""

    solver: str
    grid: str
    cls: str
    settings: Settings = field(default_factory=dict)

    def run(self, net: Net, start: Tensor, nfe: int) -> tuple[Tensor, int] | None:
        import diffusers

        ends = {"sigma_min": math.exp(net.log_sigmas[0]), "sigma_max": math.exp(net.log_sigmas[-1])}
        scheduler = getattr(diffusers, self.cls)(**ends, sigma_data=0.5, sigma_schedule=self.grid, **self.settings)
        scheduler.set_timesteps(nfe)
        scheduler.set_begin_index(0)
        before = net.evaluations
        x = start * math.sqrt(1 + float(scheduler.sigmas[0]) ** 2)
        for k in scheduler.timesteps:
            scheduler.scale_model_input(x, k)  # sets the step's index
            sigma = float(scheduler.sigmas[scheduler.step_index])
            x0, _, _ = net.x0(x / math.sqrt(1 + sigma**2), math.log(sigma))
            total = sigma**2 + 0.25
            out = (x0 - 0.25 / total * x) * math.sqrt(total) / (0.5 * sigma)  # F of EDM's c_skip x + c_out F
            x = scheduler.step(out, k, x, return_dict=False)[0]
        return x, net.evaluations - before


@final
@dataclass(frozen=True)
class PeerIPNDM:
    """iPNDM on a grid of ours, handed over as its `trained_betas` (which are sigmas); by v = alpha eps - sigma x0."""

    grid: str
    sigmas: Callable[[Net, int], np.ndarray[Any, Any]]  # n values of log(sigma / alpha)
    solver: str = "ipndm"

    def run(self, net: Net, start: Tensor, nfe: int) -> tuple[Tensor, int] | None:
        import diffusers

        levels = self.sigmas(net, nfe)
        scheduler = diffusers.IPNDMScheduler(trained_betas=[*(1 / np.sqrt(1 + np.exp(-2 * levels))).tolist(), 0.0])
        scheduler.set_timesteps(nfe)
        scheduler.set_begin_index(0)
        before, x = net.evaluations, start
        for level, k in zip(levels, scheduler.timesteps, strict=True):
            x0, alpha, sigma = net.x0(x, float(level))
            v = (alpha * x - x0) / sigma  # alpha eps - sigma x0, for alpha^2 + sigma^2 = 1
            x = scheduler.step(v, k, x, return_dict=False)[0]
        return x, net.evaluations - before


AnyPeer = Peer | PeerEDM | PeerIPNDM

_GRIDS: dict[str, Settings] = {
    "trailing": {"timestep_spacing": "trailing"},
    "linspace": {"timestep_spacing": "linspace"},
    "leading": {"timestep_spacing": "leading"},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "logsnr": {"use_lu_lambdas": True},
}

LISTED = {  # the ones that a reference table of these errors had before this benchmark was written
    ("ddim", "trailing"), ("heun", "karras"), ("pndm", "trailing"), ("lms", "trailing"), ("deis-3", "trailing"),
    ("dpmpp-2m", "trailing"), ("dpmpp-2m", "karras"), ("dpmpp-3m", "trailing"), ("dpmpp-3m", "logsnr"),
    ("unipc-3", "trailing"), ("unipc-3", "karras"),
}  # fmt: skip


def _no_noise(t: float) -> float:
    return 0.0


_LAST = {"final_sigmas_type": "sigma_min"}
_2M = ("DPMSolverMultistepScheduler", {"solver_order": 2})
_3M = ("DPMSolverMultistepScheduler", {"solver_order": 3})
_SA = {"tau_func": _no_noise}

_SOLVERS: dict[str, tuple[str, Settings]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "euler": ("EulerDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm2": ("KDPM2DiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "pndm set_alpha_to_one": ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": True}),
    "deis-2": ("DEISMultistepScheduler", {"solver_order": 2}),
    "deis-3": ("DEISMultistepScheduler", {"solver_order": 3}),
    "dpmpp-2s": ("DPMSolverSinglestepScheduler", {"solver_order": 2, "lower_order_final": True}),
    "dpmpp-3s": ("DPMSolverSinglestepScheduler", {"solver_order": 3, "lower_order_final": True}),
    "dpmpp-2m": _2M,
    "dpmpp-2m heun": (_2M[0], {**_2M[1], "solver_type": "heun"}),
    "dpmpp-2m euler_at_final": (_2M[0], {**_2M[1], "euler_at_final": True}),
    "dpmpp-2m sigma_min": (_2M[0], {**_2M[1], **_LAST}),
    "dpmpp-3m": _3M,
    "dpmpp-3m euler_at_final": (_3M[0], {**_3M[1], "euler_at_final": True}),
    "dpmpp-3m no lower_order_final": (_3M[0], {**_3M[1], "lower_order_final": False}),
    "dpmpp-3m sigma_min": (_3M[0], {**_3M[1], **_LAST}),
    "dpm-2m sigma_min": (_2M[0], {**_2M[1], **_LAST, "algorithm_type": "dpmsolver"}),
    "dpm-3m sigma_min": (_3M[0], {**_3M[1], **_LAST, "algorithm_type": "dpmsolver"}),
    **{
        f"sa-{p}-{c}{name}": ("SASolverScheduler", {**_SA, "predictor_order": p, "corrector_order": c, **more})
        for p, c in ((2, 2), (3, 4))
        for name, more in (("", {}), (" noise_prediction", {"algorithm_type": "noise_prediction"}))
    },
    **{
        f"unipc-{order}{name}": ("UniPCMultistepScheduler", {"solver_order": order, **more})
        for order in (2, 3, 4)
        for name, more in (
            ("", {}),
            (" sigma_min", _LAST),
            (" bh1 sigma_min", {**_LAST, "solver_type": "bh1"}),
            (" noise_prediction sigma_min", {**_LAST, "predict_x0": False}),
            (" noise_prediction bh1 sigma_min", {**_LAST, "predict_x0": False, "solver_type": "bh1"}),
        )
    },
}


def peers() -> list[AnyPeer]:
    """Every deterministic scheduler for a discrete variance-preserving process, on every grid it offers."""
    import diffusers
    from diffusers.schedulers import AysSchedules

    found: list[AnyPeer] = []
    for name, (cls, settings) in _SOLVERS.items():
        takes = inspect.signature(getattr(diffusers, cls).__init__).parameters
        hidden = "kwargs" in takes  # LMS hides its signature behind a decorator
        for grid, more in _GRIDS.items():
            if set(more) <= set(takes) or (hidden and grid != "logsnr"):
                found.append(Peer(name, grid, cls, {**settings, **more}))
        if cls == _2M[0]:
            for key, grid in (("StableDiffusionTimesteps", "ays-sd"), ("StableDiffusionXLTimesteps", "ays-sdxl")):
                found.append(Peer(name, grid, cls, settings, tuple(AysSchedules[key])))
    for grid in ("karras", "exponential"):
        found.append(PeerEDM("edm-euler", grid, "EDMEulerScheduler"))
        for order in (2, 3):
            cls = "EDMDPMSolverMultistepScheduler"
            found.append(PeerEDM(f"edm-dpmpp-{order}m", grid, cls, {"solver_order": order}))
    found.append(
        PeerIPNDM(
            "trailing", lambda net, n: net.log_sigmas[np.round(TRAINED - np.arange(n) * TRAINED / n).astype(int) - 1]
        )
    )
    found.append(PeerIPNDM("logsnr", lambda net, n: np.linspace(net.log_sigmas[-1], net.log_sigmas[0], n)))
    found.append(PeerIPNDM("karras", _karras))
    return found


def _karras(net: Net, n: int) -> np.ndarray[Any, Any]:
    high, low = (math.exp(net.log_sigmas[i] / 7) for i in (-1, 0))
    return 7 * np.log(np.linspace(high, low, n))
