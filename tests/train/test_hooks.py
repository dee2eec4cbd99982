"""What a run leaves besides its checkpoints: pictures, the model folder, the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.codecs import Arrays, Codec, Pixels
from sfumato.conditioners import Conditioner, Label, Number, Text
from sfumato.core import Batch, DataInfo, DenoisingLoss, Flow, Velocity
from sfumato.data import Data, Digits
from sfumato.files import verify_manifest
from sfumato.model import ModelSpec
from sfumato.nn import UNet
from sfumato.pipeline import Pipeline, Sampling
from sfumato.spec import Spec, as_spec
from sfumato.train import DiffusionTask, Run, Silent, Trainer, Training, read_metrics, standard_hooks
from sfumato.train.hooks import Asked

SAMPLING = Sampling(steps=4)


def spec_of(data: Data, conditioner: Spec[Conditioner] | None) -> ModelSpec:
    codec: Spec[Codec] = Spec(Pixels if data.info.kind == "image" else Arrays)
    network = Spec(UNet, width=8, mults=(1, 2), blocks=1, head_dim=8)
    return ModelSpec(data.info, network, as_spec(Flow()), as_spec(Velocity()), codec, conditioner)


def trained(folder: Path, data: Data, spec: ModelSpec, **more: Any) -> Trainer:
    torch.manual_seed(0)
    model = spec.build()
    model.codec.measure([data.split("train").fetch(range(64)).media])
    settings = Training(**{"batch": 16, "samples": 64, "evaluations": 2, "pictures": 2, "log_every": 1, **more})
    hooks = standard_hooks(data, settings, spec, SAMPLING)
    task = DiffusionTask(model, DenoisingLoss())
    trainer = Trainer(task, data, settings, run=Run(folder), hooks=hooks, device="cpu", display=Silent())
    trainer.fit()
    return trainer


def test_a_run_leaves_all_its_parts(tmp_path: Path) -> None:
    data = Digits()
    spec = spec_of(data, Spec(Text, width=16, depth=1, heads=2))
    trainer = trained(tmp_path / "run", data, spec)
    run = trainer.run
    assert {p.name for p in run.folder.iterdir()} == {
        ".lock", "LATEST", "checkpoints", "data.json", "env.json", "metrics.jsonl", "model", "report.html", "samples",
        "state.json",
    }  # fmt: skip
    assert sorted(p.name for p in run.samples.iterdir()) == [
        "asked.json", "step-00000002.png", "step-00000004.png", "strip.png",
    ]  # fmt: skip
    asked = json.loads((run.samples / "asked.json").read_text())
    assert len(asked["words"]) == len(set(asked["words"])) >= 10
    with Image.open(run.samples / "step-00000004.png") as sheet:
        assert sheet.text["samples"] == "64"
    with Image.open(run.samples / "strip.png") as strip:
        assert strip.width > 4 * 96 and strip.height > 2 * 96
    lines = read_metrics(run.metrics)
    assert [line["step"] for line in lines if "held_out" in line] == [2, 4]
    report = run.report.read_text()
    assert "a handwritten" in report and "finished" in report and "train.batch" in report

    # The model folder holds the averaged weights, and gives the pictures that the sheet shows.
    verify_manifest(run.model)
    loaded = Pipeline.from_pretrained(run.folder)
    ours = dict(trainer.ema.models[0].state_dict())
    assert all(torch.equal(v, ours[k]) for k, v in loaded.model.state_dict().items())
    assert loaded.sampling == SAMPLING
    assert loaded.trained["samples"] == 64
    assert torch.equal(trainer.ema.models[0].codec.whitening.mean, trainer.task.model.codec.whitening.mean)


def test_pictures_do_not_depend_on_when_they_are_drawn(tmp_path: Path) -> None:
    """Run twice as often, the last sheet is the same: fixed seeds, and drawing changes nothing."""
    data = Digits()
    spec = spec_of(data, Spec(Label, width=8))
    trained(tmp_path / "a", data, spec, pictures=1, evaluations=0)
    trained(tmp_path / "b", data, spec, pictures=4, evaluations=4)
    one, two = (np.asarray(Image.open(tmp_path / k / "samples" / "step-00000004.png")) for k in "ab")
    assert np.array_equal(one, two)


class Fields(Data, name="fields-for-tests"):
    """Arrays of any shape with a number beside each."""

    def __init__(self, *, shape: tuple[int, ...] = (2, 11), n: int = 80) -> None:
        rng = np.random.default_rng(0)
        self.x = rng.normal(size=(n, *shape)).astype(np.float32)

    @property
    def info(self) -> DataInfo:
        return DataInfo(self.x.shape[1:], "array", numbers=("size",))

    def __len__(self) -> int:
        return len(self.x)

    def fetch(self, indices: Any, draws: Any = None) -> Batch:
        rows = np.asarray(indices)
        return Batch(torch.from_numpy(self.x[rows]), {"number": torch.tensor(rows[:, None] / 80, dtype=torch.float32)})

    def held_out_mask(self) -> Any:
        return np.arange(len(self)) >= 72

    def fingerprint(self) -> str:
        return "fields"


@pytest.mark.parametrize("shape", [(2, 11), (3, 7, 5), (1, 6, 5, 4)], ids=str)
def test_media_of_every_rank_are_drawn(tmp_path: Path, shape: tuple[int, ...]) -> None:
    data = Fields(shape=shape)
    conditioner: Spec[Conditioner] = Spec(Number, width=8, low=(0.0,), high=(1.0,))
    run = trained(tmp_path, data, spec_of(data, conditioner), samples=32, pictures=1, evaluations=1).run
    assert (run.samples / "step-00000002.png").is_file() and (run.samples / "strip.png").is_file()


def test_what_the_pictures_are_asked_for() -> None:
    digits, fields = Digits(), Fields()
    labels = Asked.of(digits, spec_of(digits, Spec(Label)))
    assert labels.request == {"label": list(range(10))}
    assert list(labels.words) == list(digits.info.labels)
    captions = Asked.of(digits, spec_of(digits, Spec(Text)), most=4)
    assert len(captions.request["prompt"]) == 4
    nothing = Asked.of(fields, spec_of(fields, None), most=3)
    assert nothing.request == {"n": 3}
    numbers = Asked.of(fields, spec_of(fields, Spec(Number)), most=2)
    assert numbers.request == {"number": [[pytest.approx(0.9)], [pytest.approx(0.95)]]}  # items 72 and 76 of 72 ... 79
    assert numbers.words == ["0.9", "0.95"]
