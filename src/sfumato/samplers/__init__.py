"""Solvers and the loop that drives them."""

from sfumato.samplers.adams import IPNDM, Adams
from sfumato.samplers.base import Denoise, Noise, NoiseSource, OnStep, Solver, State, Step, StepSolver, sample, start
from sfumato.samplers.ddim import DDIM, Ancestral, EulerAncestral
from sfumato.samplers.dpmpp import DPMpp2M, DPMpp2S, DPMpp3M
from sfumato.samplers.linear import Basis, Forms, LinearSolver
from sfumato.samplers.rungekutta import DPM2, RK4, Euler, Heun
from sfumato.samplers.unipc import DEIS, SASolver, UniPC

__all__ = [
    "DDIM", "DEIS", "DPM2", "IPNDM", "RK4", "Adams", "Ancestral", "Basis", "DPMpp2M", "DPMpp2S", "DPMpp3M", "Denoise",
    "Euler", "EulerAncestral", "Forms", "Heun", "LinearSolver", "Noise", "NoiseSource", "OnStep", "SASolver", "Solver",
    "State", "Step", "StepSolver", "UniPC", "sample", "start",
]  # fmt: skip
