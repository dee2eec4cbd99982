"""The device's half of a loss takes nothing from the host: what lets a GPU's step be recorded, seen without a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sfumato.core import Draws
from sfumato.recipes import load_recipe
from sfumato.recipes.build import prepare

WAITS = ("_local_scalar_dense", "nonzero", "_to_cpu")
FROM_NUMBERS = (torch.tensor, torch.as_tensor, torch.asarray)  # made on the host and copied


class Crossings(TorchDispatchMode):
    """Notes operations between the host and the device, or that wait for it. The device is `meta`: no numbers at all."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [v for v in tree_leaves((args, kwargs, out)) if isinstance(v, torch.Tensor)]
        # A number in a tensor of no dimension is read when an operation is recorded, as a Python number is.
        devices = {v.device.type for v in tensors if v.ndim or v.device.type != "cpu" or "copy" in str(func)}
        if len(devices) > 1 or any(name in str(func) for name in WAITS):
            self.found.append(f"{func} of {[(v.device.type, tuple(v.shape)) for v in tensors]}")
        return out


class Numbers(TorchFunctionMode):
    """Notes tensors on the device that are made of Python's numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in FROM_NUMBERS and out.device.type != "cpu":
            self.found.append(f"{func.__name__}{args}")
        return out


def test_the_spies_see_a_crossing() -> None:
    with Crossings() as crossings, Numbers() as numbers:
        torch.ones(3, device="meta") + torch.tensor([1.0, 2.0, 3.0]).to("meta")
        torch.tensor([[1]], device="meta")
    assert len(crossings.found) == 1 and len(numbers.found) == 1


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("digits", {}),
        ("digits", {"network": "dit", "network.width": "32", "network.depth": "1", "network.heads": "2"}),
        ("shapes", {}),
        ("shapes", {"network": "dit", "network.width": "32", "network.depth": "1", "network.heads": "2"}),
    ],
)
def test_the_half_on_the_device_takes_nothing_from_the_host(name: str, settings: dict[str, str]) -> None:
    prepared = prepare(load_recipe(name, settings))
    task, data = prepared.task.train(), prepared.data
    planned = task.plan(data.fetch(np.arange(4)), Draws(0, 0, 4))
    task.to("meta")
    tensors = {key: value.to("meta") for key, value in planned.tensors.items()}
    with Crossings() as crossings, Numbers() as numbers:
        value, _ = task.compute(tensors)
        value.backward()
    assert not crossings.found and not numbers.found
