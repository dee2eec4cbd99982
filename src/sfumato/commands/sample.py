"""`sfumato sample`: samples as files, resumable."""

from __future__ import annotations

import io
import json
import re
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from sfumato import __version__, media
from sfumato.codecs import Codec
from sfumato.commands.say import duration, say, say_json
from sfumato.commands.words import check_keys, find_model, numbers, split_words, whole_number
from sfumato.core import DataInfo
from sfumato.errors import Interrupted, SfumatoError, UserError, did_you_mean
from sfumato.files import make_folder, write_atomic
from sfumato.modelfolder import WEIGHTS, find_folder
from sfumato.pipeline import Pipeline, Plan, Sampling
from sfumato.registry import members
from sfumato.spec import Spec, as_spec
from sfumato.train.device import choose_device
from sfumato.train.memory import explain_sampling_oom
from sfumato.train.progress import Terminal

_KEYS = (
    "n", "seed", "steps", "guidance", "threshold", "solver", "grid", "label", "number", "prompt", "negative", "batch",
    "dtype", "tile", "slice", "offload",
)  # fmt: skip
_EACH = 4  # samples of each prompt or class
_FREE = 16  # samples of a model that is asked by nothing
_SHEET = 100  # samples on the grid
_SETTINGS = "samples.json"


@final
@dataclass(frozen=True)
class _Job:
    """All samples of a command. names: file names, one a sample. settings: what all of them share, to be compared."""

    pipeline: Pipeline
    plan: Plan
    names: tuple[str, ...]
    settings: dict[str, Any]
    batch: int

    @property
    def pictures(self) -> bool:
        """Whether samples are PNG files; else they are arrays."""
        return _is_picture(self.pipeline.model.info)


def sample(source: str, words: Sequence[str], *, out: Path | None, device: str, as_json: bool) -> None:
    """Draw samples into a folder or one file."""
    prompts, settings = split_words(words)
    folder = find_folder(find_model(source))
    choose_device(device)
    pipeline = _with_settings(Pipeline.from_pretrained(folder), settings)
    job = _job(pipeline, folder, prompts, settings)
    try:
        pipeline.to(choose_device(device), settings.get("dtype"))
        if out is not None and out.suffix:
            _to_file(job, _checked_file(out, job), as_json)
            return
        _to_folder(job, out if out is not None else _own_folder(job, folder), as_json)
    except torch.OutOfMemoryError as error:
        raise SfumatoError(_too_much(job, settings, choose_device(device))) from error


# ---------------------------------------------------------------- what is asked


def _with_settings(pipeline: Pipeline, settings: Mapping[str, str]) -> Pipeline:
    """The pipeline with the settings of solver, grid, guidance and threshold changed."""
    check_keys({k: v for k, v in settings.items() if "." not in k}, _KEYS, "sample")
    spec: Spec[Sampling] = as_spec(pipeline.sampling)
    for key in ("steps", "solver", "grid", "threshold", *(("guidance",) if _names_guidance(settings) else ())):
        if key in settings:
            spec = spec.override(key, settings[key])
    for key, value in settings.items():
        if "." in key:
            spec = spec.override(key, value)
    changed = Pipeline(pipeline.model, pipeline.spec, spec.build(), trained=pipeline.trained)
    tile, most = (whole_number(settings, key, 0) if key in settings else None for key in ("tile", "slice"))
    return changed.save_memory(tile=tile, slice=most, offload=_truth(settings, "offload"))


def _truth(settings: Mapping[str, str], key: str) -> bool:
    text = settings.get(key, "false").lower()
    if text not in ("true", "false"):
        raise UserError(f"{key}={settings[key]}: must be true or false")
    return text == "true"


def _names_guidance(settings: Mapping[str, str]) -> bool:
    """Whether guidance= names a guidance, or none, and not scales. Raises UserError for neither."""
    text = settings.get("guidance", "")
    if text.lower() in ("", "none") or text.startswith("{type:") or text in members("guidance"):
        return bool(text)
    try:
        numbers(settings, "guidance")
    except UserError as error:
        raise UserError(f"{error}, or the name of a guidance; {did_you_mean(text, members('guidance'))}") from None
    return False


def _job(pipeline: Pipeline, folder: Path, prompts: list[str], settings: Mapping[str, str]) -> _Job:
    prompts = [*prompts, *([settings["prompt"]] if "prompt" in settings else [])]
    label: list[int | str] | None = [*settings["label"].split(",")] if "label" in settings else None
    number = numbers(settings, "number")
    named = _names_guidance(settings)
    scale = None if named else numbers(settings, "guidance")
    conditioner, info = pipeline.model.conditioner, pipeline.model.info
    free = scale is not None and not any(scale)
    if conditioner is not None and conditioner.columns == ("label",) and label is None and not prompts and not free:
        label = [*range(min(len(info.labels), _FREE))]
    asked = max(len(prompts), len(label or ()), len(scale or ()), len(number or ()) if len(info.numbers) == 1 else 1)
    seed, count = _seeds(settings, asked, _EACH if prompts or label or number else _FREE)
    plan = pipeline.plan(
        prompts or None,
        label=label,
        number=number,
        negative_prompt=settings.get("negative"),
        n=count,
        seed=seed,
        guidance_scale=scale,
        guidance=pipeline.sampling.guidance if named else None,
    )
    shared: dict[str, Any] = {
        "weights": _weights_of(folder),
        **as_spec(pipeline.sampling).to_dict(),
        **{k: plan.settings[k] for k in ("solver", "grid", "guidance_scale", "negative_prompt") if k in plan.settings},
    }
    names = _names(plan, ".png" if _is_picture(info) else ".npy")
    batch = whole_number(settings, "batch", 64)
    if batch < 1:
        raise UserError(f"batch={batch}: must be at least 1")
    return _Job(pipeline, plan, names, shared, batch)


def _seeds(settings: Mapping[str, str], prompts: int, usual: int) -> tuple[int | list[int], int]:
    """(seeds, samples of each prompt) of `seed=3`, `seed=0:1000` or `seed=3,5,8`, and `n=`."""
    text, count = settings.get("seed", "0"), whole_number(settings, "n", 0) if "n" in settings else None
    try:
        first, colon, last = text.partition(":")
        if colon:
            seeds = list(range(int(first or 0), int(last)))
        elif "," in text:
            seeds = [int(part) for part in text.split(",")]
        else:
            return int(text), usual if count is None else count
    except ValueError:
        raise UserError(
            f"seed={text}: must be a whole number, a range such as 0:1000, or several with commas"
        ) from None
    if not seeds:
        raise UserError(f"seed={text}: there is no seed in this range; write first:last+1, such as 0:1000")
    return seeds, max(1, len(seeds) // prompts) if count is None else count


def _weights_of(folder: Path) -> str:
    manifest = json.loads((folder / "MANIFEST.json").read_text(encoding="utf-8"))
    return str(manifest["files"][WEIGHTS]["sha256"])


def _is_picture(info: DataInfo) -> bool:
    return info.kind == "image" and len(info.shape) == 3 and info.shape[0] <= 4


def _names(plan: Plan, suffix: str) -> tuple[str, ...]:
    """`000007-a-handwritten-seven.png`: the seed and what was asked for; a number where that is not unique."""
    names: list[str] = []
    seen: dict[str, int] = {}
    for seed, text in zip(plan.request.seeds, plan.request.texts):
        words = re.sub(r"[^\w.]+", "-", text)[:60].strip("-.")
        name = f"{seed:06d}" + (f"-{words}" if words else "")
        seen[name] = seen.get(name, 0) + 1
        names.append(name + (f"-{seen[name]}" if seen[name] > 1 else "") + suffix)
    return tuple(names)


def _too_much(job: _Job, settings: Mapping[str, str], device: torch.device) -> str:
    """One sentence after `torch.OutOfMemoryError`: what is needed, and the settings that are left to change."""
    model, most = job.pipeline.model, min(job.batch, len(job.names))
    asked = " ".join(f"{key}={settings[key]}" for key in ("tile", "slice", "offload") if key in settings)
    words = f"{most} samples at once do" if most > 1 else "1 sample at once does"
    said = f"{device} is out of memory: {words} not fit with {asked or 'all of the network on it'}"
    said += f"; set batch={most // 2}" if most > 1 else "; use a smaller model, or a device with more memory"
    if not asked:  # with these settings less is needed than would be said
        with suppress(NotImplementedError, RuntimeError):  # a network that does not run without numbers
            said = explain_sampling_oom(model, most, device=device, dtype=next(model.denoiser.parameters()).dtype)
    left = {
        "slice=1": "slice" not in settings,
        "tile=512": "tile" not in settings and type(model.codec).decode_tiled is not Codec.decode_tiled,
        "offload=true": "offload" not in settings,
    }
    more = [setting for setting, able in left.items() if able]
    return f"{said}, or {' or '.join(more)} (slower)" if more else said


# ---------------------------------------------------------------- files


def _checked_file(out: Path, job: _Job) -> Path:
    wanted = (".png", ".npy")
    if out.suffix.lower() not in wanted:
        raise UserError(
            f"-o {out}: samples are written as {' or '.join(wanted)}, or into a folder (a name without a dot)"
        )
    if out.is_dir():
        raise UserError(f"-o {out}: a folder is in its place; choose another name")
    return out


def _own_folder(job: _Job, model: Path) -> Path:
    """`samples/NAME`, or `NAME-2` and so on where that holds samples of other settings."""
    name = model.resolve().parent.name if model.name == "model" else model.resolve().name
    number = 1
    while True:
        folder = Path("samples") / (name if number == 1 else f"{name}-{number}")
        if not folder.exists() or _differences(folder, job) == []:
            return folder
        number += 1


def _differences(folder: Path, job: _Job) -> list[str] | None:
    """Settings that differ from those of the samples in a folder, in words; None if it holds none of ours."""
    try:
        old = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))["settings"]
        new = json.loads(json.dumps(job.settings))
        keys = sorted(old.keys() | new.keys())
        return [
            f"{key}: {_short(old.get(key))} -> {_short(new.get(key))}" for key in keys if old.get(key) != new.get(key)
        ]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{folder / _SETTINGS}: not written by sfumato; choose another folder with -o") from None


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _to_file(job: _Job, out: Path, as_json: bool) -> None:
    began = time.monotonic()
    parts = [made for _, made in _drawn(job, list(range(len(job.names))))]
    made = torch.cat(parts)
    if out.suffix.lower() == ".npy":
        write_atomic(_with_parent(out), _npy(made.numpy()))
    elif made.ndim == 2:
        media.save_png(media.scatter(made), out, _text(job, None))
    elif len(made) == 1:
        media.save_png(media.to_image(made[0]), out, _text(job, 0))
    else:
        shown = [media.to_image(item) for item in made]
        texts = job.plan.request.texts
        captions = texts if any(texts) else None
        media.save_png(media.grid(shown, _grid_columns(job), captions), out, _text(job, None))
    _report(job, {"out": str(out), "written": len(made), "already_there": 0, "files": [str(out)]}, began, as_json)


def _to_folder(job: _Job, out: Path, as_json: bool) -> None:
    began = time.monotonic()
    if out.exists() and not out.is_dir():
        raise UserError(f"-o {out}: a file is in its place; choose another folder")
    different = _differences(out, job) if out.is_dir() else None
    if different:
        raise UserError(
            f"{out} holds samples of other settings ({'; '.join(different)}); choose another folder with -o"
        )
    make_folder(out)
    if different is None:
        content = {"sfumato": __version__, "model": job.pipeline.trained.get("run"), "settings": job.settings}
        write_atomic(out / _SETTINGS, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    missing = [i for i, name in enumerate(job.names) if not _complete(out / name)]
    done = 0
    try:
        for rows, made in _drawn(job, missing):
            for i, item in zip(rows, made):
                _write(job, i, item, out / job.names[i])
                done += 1
    except KeyboardInterrupt:
        there = len(job.names) - len(missing) + done
        raise Interrupted(
            f"{there:,} of {len(job.names):,} samples are in {out}; run the same command to go on"
        ) from None
    found: dict[str, Any] = {"out": str(out), "written": len(missing), "already_there": len(job.names) - len(missing)}
    if len(job.names) > 1:
        found["grid"] = str(_write_grid(job, out))
    _report(job, {**found, "files": [str(out / name) for name in job.names]}, began, as_json)


def _drawn(job: _Job, rows: list[int]) -> Iterator[tuple[list[int], torch.Tensor]]:
    """(rows, their media), batch by batch, with progress on standard error."""
    if not rows:
        return
    display, began, done = Terminal(Console(stderr=True, highlight=False)), time.monotonic(), 0

    def on_step(pipeline: Pipeline, step: int, t: torch.Tensor, state: dict[str, torch.Tensor]) -> None:
        part = min(len(state["x"]), len(rows) - done)
        share = (done + part * (step + 1) / job.plan.steps) / len(rows)
        spent = time.monotonic() - began
        display.update(share, int(share * len(rows)), spent / share - spent, None, len(rows) * share / spent)

    try:
        for made in job.pipeline.run(job.plan.take(rows), job.batch, on_step):
            yield rows[done : done + len(made)], made
            done += len(made)
    finally:
        display.close()


def _write(job: _Job, i: int, item: torch.Tensor, file: Path) -> None:
    if job.pictures:
        media.save_png(media.to_image(item), file, _text(job, i), sync=False)
    else:
        write_atomic(file, _npy(item.numpy()), sync=False)


def _text(job: _Job, i: int | None) -> dict[str, str]:
    """The text chunks of a PNG: of sample `i`, or of all."""
    settings = dict(job.settings)
    own = {"prompt": "", "seed": json.dumps(job.plan.settings["seed"])}
    if i is None:
        own["prompt"] = "; ".join(dict.fromkeys(filter(None, job.plan.request.texts)))
    else:
        own = {"prompt": job.plan.request.texts[i], "seed": str(job.plan.request.seeds[i])}
        if job.plan.request.scale is not None:
            settings["guidance_scale"] = job.plan.request.scale[i]
        if job.plan.request.negative:
            settings["negative_prompt"] = job.plan.request.negative[i]
    run = job.pipeline.trained.get("run")
    return {
        "Software": f"sfumato {__version__}",
        **({"model": str(run)} if run else {}),
        **{k: v for k, v in own.items() if v},
        "settings": json.dumps(settings, ensure_ascii=False),
    }


def _complete(file: Path) -> bool:
    """Whether a file is there to its end. Files are renamed into place when they are whole; this notices a copy cut short."""
    try:
        if file.suffix == ".npy":
            np.load(file, mmap_mode="r", allow_pickle=False)
            return True
        with file.open("rb") as stream:
            stream.seek(-8, io.SEEK_END)
            return stream.read(4) == b"IEND"
    except (OSError, ValueError):
        return False


def _write_grid(job: _Job, out: Path) -> Path:
    names = job.names[:_SHEET]
    shown = [Image.open(out / name) if job.pictures else media.to_image(np.load(out / name)) for name in names]
    texts = job.plan.request.texts[:_SHEET]
    sheet = media.grid(shown, _grid_columns(job), texts if any(texts) else None)
    return media.save_png(sheet, out / "grid.png", _text(job, None))


def _grid_columns(job: _Job) -> int | None:
    """A row for each prompt where that looks well."""
    n = int(job.plan.settings["n"])
    return n if 1 < n <= 12 and n < len(job.names) else None


def _npy(array: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def _with_parent(file: Path) -> Path:
    make_folder(file.parent)
    return file


def _report(job: _Job, found: Mapping[str, Any], began: float, as_json: bool) -> None:
    seconds = time.monotonic() - began
    if as_json:
        run = job.pipeline.trained.get("run")
        say_json({"model": run, "n": len(job.names), **found, "seconds": round(seconds, 2), "settings": job.settings})
        return
    there = f", {found['already_there']:,} were already there" if found["already_there"] else ""
    say(f"{found['written']:,} samples in {duration(seconds)}{there}")
    say(f"  {shlex.quote(found.get('grid', found['out']))}")
    if "grid" in found:
        say(f"  {len(job.names):,} files such as {found['files'][0]}")
