"""`sfumato sample`: samples as files, resumable."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from rich.console import Console

from sfumato import __version__, media
from sfumato.codecs import Codec
from sfumato.commands.edits import KEYS as EDITS
from sfumato.commands.edits import read_edit, timed
from sfumato.commands.ranked import best_of, check_styles, open_judge, ranked
from sfumato.commands.say import duration, say, say_json
from sfumato.commands.words import check_keys, find_model, numbers, split_words, whole_number
from sfumato.core import DataInfo
from sfumato.device import choose_device
from sfumato.editing import Edit
from sfumato.editing import run as run_edit
from sfumato.errors import Interrupted, SfumatoError, UserError, did_you_mean
from sfumato.files import make_folder, write_atomic
from sfumato.kinds import MediaKind, kind_of
from sfumato.kinds.base import npy
from sfumato.modelfolder import WEIGHTS, find_folder
from sfumato.pipeline import Pipeline, Plan, Sampling
from sfumato.progress import Terminal
from sfumato.registry import members
from sfumato.request import word_of
from sfumato.spec import Spec, as_spec

if TYPE_CHECKING:
    from sfumato.evaluate.alignment import Aligner

_KEYS = (
    "n", "seed", "steps", "guidance", "threshold", "solver", "grid", "label", "number", "prompt", "negative", "batch",
    "dtype", "tile", "slice", "offload", "format", "best_of", "judge", *EDITS,
)  # fmt: skip
_EACH = 4  # samples of each prompt or class
_FREE = 16  # samples of a model that is asked by nothing
_SHEET = 100  # samples on the grid
_SETTINGS = "samples.json"


@final
@dataclass(frozen=True)
class _Job:
    """All samples of a command. names: file names, one a sample. settings: what all of them share, to be compared.

    options: how they are written, by the settings of their kind of media. each: samples of a prompt. drawn: the samples
    themselves, where they were chosen among candidates. edit: what they begin with, if anything.
    """

    pipeline: Pipeline
    plan: Plan
    names: tuple[str, ...]
    settings: dict[str, Any]
    batch: int
    options: Mapping[str, str]
    each: int
    drawn: torch.Tensor | None = None
    edit: Edit | None = None
    began: float = field(default_factory=time.monotonic)

    @property
    def info(self) -> DataInfo:
        return self.pipeline.model.info

    @property
    def kind(self) -> MediaKind:
        """How samples are shown and written."""
        return kind_of(self.info)


def sample(source: str, words: Sequence[str], *, out: Path | None, device: str, as_json: bool) -> None:
    """Draw samples into a folder or one file."""
    prompts, settings = split_words(words)
    folder = find_folder(find_model(source))
    choose_device(device)
    pipeline = _with_settings(Pipeline.from_pretrained(folder), settings)
    settings = timed(settings, pipeline.model.info)
    many = best_of(settings)
    judge = open_judge(settings, folder, pipeline) if many > 1 else None
    job = _job(pipeline, folder, prompts, settings, many, out)
    try:
        pipeline.to(choose_device(device), settings.get("dtype"))
        if judge is not None:
            job = _chosen(job, judge.to(pipeline.model.device), many)
        if out is not None and out.suffix:
            _to_file(job, _checked_file(out, job), as_json)
            return
        _to_folder(job, out if out is not None else _own_folder(job, folder), as_json)
    except torch.OutOfMemoryError as error:
        raise SfumatoError(_too_much(job, settings, choose_device(device))) from error


# ---------------------------------------------------------------- what is asked


def _with_settings(pipeline: Pipeline, settings: Mapping[str, str]) -> Pipeline:
    """The pipeline with the settings of solver, grid, guidance and threshold changed."""
    keys = (*_KEYS, *_media_columns(), *kind_of(pipeline.model.info).options)
    check_keys({k: v for k, v in settings.items() if "." not in k}, keys, "sample")
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


def _media_columns() -> list[str]:
    """Columns of media that some conditioner reads: `picture=FILE`."""
    known = [getattr(cls, "columns", None) for cls in members("conditioner").values()]
    read = {column for columns in known if isinstance(columns, tuple) for column in columns}
    return sorted(column for column in read if word_of(column) == column and column not in _KEYS)


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


def _job(
    pipeline: Pipeline, folder: Path, prompts: list[str], settings: Mapping[str, str], many: int, out: Path | None
) -> _Job:
    """What is to be drawn. many: candidates for each sample."""
    prompts = [*prompts, *([settings["prompt"]] if "prompt" in settings else [])]
    check_styles(pipeline.trained, prompts)
    label: list[int | str] | None = [*settings["label"].split(",")] if "label" in settings else None
    number = numbers(settings, "number")
    given = {column: settings[column].split(",") for column in _media_columns() if column in settings}
    named = _names_guidance(settings)
    scale = None if named else numbers(settings, "guidance")
    conditioner, info = pipeline.model.conditioner, pipeline.model.info
    free = scale is not None and not any(scale)
    if conditioner is not None and conditioner.columns == ("label",) and label is None and not prompts and not free:
        label = [*range(min(len(info.labels), _FREE))]
    asked = max(len(prompts), len(label or ()), len(scale or ()), len(number or ()) if len(info.numbers) == 1 else 1)
    asked = max(asked, *map(len, given.values())) if given else asked
    usual = 1 if _holds_one(out) else _EACH if prompts or label or number or given else _FREE
    seed, count = _seeds(settings, asked, usual)
    plan = pipeline.plan(
        prompts or None,
        label=label,
        number=number,
        given=given,
        negative_prompt=settings.get("negative"),
        n=count * many,
        seed=seed,
        guidance_scale=scale,
        guidance=pipeline.sampling.guidance if named else None,
    )
    shared: dict[str, Any] = {
        "weights": _weights_of(folder),
        **as_spec(pipeline.sampling).to_dict(),
        **{k: plan.settings[k] for k in ("solver", "grid", "guidance_scale", "negative_prompt") if k in plan.settings},
        **plan.settings.get("given", {}),
    }
    kind = kind_of(info)
    options = {key: kind.check_option(key, settings[key]) for key in kind.options if key in settings}
    edit, edited = read_edit(settings, info)
    shared |= options | edited
    names = _names(plan, _suffix(kind, info, settings))
    batch = whole_number(settings, "batch", 64)
    if batch < 1:
        raise UserError(f"batch={batch}: must be at least 1")
    return _Job(pipeline, plan, names, shared, batch, options, count, edit=edit)


def _chosen(job: _Job, judge: Aligner, many: int) -> _Job:
    """The job with the samples that fit their prompts best, one of `many` candidates, already drawn."""
    made = torch.cat([part for _, part in _drawn(job, list(range(len(job.names))))])
    rows, _ = ranked(judge, made, job.plan.request.texts, many)
    settings = {**job.settings, "best_of": many, "judge": judge.sha256}
    names = tuple(job.names[i] for i in rows)
    return replace(job, plan=job.plan.take(rows), names=names, settings=settings, drawn=made[rows])


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


def _suffix(kind: MediaKind, info: DataInfo, settings: Mapping[str, str]) -> str:
    """Of the files of a folder: `format=`, or what this kind of media is usually written as."""
    if "format" not in settings:
        return kind.usual(info)
    wanted = "." + settings["format"].lower().lstrip(".")
    if wanted not in kind.suffixes:
        known = ", ".join(suffix[1:] for suffix in kind.suffixes)
        raise UserError(f"format={settings['format']}: {kind.noun} are written as {known}")
    return wanted


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
        from sfumato.train.memory import explain_sampling_oom  # a tenth of a second that only this case needs

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


def _holds_one(out: Path | None) -> bool:
    """Whether this is a file of one sample: a sound, a mesh."""
    return out is not None and out.suffix.lower() not in ("", ".png", ".npy")


def _checked_file(out: Path, job: _Job) -> Path:
    wanted = tuple(dict.fromkeys((".png", ".npy", *job.kind.suffixes)))
    suffix = out.suffix.lower()
    if suffix not in wanted:
        raise UserError(
            f"-o {out}: samples are written as {' or '.join(wanted)}, or into a folder (a name without a dot)"
        )
    if len(job.names) > 1 and _holds_one(out):
        raise UserError(
            f"-o {out}: holds one sample, and {len(job.names)} are asked for; set n=1, or give a folder and "
            f"format={suffix[1:]}"
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
    parts = [made for _, made in _drawn(job, list(range(len(job.names))))]
    made = torch.cat(parts)
    suffix, kind = out.suffix.lower(), job.kind
    if suffix == ".npy":
        write_atomic(_with_parent(out), npy(made.numpy()))
    elif suffix != ".png":
        write_atomic(_with_parent(out), kind.encode(made[0], job.info, suffix, _text(job, 0), job.options))
    elif len(made) == 1 and made.ndim > 2:
        media.save_png(kind.picture(made[0], job.info), out, _text(job, 0))
    else:
        texts = job.plan.request.texts
        captions = texts if any(texts) else None
        media.save_png(kind.sheet(list(made), job.info, _grid_columns(job), captions), out, _text(job, None))
    _report(job, {"out": str(out), "written": len(made), "already_there": 0, "files": [str(out)]}, as_json)


def _to_folder(job: _Job, out: Path, as_json: bool) -> None:
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
    missing = [i for i, name in enumerate(job.names) if not job.kind.is_whole(out / name)]
    done, sheet = 0, dict[int, torch.Tensor]()
    try:
        for rows, made in _drawn(job, missing):
            for i, item in zip(rows, made):
                _write(job, i, item, out / job.names[i])
                sheet |= {i: item} if i < _SHEET else {}
                done += 1
    except KeyboardInterrupt:
        there = len(job.names) - len(missing) + done
        raise Interrupted(
            f"{there:,} of {len(job.names):,} samples are in {out}; run the same command to go on"
        ) from None
    found: dict[str, Any] = {"out": str(out), "written": len(missing), "already_there": len(job.names) - len(missing)}
    if len(job.names) > 1:
        found["grid"] = str(_write_grid(job, out, sheet))
    _report(job, {**found, "files": [str(out / name) for name in job.names]}, as_json)


def _drawn(job: _Job, rows: list[int]) -> Iterator[tuple[list[int], torch.Tensor]]:
    """(rows, their media), batch by batch, with progress on standard error."""
    if not rows:
        return
    if job.drawn is not None:
        yield rows, job.drawn[rows]
        return
    display, began, done = Terminal(Console(stderr=True, highlight=False)), time.monotonic(), 0

    def on_step(pipeline: Pipeline, step: int, t: torch.Tensor, state: dict[str, torch.Tensor]) -> None:
        part = min(len(state["x"]), len(rows) - done)
        share = (done + part * (step + 1) / job.plan.steps) / len(rows)
        spent = time.monotonic() - began
        display.update(share, int(share * len(rows)), spent / share - spent, None, len(rows) * share / spent)

    try:
        plan, edit = job.plan.take(rows), job.edit
        drawn = (
            job.pipeline.run(plan, job.batch, on_step)
            if edit is None
            else run_edit(job.pipeline, plan, edit, job.batch, on_step)
        )
        for made in drawn:
            yield rows[done : done + len(made)], made
            done += len(made)
    finally:
        display.close()


def _write(job: _Job, i: int, item: torch.Tensor, file: Path) -> None:
    write_atomic(file, job.kind.encode(item, job.info, file.suffix, _text(job, i), job.options), sync=False)


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


def _write_grid(job: _Job, out: Path, made: dict[int, torch.Tensor]) -> Path:
    """A sheet of the first samples: those just `made`, and from their files those that were there."""
    names = job.names[:_SHEET]
    found = [made[i] if i in made else job.kind.read(out / name, job.info) for i, name in enumerate(names)]
    items = {i: item for i, item in enumerate(found) if item is not None}
    if not items:  # nothing new, and a format that is not read back: the sheet is there
        return out / "grid.png"
    texts = [job.plan.request.texts[i] for i in items]
    sheet = job.kind.sheet([*items.values()], job.info, _grid_columns(job), texts if any(texts) else None)
    return media.save_png(sheet, out / "grid.png", _text(job, None))


def _grid_columns(job: _Job) -> int | None:
    """A row for each prompt where that looks well."""
    n = job.each
    return n if 1 < n <= 12 and n < len(job.names) else None


def _with_parent(file: Path) -> Path:
    make_folder(file.parent)
    return file


def _report(job: _Job, found: Mapping[str, Any], as_json: bool) -> None:
    seconds = time.monotonic() - job.began
    if as_json:
        run = job.pipeline.trained.get("run")
        say_json({"model": run, "n": len(job.names), **found, "seconds": round(seconds, 2), "settings": job.settings})
        return
    there = f", {found['already_there']:,} were already there" if found["already_there"] else ""
    say(f"{found['written']:,} samples in {duration(seconds)}{there}")
    say(f"  {shlex.quote(found.get('grid', found['out']))}")
    if "grid" in found:
        say(f"  {len(job.names):,} files such as {found['files'][0]}")
