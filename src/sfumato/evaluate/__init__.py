"""Scores of samples against real data, in pixels or in the features of a judge; nothing to download."""

from sfumato.evaluate.accuracy import Share, accuracy, wilson
from sfumato.evaluate.deviation import deviation
from sfumato.evaluate.frechet import Frechet, Moments, frechet, frechet_distance
from sfumato.evaluate.heldout import held_out_loss
from sfumato.evaluate.judge import Judge, Judged
from sfumato.evaluate.kid import Kid, kid
from sfumato.evaluate.memorization import Memorization, memorization
from sfumato.evaluate.neighbours import Nearest, nearest
from sfumato.evaluate.prdc import PRDC, prdc
from sfumato.evaluate.scores import Score, Scores, caption_scores, class_scores

__all__ = [
    "PRDC",
    "Frechet",
    "Judge",
    "Judged",
    "Kid",
    "Memorization",
    "Moments",
    "Nearest",
    "Score",
    "Scores",
    "Share",
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
    "prdc",
    "wilson",
]
