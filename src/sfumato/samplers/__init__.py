"""Solvers and the loop that drives them."""

from sfumato.samplers.base import Denoise, Noise, OnStep, Solver, State, sample, start
from sfumato.samplers.ddim import DDIM, Ancestral
from sfumato.samplers.dpmpp import DPMpp2M
from sfumato.samplers.ode import Euler, Heun

__all__ = [
    "DDIM", "Ancestral", "DPMpp2M", "Denoise", "Euler", "Heun", "Noise", "OnStep", "Solver", "State", "sample", "start",
]  # fmt: skip
