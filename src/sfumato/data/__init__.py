"""Data sets: built in, from the user's files, and any map-style dataset of torch."""

from __future__ import annotations

from sfumato.data.arrays import Arrays
from sfumato.data.audio import Sounds
from sfumato.data.audio_sets import AudioFolder, Clips
from sfumato.data.audio_tones import Tones
from sfumato.data.base import Data, Subset
from sfumato.data.broken import Replaced
from sfumato.data.cache import Cached, cached
from sfumato.data.check import Report, check
from sfumato.data.cifar10 import Cifar10
from sfumato.data.digits import Digits
from sfumato.data.emoji import Emoji
from sfumato.data.fields import Fields
from sfumato.data.find import open_data
from sfumato.data.folder import Folder
from sfumato.data.hugging_face import HuggingFace
from sfumato.data.latents import Latents
from sfumato.data.loader import Loader
from sfumato.data.order import BucketOrder, Buckets, Order
from sfumato.data.pack import Packing, pack
from sfumato.data.packed import Packed
from sfumato.data.parquet import Parquet
from sfumato.data.pictured import Pictured
from sfumato.data.points import Points
from sfumato.data.preview import preview, summary
from sfumato.data.referenced import Referenced
from sfumato.data.sequenced import Sequenced
from sfumato.data.shapes import Shapes
from sfumato.data.shapes_reader import Seen, matches, matches_many, read_shapes
from sfumato.data.solids import Solids, read_solids, shows
from sfumato.data.tar import Tar
from sfumato.data.torch_data import TorchData
from sfumato.data.voxels import Voxels
from sfumato.data.wording import Worded

__all__ = [
    "Arrays",
    "AudioFolder",
    "BucketOrder",
    "Buckets",
    "Cached",
    "Cifar10",
    "Clips",
    "Data",
    "Digits",
    "Emoji",
    "Fields",
    "Folder",
    "HuggingFace",
    "Latents",
    "Loader",
    "Order",
    "Packed",
    "Packing",
    "Parquet",
    "Pictured",
    "Points",
    "Referenced",
    "Replaced",
    "Report",
    "Seen",
    "Sequenced",
    "Shapes",
    "Solids",
    "Sounds",
    "Subset",
    "Tar",
    "Tones",
    "TorchData",
    "Voxels",
    "Worded",
    "cached",
    "check",
    "matches",
    "matches_many",
    "open_data",
    "pack",
    "preview",
    "read_shapes",
    "read_solids",
    "shows",
    "summary",
]
