"""Voxel scores of pipelines whose samples are known: the held-out models themselves, training models, and damaged ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sfumato.data import Digits, Solids, Voxels
from sfumato.data.voxel_files import write_stored
from sfumato.errors import UserError
from sfumato.evaluate.judge import Judge
from sfumato.evaluate.solid_sets import overlap_distance
from sfumato.evaluate.voxel_judge import VoxelJudge
from sfumato.evaluate.voxels import is_closed, voxel_scores
from sfumato.pipeline import Output
from sfumato.recipes.judges_voxels import train_voxel_judge, voxel_judge_of
from sfumato.solid.faces import Surface, closed_cubes
from sfumato.solid.grid import component_sizes

HELD, TRAIN = 16, 120


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Voxels:
    solids = Solids(count=HELD + TRAIN, pairs=0.0)
    index = np.arange(len(solids))
    shapes = [solids.describe(i).things[-1].shape for i in index]
    file = tmp_path_factory.mktemp("solids") / "solids.npz"
    captions = [str(c) for c in solids.columns(index)["caption"]]
    split = ["test"] * HELD + ["train"] * TRAIN
    write_stored(file, solids.fetch(index).media.numpy(), caption=captions, category=shapes, split=split)
    return Voxels(path=str(file))


class Giver:
    """Stands in for a pipeline: gives models of the data, whatever is asked for."""

    def __init__(self, data: Voxels, media: torch.Tensor) -> None:
        self.model = self
        self.conditioner = self
        self.columns = ("caption",)
        self.device = torch.device("cpu")
        self.data, self.media = data, media

    def __call__(self, prompt: list[str], n: int, **settings: Any) -> Output:
        held_out = self.data.split("held_out").columns(np.arange(HELD))["caption"]
        assert prompt == [str(c) for c in held_out]
        media = self.media.repeat_interleave(n, 0)
        return Output(media, media, tuple(range(len(media))), ("",) * len(media), settings, self.data.info)


def score(data: Voxels, media: torch.Tensor, judge: Judge | None = None, each: int = 2) -> dict[str, Any]:
    return dict(voxel_scores(Giver(data, media), data, judge, each=each, points=64).metrics)  # type: ignore[arg-type]


def part(data: Voxels, name: Any, count: int = HELD) -> torch.Tensor:
    return data.split(name).fetch(np.arange(count)).media


def test_the_held_out_models_themselves(data: Voxels) -> None:
    found = score(data, part(data, "held_out"))
    assert found["mmd_iou"].value == 0
    occupied = part(data, "held_out")[:, 3].flatten(1)
    assert found["cov_iou"].value == len(torch.unique(occupied, dim=0)) / HELD  # equal ones stand for one another
    assert found["nna_iou"].value == 0
    assert found["mmd_cd"].value < 1e-5
    assert found["single_component"].value == found["single_component"].real
    assert found["watertight"].value == 1
    assert "category_accuracy" not in found


def test_training_models_are_copies(data: Voxels) -> None:
    """Mirrored ones too: every one is at distance 0, nearer than the nearest held-out model that is no copy itself."""
    bank = part(data, "train", TRAIN)
    apart = overlap_distance(*(m[:, 3] > 127 for m in (part(data, "held_out"), torch.cat([bank, bank.flip(2)])))).amin(
        1
    )
    found = score(data, bank[:HELD].flip(2), each=1)["near_copies"]
    assert found.value == float(apart.quantile(0.05) > 0)
    assert found.real <= 0.07


def test_damage_is_seen(data: Voxels) -> None:
    media = part(data, "held_out").clone()
    whole = [len(sizes) == 1 for sizes in component_sizes(media[12:, 3] > 127)]
    media[:8, :, 15, 15, 15] = 255  # a speck far from everything
    media[8:12] = 0
    found = score(data, media, each=1)
    assert found["single_component"].value == pytest.approx(sum(whole) / 16)
    assert found["watertight"].value == pytest.approx(12 / 16)
    assert found["mmd_iou"].value > 0


def test_a_judge_of_solids_tells_their_shapes(data: Voxels, tmp_path: Path) -> None:
    """Four shapes are easy: right on most held-out ones after seconds (a quarter by chance), and kept with its settings."""
    judge = voxel_judge_of(data, tmp_path / "judge", epochs=8, width=8, device="cpu")
    assert isinstance(judge, VoxelJudge)
    assert judge.trained["accuracy"] >= 0.6
    found = score(data, part(data, "held_out"), judge)
    assert found["category_accuracy"].value == found["category_accuracy"].real == judge.trained["accuracy"]
    again = voxel_judge_of(data, tmp_path / "judge", epochs=8, width=8)
    assert again.trained["sha256"] == judge.trained["sha256"]
    media = part(data, "train")
    assert torch.equal(again.predict(media), judge.predict(media))


def test_a_judge_looks_at_colours_or_does_not(tmp_path: Path) -> None:
    """Folders that were written before there was a histogram have no such setting."""
    media = torch.full((2, 4, 8, 8, 8), 255, dtype=torch.uint8)
    media[1, :3] = 17
    plain, both = (VoxelJudge((4, 8, 8, 8), ("a", "b"), width=4, colours=n).eval() for n in (0, 16))
    assert plain.palette is None and both.palette is not None
    both.load_state_dict(plain.state_dict(), strict=False)
    assert torch.equal(plain(media), both(media))  # a palette begins at nothing
    both.palette.weight.data[0, 16**2 + 16 + 1] = 1.0  # the colour (17, 17, 17)
    assert torch.allclose(both(media) - plain(media), torch.tensor([[0.0, 0.0], [5.0, 0.0]]))
    plain.save(tmp_path / "judge")
    text = (tmp_path / "judge" / "judge.json").read_text()
    assert Judge.load(tmp_path / "judge").settings == {"width": 4, "colours": 0} and '"colours": 0' in text
    assert VoxelJudge((4, 8, 8, 8), ("a", "b")).palette is None


def test_judges_need_labelled_voxels() -> None:
    with pytest.raises(UserError, match="labels"):
        train_voxel_judge(Solids(count=10))
    with pytest.raises(UserError, match="image"):
        train_voxel_judge(Digits())
    with pytest.raises(UserError, match="voxel scores are for voxel models"):
        voxel_scores(None, Digits(), None)  # type: ignore[arg-type]


def test_open_surfaces_are_not_closed() -> None:
    whole = closed_cubes(np.full((4, 2, 2, 2), 255, np.uint8))
    assert is_closed(whole)
    assert not is_closed(Surface(whole.vertices, whole.triangles[1:], whole.colours))
    turned = whole.triangles.copy()
    turned[0] = turned[0][::-1]
    assert not is_closed(Surface(whole.vertices, turned, whole.colours))
    assert not is_closed(Surface(np.zeros((0, 3)), np.zeros((0, 3), np.int64), np.zeros((0, 3), np.uint8)))
