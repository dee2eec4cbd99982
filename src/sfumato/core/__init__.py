"""The mathematics: processes, parameterizations, denoisers, conditions, objectives and grids.

Conventions, used everywhere:

* x has shape (B, *S): fields (B, C, L), (B, C, H, W), (B, C, D, H, W), or tokens (B, L, C).
* t is float64 in [0, 1]; 0 = data, exactly clean, 1 = noise. Its shape is a prefix of x's shape: (B,) normally, (B, L)
  when every token has a time of its own. Solvers always hand a network a batch axis.
* x_t = alpha(t) x0 + sigma(t) eps. Schedules and grids are computed in float64 on the CPU; only broadcast coefficients
  meet the device (`lift`).
* x0 has zero mean and unit deviation: codecs see to it.
"""

from sfumato.core.chains import DiscreteVP, beta_table
from sfumato.core.cond import Cond, CondShape
from sfumato.core.coupling import Coupling, OptimalTransport
from sfumato.core.denoiser import Denoiser, NetDenoiser
from sfumato.core.elbo import ELBO
from sfumato.core.grids import (
    BetaGrid,
    Grid,
    KarrasGrid,
    LeadingGrid,
    LinspaceGrid,
    LogisticGrid,
    LogSNRGrid,
    QuadraticGrid,
    TunedGrid,
    UniformGrid,
)
from sfumato.core.hybrid import HybridLoss, gaussian_kl
from sfumato.core.interpolants import VE, VP, Cosine, Flow, Polynomial, Shifted, SubVP
from sfumato.core.learned import Learned
from sfumato.core.levels import geometric_levels, largest_distance
from sfumato.core.matching import ImplicitScoreMatching, SlicedScoreMatching
from sfumato.core.media import Batch, Column, DataInfo
from sfumato.core.network import Network
from sfumato.core.objective import DenoisingLoss, Loss, Objective, Planned
from sfumato.core.parameterization import X0, Coeffs, Eps, Karras, Parameterization, V, Velocity
from sfumato.core.process import Normal, Process, lift, on_device
from sfumato.core.random import Draws, SampleNoise
from sfumato.core.times import GeometricTimes, LogitNormalTimes, LogNormalTimes, LogSNRTimes, Times, UniformTimes
from sfumato.core.views import score, velocity
from sfumato.core.weighting import EDM, Likelihood, MinSNR, SigmaSquared, Sigmoid, Unit, VelocityError, Weighting

__all__ = [
    "EDM", "ELBO", "V", "VE", "VP", "X0", "Batch", "BetaGrid", "Coeffs", "Column", "Cond", "CondShape", "Cosine",
    "Coupling", "DataInfo", "Denoiser", "DenoisingLoss", "DiscreteVP", "Draws", "Eps", "Flow", "GeometricTimes", "Grid",
    "HybridLoss", "ImplicitScoreMatching", "Karras", "KarrasGrid", "LeadingGrid", "Learned", "Likelihood",
    "LinspaceGrid", "LogNormalTimes", "LogSNRGrid", "LogSNRTimes", "LogisticGrid", "LogitNormalTimes", "Loss", "MinSNR",
    "NetDenoiser", "Network", "Normal", "Objective", "OptimalTransport", "Parameterization", "Planned", "Polynomial",
    "Process", "QuadraticGrid", "SampleNoise", "Shifted", "SigmaSquared", "Sigmoid", "SlicedScoreMatching", "SubVP", "Times",
    "TunedGrid", "UniformGrid", "UniformTimes", "Unit", "Velocity", "VelocityError", "Weighting", "beta_table", "gaussian_kl",
    "geometric_levels", "largest_distance", "lift", "on_device", "score", "velocity",
]  # fmt: skip
