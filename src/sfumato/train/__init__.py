"""Training: tasks, the one loop, what it writes down, and what it costs."""

from sfumato.progress import Display, Silent, Terminal
from sfumato.train.align import Align, Alignment
from sfumato.train.checkpoint import Checkpoints
from sfumato.train.ema import Ema, power_beta, power_gamma
from sfumato.train.estimate import Estimate, estimate
from sfumato.train.hook import Hook, Moment
from sfumato.train.hooks import Asked, HeldOut, ModelFolder, Pictures, Report, standard_hooks
from sfumato.train.log import MetricsLog, read_metrics
from sfumato.train.memory import Memory, predict
from sfumato.train.muon import Muon
from sfumato.train.optim import AdamW, Optimizer
from sfumato.train.optim8 import AdamW8
from sfumato.train.report import Section, render_report, write_report
from sfumato.train.run import Run
from sfumato.train.settings import Training
from sfumato.train.task import DiffusionTask, Task
from sfumato.train.trackers import Tracker
from sfumato.train.trainer import Result, Trainer

__all__ = [
    "Align",
    "Alignment",
    "AdamW",
    "AdamW8",
    "Asked",
    "Checkpoints",
    "DiffusionTask",
    "Display",
    "Ema",
    "Estimate",
    "HeldOut",
    "Hook",
    "Memory",
    "MetricsLog",
    "ModelFolder",
    "Moment",
    "Muon",
    "Optimizer",
    "Pictures",
    "Report",
    "Result",
    "Run",
    "Section",
    "Silent",
    "Task",
    "Terminal",
    "Tracker",
    "Trainer",
    "Training",
    "estimate",
    "power_beta",
    "power_gamma",
    "predict",
    "read_metrics",
    "render_report",
    "standard_hooks",
    "write_report",
]
