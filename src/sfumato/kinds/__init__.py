"""Kinds of media: how items of a data set or a model are shown, written to files and turned about in a report."""

from sfumato.kinds.audio import Audio
from sfumato.kinds.base import MediaKind, kind_of
from sfumato.kinds.pictures import Array, Picture
from sfumato.kinds.points import PointKind
from sfumato.kinds.voxels import VoxelKind

__all__ = ["Array", "Audio", "MediaKind", "Picture", "PointKind", "VoxelKind", "kind_of"]
