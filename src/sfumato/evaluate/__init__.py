"""Scores of samples against real data, in pixels or in the features of a judge; nothing to download."""

from sfumato.evaluate.accuracy import Share, accuracy, wilson
from sfumato.evaluate.deviation import deviation
from sfumato.evaluate.frechet import Frechet, Moments, frechet, frechet_distance
from sfumato.evaluate.judge import Judge, Judged
from sfumato.evaluate.kid import Kid, kid
from sfumato.evaluate.memorization import Memorization, memorization
from sfumato.evaluate.neighbours import Nearest, nearest
from sfumato.evaluate.prdc import PRDC, prdc

__all__ = [
    "PRDC",
    "Frechet",
    "Judge",
    "Judged",
    "Kid",
    "Memorization",
    "Moments",
    "Nearest",
    "Share",
    "accuracy",
    "deviation",
    "frechet",
    "frechet_distance",
    "kid",
    "memorization",
    "nearest",
    "prdc",
    "wilson",
]
