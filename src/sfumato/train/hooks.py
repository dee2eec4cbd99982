"""The hooks that ship: held-out loss, pictures from fixed seeds, the model folder, the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from sfumato import media
from sfumato.core import Batch, DataInfo, SampleNoise
from sfumato.data import Data
from sfumato.errors import SfumatoError, UserError
from sfumato.evaluate.heldout import held_out_loss
from sfumato.kinds import kind_of
from sfumato.model import Model, ModelSpec
from sfumato.pipeline import Pipeline, Sampling
from sfumato.request import as_arguments
from sfumato.samplers import start
from sfumato.train.hook import Hook, Moment
from sfumato.train.report import VIEW, write_report
from sfumato.train.run import Run
from sfumato.train.settings import Training

_PICTURES = 16
_STRIP = 8  # pictures in the denoising strip
_VIEWED = 8  # samples that a report plays or turns


def standard_hooks(data: Data, settings: Training, spec: ModelSpec, sampling: Sampling) -> list[Hook]:
    """What a recipe's training does besides training: all four hooks, as often as the settings say."""
    hooks: list[Hook] = []
    held_out = data.split("held_out")
    if len(held_out):
        hooks.append(HeldOut(held_out, settings.evaluations))
    asked = Asked.of(data, spec)
    return [*hooks, Pictures(asked, spec, sampling, settings.pictures), ModelFolder(spec, sampling), Report(settings)]


@final
class HeldOut(Hook):
    """The held-out loss by noise level of the averaged weights: always the same items, times and noise."""

    def __init__(self, data: Data, times: int, n: int = 512, levels: int = 8) -> None:
        self.data, self.times, self.n, self.levels = data, times, n, levels

    def __call__(self, moment: Moment) -> Mapping[str, Any]:
        assert isinstance(moment.model, Model)
        found = held_out_loss(moment.model, self.data, self.n, self.levels)
        return {"held_out": found.loss, "held_out_levels": list(found.by_level)}


@final
@dataclass(frozen=True)
class Asked:
    """What the pictures of a run are asked for: keyword arguments of a `Pipeline` call, and the words under each."""

    request: Mapping[str, Any]
    words: Sequence[str]

    @classmethod
    def of(cls, data: Data, spec: ModelSpec, most: int = _PICTURES) -> Asked:
        """One of each class, the first captions (or numbers) of the held-out data, or just `most` samples; what a model of
        several columns, or of media, is asked by is that of held-out items."""
        columns = () if spec.conditioner is None else spec.conditioner.cls.reads(spec.conditioner.settings)
        info = spec.info
        shown = data.split("held_out")
        shown = shown if len(shown) else data.split("train")
        if columns == ("caption",) and info.captions:
            captions = _distinct(_spread(shown, 8 * most).conditions["caption"], most)
            return cls({"prompt": captions}, captions)
        if columns == ("label",) and info.labels:
            names = list(info.labels)[:most]
            return cls({"label": list(range(len(names)))}, names)
        if columns == ("number",) and info.numbers:
            rows = np.asarray(_spread(shown, most).conditions["number"]).reshape(-1, len(info.numbers)).tolist()
            return cls({"number": rows}, [", ".join(f"{value:g}" for value in row) for row in rows])
        if not columns:
            return cls({"n": most}, [f"seed {i}" for i in range(most)])
        return cls._like(_spread(shown, most), columns, info)

    @classmethod
    def _like(cls, batch: Batch, columns: Sequence[str], info: DataInfo) -> Asked:
        """What items are asked by."""
        found = batch.conditions
        if lacking := [column for column in columns if column not in found]:
            raise UserError(
                f"conditioner: reads '{lacking[0]}', which this data has not; choose another conditioner or data"
            )
        words = [""] * len(batch)
        if "caption" in found:
            words = [str(caption) for caption in found["caption"]]
        elif "label" in found and info.labels:
            words = [info.labels[int(label)] for label in found["label"]]
        return cls(as_arguments({column: found[column] for column in columns}), words)


def _spread(data: Data, most: int) -> Batch:
    """Items from all over the set: neighbours in a file are often alike."""
    n = min(len(data), most)
    return data.fetch(np.arange(n) * len(data) // n)


def _distinct(captions: Any, most: int) -> list[str]:
    return list(dict.fromkeys(str(caption) for caption in captions))[:most]


@final
class Pictures(Hook):
    """Samples of the averaged weights from fixed seeds and requests, and how one of them came out of the noise.

    Writes samples/step-00001200.png and samples/strip.png.
    """

    def __init__(self, asked: Asked, spec: ModelSpec, sampling: Sampling, times: int) -> None:
        self.asked, self.spec, self.sampling, self.times = asked, spec, sampling, times

    def __call__(self, moment: Moment) -> Mapping[str, Any]:
        assert isinstance(moment.model, Model)
        pipeline = Pipeline(moment.model, self.spec, self.sampling)
        strip = _Strip(pipeline)
        try:
            made = pipeline(**self.asked.request, batch_size=_PICTURES, callback_on_step_end=strip, output_type="pt")
        except UserError:
            raise
        except SfumatoError:  # a young model may diverge when sampled; training goes on
            return {}
        wide = min(8, -(-len(made.media) // 2))
        kind, info = kind_of(made.info), made.info
        sheet = kind.sheet(list(made.media), info, wide, self.asked.words)
        text = {"step": str(moment.step), "samples": str(moment.samples), "settings": repr(made.settings)}
        plain = {key: value for key, value in self.asked.request.items() if key != "given"}
        asked = {"request": plain, "words": list(self.asked.words)}
        moment.run.write("samples/asked.json", asked)
        view = kind.viewer(list(made.media[:_VIEWED]), info, self.asked.words[:_VIEWED])
        if view:
            moment.run.write(VIEW, {"kind": info.kind, "html": view})
        media.save_png(sheet, moment.run.samples / f"step-{moment.step:08d}.png", text)
        media.save_png(strip.picture(self.asked), moment.run.samples / "strip.png", text)
        return {"pictures": sheet}


class _Strip:
    """Collects x_t of the first sample (seed 0) on its way, to show beside E[x0 | x_t]."""

    def __init__(self, pipeline: Pipeline) -> None:
        model, steps = pipeline.model, pipeline.sampling.steps
        wanted = (
            np.linspace(0, steps, min(_STRIP, steps + 1)).round().astype(int) - 1
        )  # -1 is the noise before all steps
        self._model, self._pipeline = model, pipeline
        self._wanted = set(wanted.tolist())
        one = torch.ones(1, dtype=torch.float64)
        noise = SampleNoise((0,)).prior(model.codec.shape, device=model.device)
        self._seen: dict[int, tuple[float, Tensor]] = {-1: (1.0, start(model.denoiser.process, noise, one))}

    def __call__(self, pipeline: Pipeline, step: int, t: Tensor, state: dict[str, Tensor]) -> None:
        if step in self._wanted and step not in self._seen:
            self._seen[step] = (float(t.reshape(-1)[0]), state["x"][:1].detach().clone())

    @torch.no_grad()
    def picture(self, asked: Asked) -> Image:
        """Two rows: x_t scaled to the deviation of data, and what the model takes it for."""
        model, process = self._model, self._model.denoiser.process
        cond = None
        if model.conditioner is not None:
            cond = model.condition(self._pipeline.plan(**asked.request).request.take([0]).columns)
        noisy, clean, words = [], [], []
        for t, x in self._seen.values():
            time = torch.full((1,), t, dtype=torch.float64)
            alpha, sigma = (float(c) for c in process.scales(time))
            x0 = x if t == 0 else model.denoiser(x, time, cond)
            noisy.append(self._picture(x / math.hypot(alpha, sigma)))
            clean.append(self._picture(x0))
            words.append(f"t = {t:.2f}")
        return media.grid(noisy + clean, len(noisy), [*words, *["E[x0 | x_t]"] * len(words)])

    def _picture(self, x0: Tensor) -> Image:
        info = self._model.info
        return kind_of(info).picture(self._model.codec.decode(x0).cpu()[0], info)


@final
class ModelFolder(Hook):
    """Writes `model/` with every checkpoint: averaged weights, ready to sample from."""

    times = None
    behind = True

    def __init__(self, spec: ModelSpec, sampling: Sampling) -> None:
        self.spec, self.sampling = spec, sampling

    def __call__(self, moment: Moment) -> None:
        assert isinstance(moment.model, Model)
        trained = {
            "run": moment.run.name,
            "step": moment.step,
            "samples": moment.samples,
            "seconds": round(moment.seconds, 1),
            "data": moment.run.read("data.json"),
            "environment": moment.run.read("env.json"),
        }
        Pipeline(moment.model, self.spec, self.sampling, trained=trained).save_pretrained(moment.run.model)


@final
class Report(Hook):
    """Writes report.html after each evaluation and when the run has ended."""

    def __init__(self, settings: Training) -> None:
        self.times = max(settings.evaluations, settings.pictures, 1)

    def __call__(self, moment: Moment) -> None:
        if not moment.last:
            write_report(moment.run)

    def end(self, run: Run) -> None:
        write_report(run)
