"""Any map-style dataset of torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

from sfumato.data import Loader, TorchData
from sfumato.errors import UserError


class Items(Dataset[Any]):
    def __init__(self, items: list[Any], **attributes: Any) -> None:
        self.items = items
        self.__dict__.update(attributes)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def test_tensors_with_labels() -> None:
    x = torch.randn(50, 2, 7, generator=torch.Generator().manual_seed(0))
    data = TorchData(TensorDataset(x, torch.arange(50) % 5), labels=tuple("abcde"))
    assert data.info.shape == (2, 7) and data.info.kind == "array" and data.info.labels == tuple("abcde")
    batch = data.fetch([3, 11])
    assert torch.equal(batch.media, x[[3, 11]]) and batch.conditions["label"].tolist() == [3, 1]  # type: ignore[union-attr]
    assert len(data.split("held_out")) == 2


def test_images_with_labels_and_classes() -> None:
    items = [(Image.new("RGB", (4, 3), (i, 0, 9)), i % 2) for i in range(4)]
    data = TorchData(Items(items, classes=["no", "yes"]))
    assert data.info.shape == (3, 3, 4) and data.info.kind == "image" and data.info.labels == ("no", "yes")
    assert data.fetch([2]).media[0, :, 0, 0].tolist() == [2, 0, 9]
    assert TorchData(Items(items, targets=[0, 1, 0, 1])).info.labels == ("0", "1")


def test_mappings_with_captions() -> None:
    items = [{"pixel_values": torch.full((3, 2, 2), i, dtype=torch.uint8), "text": ["one", "uno"]} for i in range(3)]
    data = TorchData(Items(items))
    assert data.info.kind == "image" and data.info.captions
    assert data.fetch([1]).conditions["caption"] == ["one"]
    drawn = data.fetch([1] * 200, (np.arange(200) + 0.5) / 200).conditions["caption"]
    assert 70 < list(drawn).count("uno") < 130  # type: ignore[arg-type]


def test_media_alone_and_channels_last_pictures() -> None:
    assert TorchData(Items([np.zeros((5, 6, 3), np.uint8)])).info.shape == (3, 5, 6)
    assert TorchData(Items([np.zeros((5, 6), np.uint8)])).info.shape == (1, 5, 6)
    assert TorchData(Items([np.zeros((2, 100), np.float64)])).info.shape == (2, 100)


def test_it_streams() -> None:
    data = TorchData(TensorDataset(torch.arange(30.0)[:, None, None])).split("train")
    with Loader(data, 28, seed=0) as loader:
        _, batch = next(loader)
    assert sorted(batch.media.flatten().tolist()) == sorted(
        data.indices[:28].tolist() if len(data) == 28 else batch.media.flatten().tolist()
    )
    assert len(set(batch.media.flatten().tolist())) == 28


@pytest.mark.parametrize(
    ("items", "settings", "said"),
    [
        ([], {}, "the dataset is empty"),
        ([(torch.zeros(1, 2), 1)], {}, "neither 'classes' nor 'targets'"),
        ([torch.zeros(3)], {}, r"item 0 of the dataset has shape \(3,\)"),
        (["text"], {}, "item 0 of the dataset has type str"),
        ([{"foo": 1}], {}, "has no media"),
        ([torch.tensor([[float("nan")]])], {}, "holds NaN"),
    ],
)
def test_mistakes_at_construction(items: list[Any], settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        TorchData(Items(items), **settings)


def test_mistakes_on_the_way() -> None:
    data = TorchData(Items([torch.zeros(1, 2), torch.zeros(1, 3)]))
    with pytest.raises(UserError, match=r"item 1 has shape \(1, 3\), item 0 has \(1, 2\)"):
        data.fetch([0, 1])
    data = TorchData(Items([(torch.zeros(1, 2), 0), (torch.zeros(1, 2), 7)]), labels=("a", "b"))
    with pytest.raises(UserError, match=r"the label of item 1 is 7, outside 0\.\.1"):
        data.fetch([1])
