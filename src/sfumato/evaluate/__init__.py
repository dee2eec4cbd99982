"""Scores of samples against real data, in pixels or in the features of a network; nothing is downloaded."""

from sfumato.evaluate.accuracy import Share, accuracy, wilson
from sfumato.evaluate.alignment import Aligner, ClipAligner, JudgeAligner, alignment_scores, open_aligner
from sfumato.evaluate.architectures import ConvJudge, Vgg, WideResNet
from sfumato.evaluate.audio import sound_scores
from sfumato.evaluate.audio_judge import SoundJudge
from sfumato.evaluate.bound import VariationalBound
from sfumato.evaluate.compare import Compared, compare_reports
from sfumato.evaluate.contrastive import ContrastiveJudge
from sfumato.evaluate.deviation import deviation
from sfumato.evaluate.extractor import Extractor, JudgeExtractor, open_extractor
from sfumato.evaluate.features import Drawing, FeatureScores, draw, feature_scores, scores_between
from sfumato.evaluate.frechet import Frechet, Moments, frechet, frechet_distance
from sfumato.evaluate.heldout import held_out_loss
from sfumato.evaluate.judge import Judge, Judged
from sfumato.evaluate.kid import Kid, kid
from sfumato.evaluate.levels import Level, LevelErrors, Levels
from sfumato.evaluate.likelihood import LogDensity, OdeLikelihood
from sfumato.evaluate.memorization import Memorization, memorization
from sfumato.evaluate.neighbours import Nearest, nearest
from sfumato.evaluate.nll import Likelihood, nll
from sfumato.evaluate.prdc import PRDC, prdc, prdc_intervals
from sfumato.evaluate.scores import Score, Scores, caption_scores, class_scores
from sfumato.evaluate.solid_sets import SetScores, set_scores
from sfumato.evaluate.standard import Clip, DinoV2, Inception
from sfumato.evaluate.voxel_judge import VoxelJudge
from sfumato.evaluate.voxels import voxel_scores
from sfumato.evaluate.walk import WalkError

__all__ = [
    "PRDC",
    "Aligner",
    "Clip",
    "ClipAligner",
    "Compared",
    "ContrastiveJudge",
    "ConvJudge",
    "DinoV2",
    "Drawing",
    "Extractor",
    "FeatureScores",
    "Frechet",
    "Inception",
    "Judge",
    "JudgeAligner",
    "JudgeExtractor",
    "Judged",
    "Kid",
    "Level",
    "LevelErrors",
    "Levels",
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
    "Vgg",
    "WideResNet",
    "accuracy",
    "alignment_scores",
    "caption_scores",
    "class_scores",
    "compare_reports",
    "deviation",
    "draw",
    "feature_scores",
    "frechet",
    "frechet_distance",
    "held_out_loss",
    "kid",
    "memorization",
    "nearest",
    "nll",
    "open_aligner",
    "open_extractor",
    "prdc",
    "prdc_intervals",
    "scores_between",
    "wilson",
    "SetScores",
    "SoundJudge",
    "VoxelJudge",
    "WalkError",
    "set_scores",
    "sound_scores",
    "voxel_scores",
]
