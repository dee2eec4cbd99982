"""Pictures beside items: functions of the draw, of the model as the draw turned it, and of nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato.data import Arrays, Data, Digits, Loader, Pictured, Points, Solids, Tones, Voxels
from sfumato.data.pack import pack
from sfumato.data.voxel_files import write_stored
from sfumato.errors import UserError
from sfumato.solid.views import draw
from sfumato.spec import Spec, dump_yaml, parse

SOLIDS = Solids(count=30, pairs=0.0)
DRAWS = np.asarray([0.1, 0.5, 0.9])


def test_without_a_draw_the_view_is_the_middle_one() -> None:
    batch = Pictured(data=SOLIDS).fetch([3, 4])
    for model, picture in zip(batch.media, batch.conditions["picture"]):
        assert isinstance(picture, torch.Tensor)
        assert np.array_equal(picture.numpy(), draw(model.numpy(), 64, 30.0, 28.0))
    assert torch.equal(batch.media, SOLIDS.fetch([3, 4]).media)
    assert batch.conditions["caption"] == SOLIDS.fetch([3, 4]).conditions["caption"]


def test_a_view_is_a_function_of_its_draw_alone() -> None:
    data = Pictured(data=SOLIDS, side=32)
    whole = data.fetch([1, 2, 3], DRAWS).conditions["picture"]
    alone = [data.fetch([i + 1], DRAWS[i : i + 1]).conditions["picture"][0] for i in range(3)]
    assert torch.equal(torch.as_tensor(whole), torch.stack([torch.as_tensor(one) for one in alone]))
    assert torch.equal(torch.as_tensor(data.columns([1, 2, 3], DRAWS)["picture"]), torch.as_tensor(whole))
    other = data.fetch([1, 1], np.asarray([0.1, 0.7])).conditions["picture"]
    assert not torch.equal(other[0], other[1])


def test_the_stream_of_a_run_is_that_of_seed_and_number() -> None:
    def taken(start: int, batch: int, seed: int = 5) -> torch.Tensor:
        with Loader(Pictured(data=SOLIDS, side=16), batch, seed, start) as loader:
            return torch.cat([torch.as_tensor(next(loader)[1].conditions["picture"]) for _ in range(8 // batch)])

    assert torch.equal(taken(0, 8), taken(0, 4))
    assert torch.equal(taken(0, 8)[4:], taken(4, 4)[:4])
    assert not torch.equal(taken(0, 8), taken(0, 8, seed=6))


def test_the_picture_is_of_the_model_as_it_was_turned(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    models = np.zeros((2, 4, 8, 8, 8), np.uint8)
    models[:, 3] = 255 * (rng.random((2, 8, 8, 8)) < 0.2)
    models[:, :3] = rng.integers(0, 200, (2, 3, 8, 8, 8)) * (models[:, 3:] > 0)
    write_stored(tmp_path / "models.npz", models)
    data = Pictured(data=Voxels(path=str(tmp_path / "models.npz"), symmetries="all"), yaw=(25, 25), pitch=(40, 40))
    batch = data.fetch([0, 1], np.asarray([0.3, 0.8]))
    for model, picture in zip(batch.media, torch.as_tensor(batch.conditions["picture"])):
        assert np.array_equal(picture.numpy(), draw(model.numpy(), 64, 25, 40))


def test_views_keep_within_their_ranges() -> None:
    data = Pictured(data=SOLIDS, yaw=(40, 40), pitch=(0, 0))
    found = torch.as_tensor(data.fetch([7], np.asarray([0.77])).conditions["picture"])
    assert np.array_equal(found[0].numpy(), draw(SOLIDS.fetch([7]).media[0].numpy(), 64, 40, 0))


def test_a_picture_is_its_own_picture(tmp_path: Path) -> None:
    grey = Pictured(data=Digits()).fetch([0, 5])
    assert torch.equal(torch.as_tensor(grey.conditions["picture"]), grey.media.expand(-1, 3, -1, -1))
    rgba = np.random.default_rng(0).integers(0, 255, (20, 6, 6, 4), np.uint8)
    rgba[:, :, :3, 3], rgba[:, :, 3:, 3] = 0, 255
    np.savez(tmp_path / "x.npz", x=rgba)
    shown = torch.as_tensor(Pictured(data=Arrays(path=str(tmp_path / "x.npz"))).fetch([2]).conditions["picture"])
    assert (shown[0, :, :, :3] == 255).all()
    assert torch.equal(shown[0, :, :, 3:], torch.from_numpy(rgba[2, :, 3:, :3]).permute(2, 0, 1))


def test_the_set_stays_what_it_was() -> None:
    data = Pictured(data=SOLIDS)
    assert data.info == SOLIDS.info and len(data) == 30
    assert np.array_equal(data.held_out_mask(), SOLIDS.held_out_mask())
    assert data.item_digest(3) == SOLIDS.item_digest(3)
    prints = {
        d.fingerprint() for d in (data, Pictured(data=SOLIDS, side=32), Pictured(data=SOLIDS, yaw=(0, 1)), SOLIDS)
    }
    assert len(prints) == 4
    spec = Spec(Pictured, data=Spec(Solids, count=30, pairs=0.0), side=32, yaw=(0.0, 20.0))
    assert parse(Data, spec.to_dict()) == spec and "pictured" in dump_yaml(spec)
    assert spec.build() == Pictured(data=SOLIDS, side=32, yaw=(0.0, 20.0))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Pictured(data=Tones(count=4)), "holds 'audio'"),
        (lambda: Pictured(data=Points(data=SOLIDS)), "holds 'points'"),
        (lambda: Pictured(data=SOLIDS, side=4), "side = 4"),
        (lambda: Pictured(data=SOLIDS, yaw=(40, 20)), "yaw = 40, 20"),
        (lambda: Pictured(data=SOLIDS, pitch=(-10, 20)), "within 0 ... 90"),
    ],
)
def test_what_is_refused(make: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()  # type: ignore[operator]


def test_what_is_drawn_is_not_packed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the column 'picture' is drawn when items are fetched"):
        pack(Pictured(data=SOLIDS), tmp_path / "packed")
    assert not (tmp_path / "packed").exists()
