"""The mathematics: processes, parameterizations, denoisers, conditions, objectives and grids.

Conventions, used everywhere:

* x has shape (B, *S): fields (B, C, L), (B, C, H, W), (B, C, D, H, W), or tokens (B, L, C).
* t is float64 in [0, 1]; 0 = data, exactly clean, 1 = noise. Its shape is a prefix of x's shape: (B,) normally, (B, L)
  when every token has a time of its own. Solvers always hand a network a batch axis.
* x_t = alpha(t) x0 + sigma(t) eps. Schedules and grids are computed in float64 on the CPU; only broadcast coefficients
  meet the device (`lift`).
* x0 has zero mean and unit deviation: codecs see to it.
"""

from sfumato.core.cond import Cond, CondShape
from sfumato.core.denoiser import Denoiser, NetDenoiser
from sfumato.core.grids import Grid, KarrasGrid, LogSNRGrid, QuadraticGrid, UniformGrid
from sfumato.core.media import Batch, Column, DataInfo
from sfumato.core.network import Network
from sfumato.core.objective import DenoisingLoss, Loss, Objective
from sfumato.core.parameterization import X0, Coeffs, Eps, Karras, Parameterization, V, Velocity
from sfumato.core.process import VE, VP, Cosine, DiscreteVP, Flow, Normal, Process, beta_table, lift
from sfumato.core.random import Draws, SampleNoise
from sfumato.core.times import LogitNormalTimes, LogNormalTimes, LogSNRTimes, Times, UniformTimes
from sfumato.core.weighting import EDM, MinSNR, Sigmoid, Unit, Weighting

__all__ = [
    "EDM", "VE", "VP", "X0", "Batch", "Coeffs", "Column", "Cond", "CondShape", "Cosine", "DataInfo", "Denoiser",
    "DenoisingLoss", "DiscreteVP", "Draws", "Eps", "Flow", "Grid", "Karras", "KarrasGrid", "LogNormalTimes", "LogSNRGrid",
    "LogSNRTimes", "LogitNormalTimes", "Loss", "MinSNR", "NetDenoiser", "Network", "Normal", "Objective", "Parameterization",
    "Process", "QuadraticGrid", "SampleNoise", "Sigmoid", "Times", "UniformGrid", "UniformTimes", "Unit", "V", "Velocity",
    "Weighting", "beta_table", "lift",
]  # fmt: skip
