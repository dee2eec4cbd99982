"""Point clouds: drawn from surfaces as functions of (index, draw); files; a network for which their order is nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato.codecs import Points as PointCodec
from sfumato.core import CondShape, DataInfo
from sfumato.data import Points, Solids, Voxels
from sfumato.data.voxel_files import write_stored
from sfumato.errors import UserError
from sfumato.kinds import kind_of
from sfumato.kinds.points import read_ply, write_ply
from sfumato.nn import DiT
from sfumato.solid.grid import open_cells
from sfumato.testing import check_codec

SOLIDS = Solids(count=12)
MODELS = SOLIDS.fetch(np.arange(12)).media.numpy()


@pytest.fixture
def path(tmp_path: Path) -> str:
    captions = [str(c) for c in SOLIDS.columns(np.arange(12))["caption"]]
    write_stored(tmp_path / "models.npz", MODELS, caption=captions)
    return str(tmp_path / "models.npz")


def test_points_lie_in_open_cells_with_their_colours(path: str) -> None:
    data = Points(data=Voxels(path=path), points=300, colours=True)
    assert data.info == DataInfo((6, 300), "points", captions=True)
    for cloud, model in zip(data.fetch(np.arange(12)).media.numpy(), MODELS):
        x, y, z = np.floor((cloud[:3] + 1) * 8).astype(int)
        assert open_cells(model[3] > 0)[x, y, z].all()
        assert np.allclose(cloud[3:] * 255, model[:3, x, y, z], atol=1e-3)


def test_a_draw_chooses_other_points_and_the_same_draw_the_same(path: str) -> None:
    data = Points(data=Voxels(path=path, symmetries="none"), points=64)
    one, two, again = (data.fetch([3, 5], np.asarray([u, 0.5])).media for u in (0.2, 0.7, 0.2))
    assert torch.equal(one, again)
    assert not torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])


def test_the_codec_is_exact_and_white(path: str) -> None:
    for colours in (False, True):
        data = Points(data=Voxels(path=path), colours=colours)
        check_codec(PointCodec(data.info), data.fetch(np.arange(12)).media, tolerance=1e-5)
    with pytest.raises(UserError, match="point clouds"):
        PointCodec(DataInfo((3, 8, 8)))


def test_without_positions_a_transformer_treats_points_as_a_set() -> None:
    torch.manual_seed(0)
    network = DiT((3, 20), CondShape(), width=24, depth=2, heads=2, patch=1, rotary=False, absolute=False)
    placed = DiT((3, 20), CondShape(), width=24, depth=2, heads=2, patch=1, absolute=False)
    x, noise, order = torch.randn(2, 3, 20), torch.tensor([0.2, 0.8]), torch.randperm(20)
    for net, same in ((network, True), (placed, False)):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
            assert torch.allclose(net(x[..., order], noise), net(x, noise)[..., order], atol=1e-5) is same


def test_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    info = DataInfo((6, 50), "points")
    cloud = rng.random((6, 50)).astype(np.float32)
    for rows in (3, 6):
        file = tmp_path / "cloud.ply"
        file.write_bytes(write_ply(cloud[:rows]))
        back = read_ply(file)
        assert np.array_equal(back[:3], cloud[:3])
        assert np.abs(back[3:] - cloud[3:rows]).max(initial=0) <= 0.5 / 255 + 1e-6
        assert kind_of(info).is_whole(file)
        file.write_bytes(file.read_bytes()[:-1])
        assert not kind_of(info).is_whole(file)
    picture = np.asarray(kind_of(info).picture(torch.from_numpy(cloud), info))
    assert (picture < 250).any()
    for raw in (
        b"",
        b"ply\nformat ascii 1.0\nend_header\n",
        write_ply(cloud).replace(b"vertex 50", b"vertex 99999999999"),
    ):
        (tmp_path / "bad.ply").write_bytes(raw)
        with pytest.raises(UserError, match=r"bad\.ply"):
            read_ply(tmp_path / "bad.ply")


def test_files_open_in_trimesh(tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    cloud = np.random.default_rng(0).random((6, 30)).astype(np.float32)
    (tmp_path / "cloud.ply").write_bytes(write_ply(cloud))
    found = trimesh.load(tmp_path / "cloud.ply")
    assert np.allclose(found.vertices.T, cloud[:3])
    assert np.abs(found.colors[:, :3].T / 255 - cloud[3:]).max() < 0.003


def test_bad_settings(path: str) -> None:
    with pytest.raises(UserError, match="points = 0"):
        Points(data=Voxels(path=path), points=0)
