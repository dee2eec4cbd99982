"""Scores of samples against real data, in pixels or in the features of a judge; nothing to download."""

from sfumato.evaluate.accuracy import Share, accuracy, wilson
from sfumato.evaluate.bound import VariationalBound
from sfumato.evaluate.deviation import deviation
from sfumato.evaluate.frechet import Frechet, Moments, frechet, frechet_distance
from sfumato.evaluate.heldout import held_out_loss
from sfumato.evaluate.judge import Judge, Judged
from sfumato.evaluate.kid import Kid, kid
from sfumato.evaluate.likelihood import LogDensity, OdeLikelihood
from sfumato.evaluate.memorization import Memorization, memorization
from sfumato.evaluate.neighbours import Nearest, nearest
from sfumato.evaluate.nll import Likelihood, nll
from sfumato.evaluate.prdc import PRDC, prdc
from sfumato.evaluate.scores import Score, Scores, caption_scores, class_scores

__all__ = [
    "PRDC",
    "Frechet",
    "Judge",
    "Judged",
    "Kid",
    "Likelihood",
    "LogDensity",
    "Memorization",
    "Moments",
    "Nearest",
    "OdeLikelihood",
    "Score",
    "Scores",
    "Share",
    "VariationalBound",
    "accuracy",
    "caption_scores",
    "class_scores",
    "deviation",
    "frechet",
    "frechet_distance",
    "held_out_loss",
    "kid",
    "memorization",
    "nearest",
    "nll",
    "prdc",
    "wilson",
]
