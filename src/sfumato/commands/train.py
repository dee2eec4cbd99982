"""`sfumato train`."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from sfumato.commands.say import duration, facts, say, say_json, size
from sfumato.commands.words import RUNS, find_run, only_settings, run_names
from sfumato.core import CondShape, DataInfo
from sfumato.device import choose_device, choose_precision
from sfumato.errors import UserError
from sfumato.recipes import AnyPrepared, Prepared, Recipe, check_init, load_recipe, prepare_any, recipes, slug, start
from sfumato.recipes.aim import roomy
from sfumato.request import word_of
from sfumato.spec import Spec, dump_yaml
from sfumato.train import Estimate, Result, Run, Silent, Terminal


def train(
    source: str, words: Sequence[str], *, name: str | None, fresh: bool, dry_run: bool, device: str, as_json: bool
) -> None:
    """Train, resume, or with `dry_run` only say what would be done."""
    settings = only_settings(words)
    name = settings.pop("name", name)
    where, folder = _source(source)
    spec = load_recipe(where, settings)
    if name is not None:
        folder = RUNS / _folder_name(name)
    folder = folder or RUNS / slug(spec.title)
    run = Run(folder, spec)
    check_init(spec, folder)
    choose_device(device)
    if dry_run:
        _dry_run(spec, run, device, as_json)
        return
    prepared = prepare_any(spec, None if fresh else run)
    if not fresh:
        run.check_settings(dict(spec.leaves()))
    main = int(os.environ.get("RANK", "0")) == 0  # of several processes, one speaks
    if main and not as_json:
        say(_header(prepared, run, device))
    if fresh and main and (removed := run.clear()):
        _tell(f"--fresh: removed {', '.join(removed)} of {folder}", as_json)
    display = Terminal(Console(stderr=True, highlight=False)) if main else Silent()
    result = start(prepared, run, device=device, display=display).fit()
    if not main:
        return
    if as_json:
        say_json(_summary(result, run))
    else:
        say(_closing(result, prepared, run))


def _source(source: str) -> tuple[str | Path, Path | None]:
    """What to load, and the run folder if a run was named. A recipe's name goes before a run's."""
    if source in recipes() or Path(source).is_file():
        return source, None
    if (Path(source) / "recipe.yaml").is_file() or source in run_names():
        folder = find_run(source)
        return folder, folder
    return source, None


def _folder_name(name: str) -> str:
    if slug(name) != name:
        raise UserError(f"name={name}: the name of a run is one folder of {RUNS}/, such as {slug(name)}")
    return name


def _dry_run(spec: Spec[Recipe], run: Run, device: str, as_json: bool) -> None:
    prepared = prepare_any(spec)
    cost = prepared.estimate(device)
    if as_json:
        say_json(
            {
                "run": str(run.folder),
                "settings": spec.to_dict(),
                "device": str(choose_device(device)),
                "parameters": cost.parameters,
                "memory_bytes": cost.memory_bytes,
                "memory": None if cost.memory is None else cost.memory.to_dict(),
                "memory_limit": cost.limit,
                "memory_measured": cost.measured_bytes,
                "fits": None if cost.limit is None or cost.memory is None else cost.remedy is None,
                "recompute": cost.settings.recompute,
                "accumulate": cost.settings.accumulate,
                "seconds_per_step": cost.seconds_per_step,
                "minutes": cost.minutes,
                "samples": cost.samples,
            }
        )
        return
    say(dump_yaml(spec))
    say(_header(prepared, run, device))
    made = cost.seconds_per_step is not None
    say(facts({"memory": _memory_line(cost), **({"time": _time_line(cost)} if made else {})}))
    say(f"dry run: {'two real steps were made' if made else 'no step was made'} and nothing was written")


def _memory_line(cost: Estimate) -> str:
    """What a step needs, of what, and whether that fits."""
    memory = cost.memory
    if memory is None:
        return cost.unpredicted
    parts = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        "averages": memory.average,
        "activations": memory.activations,
        "temporary": memory.temporary,
    }
    lines = [
        f"about {size(memory.total)} at most",
        ", ".join(f"{name} {size(count)}" for name, count in parts.items() if count),
    ]
    settings = cost.settings
    if cost.remedy is not None:
        lines.insert(0, f"does not fit in {size(cost.limit or 0)}; {cost.remedy}")
    elif cost.limit is not None:
        lines[0] += f": fits in {size(cost.limit)}"
    if settings.memory is not None:
        lines[0] += f" with train.recompute={settings.recompute:.2g} and train.accumulate={settings.accumulate}"
    if cost.measured_bytes is not None:
        lines.append(f"measured in the two steps: {size(cost.measured_bytes)}")
    return "\n".join(lines)


def _time_line(cost: Estimate) -> str:
    seconds, minutes = cost.seconds_per_step or 0.0, cost.minutes or 0.0
    return f"{seconds:.3g} s a step, {duration(60 * minutes)} for {cost.samples or 0:,} samples"


def _header(prepared: AnyPrepared, run: Run, device: str) -> str:
    """Everything that is worth knowing before waiting."""
    recipe = prepared.recipe
    chosen = choose_device(device)
    dtype = str(choose_precision(recipe.train.precision, chosen)).removeprefix("torch.")
    hardware = f"{torch.get_num_threads()} threads" if chosen.type == "cpu" else ""
    if chosen.type == "cuda":
        hardware = torch.cuda.get_device_name(chosen)
    train = recipe.train
    budget = f"{train.minutes:g} minutes" if train.minutes is not None else f"{train.samples or 0:,} samples"
    return f"{recipe.title}\n" + facts(
        {
            "data": _data_line(prepared),
            "model": _model_line(prepared) if isinstance(prepared, Prepared) else prepared.in_words(),
            "device": ", ".join(filter(None, (str(chosen), hardware, dtype))),
            "budget": f"{budget}, batches of {train.batch}",
            "run": f"{run.folder}{_progress(run)}",
            **({"starts from": recipe.init} if recipe.init is not None else {}),
        }
    )


def _model_line(prepared: Prepared) -> str:
    count = sum(p.numel() for p in prepared.task.model.parameters())
    said = f"{prepared.recipe.network.cls.kind}, {count:,} parameters, {_asked(prepared)}"
    narrow = _narrow(prepared)
    return said if narrow is None else f"{said}\nproblem: {narrow}"


def _narrow(prepared: Prepared) -> str | None:
    """A network that has to give the noise back and is hardly wider than it (docs/processes.md, "Blind directions")."""
    denoiser = prepared.task.model.denoiser
    stem = getattr(denoiser.network, "stem", None)
    if not isinstance(stem, nn.Module) or not isinstance(stem.weight, Tensor):
        return None
    channels, cond = prepared.task.model.codec.shape[0], getattr(denoiser.network, "cond", CondShape())
    # what is told beside the field goes in there too, and need not come out
    width, numbers = stem.weight.shape[0], stem.weight.shape[1] * channels // (channels + cond.concat)
    c = denoiser.parameterization.coeffs(*(torch.full((1,), 0.5, dtype=torch.float64) for _ in range(2)))
    if float(c.k_eps) == 0 or roomy(numbers, width):
        return None
    return (
        f"{numbers} numbers a position and their noise go through {width} channels, and what is lost on the way stays in "
        f"the samples as noise; set parameterization=x0 objective.weighting=velocity, or network.width={2 * numbers} or more"
    )


def _data_line(prepared: AnyPrepared) -> str:
    data, info = prepared.data, prepared.data.info
    held_out = int(data.held_out_mask().sum())
    shape = " x ".join(map(str, info.shape))
    said = f"{data.kind}: {len(data) - held_out:,} items of {shape} to train on, {held_out:,} held out"
    return "\n".join([said, *(f"problem: {problem}" for problem in data.problems)])


def _asked(prepared: Prepared) -> str:
    conditioner = prepared.task.model.conditioner
    if conditioner is None:
        return "unconditional"
    return "asked by " + " and ".join(map(word_of, conditioner.columns))


def _progress(run: Run) -> str:
    info = run.checkpoints().newest_info()
    return "" if info is None else f", going on from {info['samples']:,} samples"


def _summary(result: Result, run: Run) -> dict[str, Any]:
    return {
        "run": str(run.folder),
        "state": run.state().get("state"),
        "steps": result.steps,
        "samples": result.samples,
        "seconds": round(result.seconds, 1),
        "loss": result.loss,
        "model": str(run.model),
        "pictures": str(run.samples),
        "report": str(run.report),
    }


def _closing(result: Result, prepared: AnyPrepared, run: Run) -> str:
    return f"trained for {duration(result.seconds)} on {result.samples:,} samples, loss {result.loss:.4f}\n" + facts(
        {
            "pictures": str(run.samples),
            "report": str(run.report),
            "model": str(run.model),
            "next": next_command(run.folder, prepared.spec.info, prepared)
            if isinstance(prepared, Prepared)
            else prepared.next_command(run.folder),
        }
    )


def next_command(folder: Path, info: DataInfo, prepared: Prepared) -> str:
    """A `sfumato sample` that works for this model."""
    conditioner = prepared.task.model.conditioner
    columns = () if conditioner is None else conditioner.columns
    words = []
    if "caption" in columns:
        held_out = prepared.data.split("held_out")
        shown = held_out if len(held_out) else prepared.data.split("train")
        caption = next((str(c) for c in shown.columns([0]).get("caption", ()) if str(c)), "...")
        words.append(caption)
    elif "label" in columns and info.labels:
        words.append(f"label={info.labels[0]}")
    if "number" in columns:
        values = prepared.data.columns([0])["number"]
        words.append("number=" + ",".join(f"{float(v):g}" for v in torch.as_tensor(values).flatten()))
    words += [f"{column}=FILE" for column in (conditioner.media if conditioner is not None else ())]
    return shlex.join(["sfumato", "sample", str(folder), *words])


def _tell(text: str, as_json: bool) -> None:
    print(text, file=sys.stderr if as_json else sys.stdout, flush=True)
