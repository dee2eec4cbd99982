"""The command line: verbs, options, exit codes. What a verb does is in `sfumato.commands`, imported when it is called.

Exit codes: 0 done, 1 failed, 2 the user's mistake, 3 no valid checkpoint to resume from, 75 saved and interrupted (the same
command goes on). Nothing here loads torch, so help and usage errors are quick.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from sfumato import __version__
from sfumato.errors import SfumatoError, UserError, did_you_mean

app = typer.Typer(
    name="sfumato",
    help="Train, sample and evaluate diffusion models from scratch, on your own data.",
    epilog="Settings are written key=value. `sfumato VERB --help` says more; `sfumato demo` shows what this is.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Look at data, check and pack them.", no_args_is_help=True, rich_markup_mode=None)
runs_app = typer.Typer(help="List, show, compare and delete runs.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")
app.add_typer(runs_app, name="runs")

Words = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps")]


def _version(asked: bool) -> None:
    if asked:
        print(f"sfumato {__version__}")
        raise typer.Exit


@app.callback()
def _everywhere(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; works after a verb too.")
    ] = False,
    files: Annotated[
        list[Path] | None, typer.Option("--import", help="Run a Python file first, so that its classes have names.")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """`--debug` and `--import` are taken out by `run`, wherever they stand; here they are only described."""


@app.command()
def train(
    source: Annotated[str, typer.Argument(metavar="RECIPE|FILE|RUN", help="a recipe's name, a recipe.yaml, or a run")],
    settings: Words = None,
    name: Annotated[str | None, typer.Option(help="Name of the run folder; by default the recipe's title.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete what the run has written and start over.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print settings, memory and time, from two steps.")
    ] = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Train a model. The same command again resumes.

    Any setting of the recipe can be given: size=s minutes=10 lr=1e-3 network.width=96 data=PATH init=RUN. `sfumato show
    recipe NAME` lists them.
    """
    from sfumato.commands import train as verb

    verb.train(source, settings or [], name=name, fresh=fresh, dry_run=dry_run, device=device, as_json=json)


@app.command()
def sample(
    source: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="a run, or a model folder")],
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[PROMPT]... [KEY=VALUE]...", help="prompts and settings")
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="A folder, or one file.png.")] = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Draw samples: a PNG for each and a grid, with seed, prompt and settings inside.

    n=4 (of each prompt) seed=0 (or 0:1000, or 3,5,8) steps=20 guidance=3 solver=heun grid=karras label=7 number=0.5
    negative="..." batch=64 dtype=bf16 (or int8, fp8) threshold=dynamic, for less memory tile=512 slice=8 offload=true,
    best_of=8 (candidates for each picture, ranked by judge=FOLDER or clip:FOLDER, or by the model's own judge),
    guidance by name (guidance=apg), and any setting of solver, grid, guidance or threshold (solver.eta=1,
    guidance.scale=4). The same command again goes on where it stopped.
    """
    from sfumato.commands import sample as verb

    verb.sample(source, words or [], out=out, device=device, as_json=json)


@app.command("eval")
def evaluate(
    source: Annotated[
        str | None, typer.Argument(metavar="RUN|MODEL", help="a run, or a model folder with data=", show_default=False)
    ] = None,
    settings: Words = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option("--compare", metavar="REPORT REPORT", help="Two reports or runs side by side, if they are alike."),
    ] = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Score a model on the held-out part of its data, and keep the scores in the run's eval.json.

    metrics=held_out,nll,bound,walk,features,class_scores n=512 seed=0 batch=64 dtype=bf16 data=PATH judge=FOLDER, and the
    settings of each metric: draws=4 divergence=exact probes=2 evaluations=100 (nll), times=64 bound.steps=1000 (bound),
    level=0.6 walk.steps=16 (walk: errors that grow from step to step), samples=10000
    extractor=FOLDER|inception:FILE|dinov2:FOLDER|clip:FOLDER guidance=2 steps=20 (features), each=100 (class_scores),
    judge=FOLDER|clip:FOLDER among=100 pictures=500 (alignment: whether pictures show their captions).
    """
    if compare is not None:
        if source is not None:
            raise UserError(f"--compare takes two reports and nothing else, not {source} too; leave it out")
        from sfumato.commands import compare as other

        other.compare(*compare, as_json=json)
        return
    if source is None:
        raise UserError("`sfumato eval` needs a run or a model folder, or --compare with two reports")
    from sfumato.commands import eval as verb

    verb.evaluate(source, settings or [], device=device, as_json=json)


@app.command("tune-sampler")
def tune_sampler(
    source: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="a run, or a model folder")],
    words: Annotated[
        list[str] | None, typer.Argument(metavar="nfe=8 [PROMPT]... [KEY=VALUE]...", help="settings, and prompts")
    ] = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Fit times and numbers of the sampler to a model, so that few steps come closer to many; kept with the model.

    nfe=8 (or 5,8,10: network evaluations, steps= of `sample`) n=256 iterations=300 batch=32 many=100 guidance=2 seed=0.
    What is asked for in the fit is drawn from the run's training data; prompts or data=PATH take its place.
    """
    from sfumato.commands import tune as verb

    verb.tune(source, words or [], device=device, as_json=json)


@app.command()
def ema(
    source: Annotated[str, typer.Argument(metavar="RUN", help="a run that was trained with train.snapshots=20 or so")],
    settings: Words = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="The model folder to write; by default averages/std-... of the run."),
    ] = None,
    json: Json = False,
) -> None:
    """Another average of the weights, put together after training from those that were kept on the way.

    std=0.08 (or several: 0.03,0.08,0.15): its relative deviation. step=1200: of a snapshot, where it ends; by default the
    last one. Without std= it says how near each of them would come.
    """
    from sfumato.commands import ema as verb

    verb.ema(source, settings or [], out=out, as_json=json)


@data_app.command("preview")
def data_preview(
    source: Annotated[str, typer.Argument(metavar="PATH|NAME", help="a folder, a file, or a built-in set")],
    settings: Words = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="The picture to write.")] = Path("preview.png"),
    json: Json = False,
) -> None:
    """Write a contact sheet of a data set and say what is in it.

    n=32 seed=0 split=train|held_out, and any setting of the data (size=64 channels=3).
    """
    from sfumato.commands import data as verb

    verb.preview(source, settings or [], out=out, as_json=json)


@data_app.command("check")
def data_check(
    source: Annotated[str, typer.Argument(metavar="PATH|NAME", help="a folder, a file, or a built-in set")],
    settings: Words = None,
    json: Json = False,
) -> None:
    """Read every item: unreadable ones, duplicates, sizes, classes, held-out items in the training part.

    Takes any setting of the data (size=64 channels=3). Exit code 1 if something must be repaired.
    """
    from sfumato.commands import data as verb

    raise typer.Exit(verb.check(source, settings or [], as_json=json))


@data_app.command("pack")
def data_pack(
    source: Annotated[str, typer.Argument(metavar="PATH|NAME", help="a folder, a file, or a built-in set")],
    settings: Words = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write.")] = Path("packed"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Replace packed data that are there.")] = False,
    json: Json = False,
) -> None:
    """Write a data set as arrays that are read without decoding, for fast training: data=FOLDER.

    shards=4 dtype=float16 (of arrays), and any setting of the data (size=64 channels=3).
    """
    from sfumato.commands import data as verb

    verb.pack(source, settings or [], out=out, fresh=fresh, as_json=json)


@data_app.command("encode")
def data_encode(
    source: Annotated[str, typer.Argument(metavar="PATH|NAME", help="a folder, a file, or a built-in set")],
    settings: Words = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write.")] = Path("latents"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Replace packed data that are there.")] = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Write a data set as the latents of an autoencoder, for training with data=FOLDER codec=RUN.

    codec=RUN (needed) batch=64 dtype=float16|float32 tile=512 (encode in tiles) cache=FOLDER (latents by content, kept for
    the next set), and any setting of the data (size=64 channels=3). A folder that is up to date is left as it is.
    """
    from sfumato.commands import encode as verb

    verb.encode(source, settings or [], out=out, fresh=fresh, device=device, as_json=json)


@app.command()
def show(
    what: Annotated[
        str, typer.Argument(metavar="FAMILY|recipe|RUN|MODEL", help="networks, solvers, ..., recipe, a run")
    ],
    words: Annotated[list[str] | None, typer.Argument(metavar="[NAME] [KEY=VALUE]...")] = None,
    json: Json = False,
) -> None:
    """Show what there is: a family of parts with their settings, a recipe, a run, a model."""
    from sfumato.commands import show as verb

    verb.show(what, words or [], as_json=json)


@app.command()
def models(json: Json = False) -> None:
    """Models that can be sampled by name: those that come with the package, and the runs in runs/."""
    from sfumato.commands import models as verb

    verb.models(as_json=json)


@app.command()
def doctor(json: Json = False) -> None:
    """Versions, threads, GPU, disk, and which extras are installed."""
    from sfumato.commands import doctor as verb

    verb.doctor(as_json=json)


@app.command()
def demo(words: Words = None) -> None:
    """Train a small model from nothing, sample it, score it: some minutes on two cores. modality=image, audio or voxel."""
    from sfumato.commands import demo as verb

    raise typer.Exit(verb.demo(words or []))


@runs_app.command("list")
def runs_list(json: Json = False) -> None:
    """All runs: state, samples seen, loss, age."""
    from sfumato.commands import runs as verb

    verb.list_runs(as_json=json)


@runs_app.command("show")
def runs_show(
    name: Annotated[str, typer.Argument(help="the name of a run, or its folder")], json: Json = False
) -> None:
    """One run: state, last metrics, settings, files."""
    from sfumato.commands import runs as verb

    verb.show_run(name, as_json=json)


@runs_app.command("diff")
def runs_diff(
    first: Annotated[str, typer.Argument(help="a run")],
    second: Annotated[str, typer.Argument(help="another run")],
    json: Json = False,
) -> None:
    """The settings that differ between two runs."""
    from sfumato.commands import runs as verb

    verb.diff_runs(first, second, as_json=json)


@runs_app.command("rm")
def runs_rm(
    name: Annotated[str, typer.Argument(help="the name of a run")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a run with everything in its folder."""
    from sfumato.commands import runs as verb

    verb.remove_run(name, yes=yes)


def run(arguments: list[str]) -> int:
    """Run a command line and return its exit code; errors go to standard error in one sentence."""
    debug = False
    try:
        rest, debug, files = _take_global(arguments)
        if files:
            from sfumato.registry import import_file

            for file in files:
                import_file(file)
        _check_verb(rest)
        code = app(args=rest, prog_name="sfumato", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except BrokenPipeError:
        return _nobody_reads()
    except SystemExit as stop:  # what click makes of a broken pipe
        if isinstance(stop.__context__, BrokenPipeError):
            return _nobody_reads()
        raise
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            import traceback

            traceback.print_exc()
        text, code = _explain(error)
        if text:
            print(text, file=sys.stderr)
        return code


def _nobody_reads() -> int:
    """`sfumato runs list | head`: no error. What is still in the buffer goes nowhere, quietly."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 0


def main() -> None:
    """The entry point of `sfumato` and `python -m sfumato`."""
    sys.exit(run(sys.argv[1:]))


def _take_global(arguments: list[str]) -> tuple[list[str], bool, list[str]]:
    """Arguments without `--debug` and `--import FILE`, which may stand anywhere; whether to debug; the files."""
    rest, files, waiting = [], [], iter(arguments)
    for word in waiting:
        if word == "--import":
            file = next(waiting, None)
            if file is None:
                raise UserError("--import needs a file: --import mine.py")
            files.append(file)
        elif word.startswith("--import="):
            files.append(word.removeprefix("--import="))
        elif word != "--debug":
            rest.append(word)
    return rest, "--debug" in arguments, files


def _check_verb(arguments: list[str]) -> None:
    """A better message than the parser's for a verb that there isn't."""
    groups = {str(group.name): group.typer_instance for group in app.registered_groups}
    verbs = [_name(command) for command in app.registered_commands] + list(groups)
    _check_word(arguments[:1], verbs, "verb")
    if arguments[:1] and (group := groups.get(arguments[0])) is not None:
        _check_word(arguments[1:2], [_name(command) for command in group.registered_commands], f"'{arguments[0]}' verb")


def _check_word(word: list[str], known: list[str], kind: str) -> None:
    if word and not word[0].startswith("-") and word[0] not in known:
        raise UserError(f"there is no {kind} '{word[0]}'; {did_you_mean(word[0], known)}")


def _name(command: typer.models.CommandInfo) -> str:
    return command.name or (command.callback.__name__ if command.callback is not None else "")


def _explain(error: BaseException) -> tuple[str, int]:
    """What to say of an error, and the exit code."""
    if isinstance(error, SfumatoError):
        return (str(error) if error.exit_code == 75 else f"error: {error}"), error.exit_code
    if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
        return "stopped", 130
    if hasattr(error, "format_message"):  # the parser's usage errors
        said = error.format_message().rstrip(".")
        return (f"error: {said[:1].lower()}{said[1:]}; `sfumato --help` lists the options" if said else ""), 2
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower() or "can't allocate" in str(error):
        return "error: out of memory; lower batch= (train: or raise train.accumulate, or choose a smaller size=)", 1
    said = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    return f"error: {said}; run the command again with --debug to see where", 1
