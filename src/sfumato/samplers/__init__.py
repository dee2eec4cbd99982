"""Solvers and the loop that drives them."""

from sfumato.samplers.adams import IPNDM, Adams
from sfumato.samplers.adaptive import Adaptive, solve
from sfumato.samplers.base import (
    Denoise,
    Noise,
    NoiseSource,
    OnStep,
    Plan,
    Solver,
    State,
    Step,
    StepSolver,
    sample,
    start,
)
from sfumato.samplers.brownian import BrownianNoise
from sfumato.samplers.corrector import PredictorCorrector
from sfumato.samplers.ddim import DDIM, Ancestral, EulerAncestral
from sfumato.samplers.dpmpp import DPMpp2M, DPMpp2S, DPMpp3M
from sfumato.samplers.expadams import ExpAdams
from sfumato.samplers.inversion import invert
from sfumato.samplers.langevin import AnnealedLangevin, langevin_step
from sfumato.samplers.learned_ancestral import LearnedAncestral
from sfumato.samplers.linear import Basis, Forms, LinearSolver
from sfumato.samplers.restart import Restart
from sfumato.samplers.rungekutta import DPM2, RK4, Euler, Heun
from sfumato.samplers.sde import EulerMaruyama, ReverseDiffusion, simulate
from sfumato.samplers.tuned import Tuned
from sfumato.samplers.unipc import DEIS, SASolver, UniPC

__all__ = [
    "DDIM", "DEIS", "DPM2", "IPNDM", "RK4", "Adams", "Adaptive", "Ancestral", "AnnealedLangevin", "Basis",
    "BrownianNoise", "DPMpp2M", "DPMpp2S", "DPMpp3M", "Denoise", "Euler", "EulerAncestral", "EulerMaruyama",
    "ExpAdams", "Forms", "Heun", "LearnedAncestral", "LinearSolver", "Noise", "NoiseSource", "OnStep", "Plan",
    "PredictorCorrector", "Restart", "ReverseDiffusion", "SASolver", "Solver", "State", "Step", "StepSolver", "Tuned",
    "UniPC", "invert", "langevin_step", "sample", "simulate", "solve", "start",
]  # fmt: skip
