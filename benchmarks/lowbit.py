"""Low-bit weights against bfloat16: time, memory, and what they cost in quality, all in one run.

    python -m benchmarks.lowbit [--only forward train model] [--kinds int8 int8-dynamic fp8 fp8-tensor]
                                [--recipes rowwise tensorwise] [--model FOLDER [--data DATA]] [--n 64] [--quick]
                                [--json FILE] [--write] [--device cuda|cpu]

* forward.bN.KIND: a guided forward of DiT-XL/2 of N samples, what was asked and "any class" in one pass; ms. Recorded as
  a pipeline has it, with and without compiled blocks: the quicker of each side counts, both are in the settings.
* memory.KIND: bytes of all weights; MB. error.KIND: of the network's output against float32, relative; the peer is
  bfloat16's own. Weights are random, so this is the rounding of a network that nobody trained.
* train.bN.RECIPE: loss and gradients of the same network with compiled blocks, its large linear layers in fp8; ms. The
  error of the gradient against bfloat16's is in the settings.
* model.sample.KIND, model.loss.KIND, of a trained model (`--model`, a run or model folder): how far whole samples in 20
  steps are from those in float32, in deviations of the data (root of the mean square; the peer is bfloat16's own), and the
  held-out loss (the peer is float32's). This is the cost in quality.

The peer is the same network in bfloat16, on a CPU in float32. On a CPU the DiT is tiny: to see that it runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import _ours
from benchmarks._gpu import GUIDANCE, SHAPES, Figure, Plan, Work, measure, sizes
from benchmarks._table import RESULTS, Row, machine, show, versions, write
from sfumato.core import Cond, DiscreteVP, Eps, NetDenoiser, Network
from sfumato.data import Data, open_data
from sfumato.evaluate import held_out_loss
from sfumato.evaluate.features import asked_by
from sfumato.guidance import ClassifierFree
from sfumato.nn import DiT
from sfumato.nn.captured import Captured
from sfumato.nn.lowbit import Lowered, fp8_training, lowbit, weight_bytes
from sfumato.nn.recompute import compile_blocks
from sfumato.pipeline import Pipeline
from sfumato.recipes import load_recipe

KINDS: dict[str, tuple[str, Any]] = {
    "int8": ("int8", "row"),
    "int8-dynamic": ("int8-dynamic", "row"),
    "fp8": ("fp8", "row"),
    "fp8-tensor": ("fp8", "tensor"),
}
RECIPES = ("rowwise", "tensorwise")
BATCHES, TRAIN_BATCH, STEPS = (1, 32), 64, 20


@dataclass(frozen=True)
class Side:
    """A DiT with the condition of a class and of none. low: what was changed, None for the peer."""

    network: Network
    asked: Tensor
    null: Tensor
    low: Lowered | None


def plain_type(device: torch.device) -> torch.dtype:
    """What a network without low-bit weights computes in."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def side(device: torch.device, kind: str | None, dtype: torch.dtype | None = None) -> Side:
    """The benchmark's DiT with the same random weights every time. No gate or head is zero: all of it matters."""
    torch.manual_seed(0)
    with device:
        network, label = _ours.networks("dit", sizes(device))
    assert label is not None and isinstance(network, DiT)
    for module in (network.modulation, network.head):
        nn.init.normal_(module.weight, std=module.in_features**-0.5)
    nn.ModuleList([network, label]).to(plain_type(device) if dtype is None else dtype).eval()
    with torch.no_grad():
        conds = label({"label": torch.zeros(1, dtype=torch.int64, device=device)}), label.null(1)
    asked, null = (cond.vector for cond in conds)
    assert asked is not None and null is not None
    low = None if kind is None else lowbit(network, KINDS[kind][0], scales=KINDS[kind][1])
    return Side(network, asked, null, low)


def forward_work(batch: int, device: torch.device, kind: str | None, compiled: bool) -> Work:
    """A guided estimate, as a pipeline makes it."""
    made = side(device, kind)
    recorded = Captured(made.network, compiled=compiled)
    denoiser = NetDenoiser(recorded, DiscreteVP("linear"), Eps(), learned_variance=True).eval()
    asked, null = (Cond(vector=v.expand(batch, -1).contiguous()) for v in (made.asked, made.null))
    guided = ClassifierFree(GUIDANCE).wrap(denoiser, null)
    x_t = torch.randn(batch, *SHAPES["dit"], device=device)
    t = torch.full((batch,), 0.5, dtype=torch.float64)

    def run() -> Tensor:
        with torch.no_grad():
            return guided(x_t, t, asked)

    return Work(run, batch, 0.0, denoiser, "compiled blocks" if compiled else "as written")


def train_work(batch: int, device: torch.device, recipe: str | None, least: int) -> Work:
    """Loss and gradients of a network whose weights are of the plain type, as those of a recorded step are."""
    made = side(device, None)
    network, changed = made.network.train(), 0
    if recipe is not None:
        changed = fp8_training(network, recipe=recipe, least=least)  # type: ignore[arg-type]
    if device.type == "cuda":
        compile_blocks(network, dynamic=False)
    x = torch.randn(batch, *SHAPES["dit"], device=device)
    noise, asked = torch.linspace(0.1, 0.9, batch, device=device), Cond(vector=made.asked.expand(batch, -1))

    def run() -> None:
        network.zero_grad()
        network(x, noise, asked).float().square().mean().backward()

    return Work(run, batch, 0.0, network, f"{changed} layers in fp8")


# ---------------------------------------------------------------- rows


@dataclass
class Bench:
    """What all parts share, and the rows so far."""

    device: torch.device
    plan: Plan
    rows: list[Row]

    def row(self, case: str, ours: float, peer: float, unit: str, /, **settings: Any) -> None:
        """Add a row and print it."""
        gpu = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else None
        about = machine(gpu=gpu, cuda=torch.version.cuda, threads=torch.get_num_threads())
        self.rows.append(
            Row(case, ours, peer, unit, None, about, versions("sfumato", "torchao", "triton", "numpy"), settings)
        )
        print(f"  {case:<32}{ours:>12.5g}{peer:>12.5g} {unit:<6} {ours / peer:.3f}", flush=True)

    def attempt(self, what: str, do: Callable[[], None]) -> None:
        """One that this machine can't is said, and the others go on."""
        try:
            do()
        except Exception as error:
            print(f"  {what}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}", flush=True)


def forwards(bench: Bench, kinds: list[str]) -> None:
    """Time of a guided forward, the quicker of recorded as written and recorded with compiled blocks."""
    ways = {"recorded": False, "recorded, compiled": True} if bench.device.type == "cuda" else {"as written": False}
    for batch in BATCHES if bench.device.type == "cuda" else (1, 2):

        def measured(kind: str | None, batch: int = batch) -> dict[str, Figure]:
            found = {}

            def one(way: str, compiled: bool) -> None:
                made = measure(partial(forward_work, batch, bench.device, kind, compiled), bench.device, bench.plan)
                found[way] = made
                print(f"    {kind or 'peer'}, {way}: {1000 * made.seconds:.3f} ms, {made.peak_gib:.2f} GiB", flush=True)

            for way, compiled in ways.items():
                if kind == "int8-dynamic" and way == "recorded":
                    continue  # needs compiled blocks
                bench.attempt(f"{kind or 'peer'}, {way}", partial(one, way, compiled))
            return found

        peer = measured(None)

        def compare(kind: str, batch: int = batch, peer: Mapping[str, Figure] = peer) -> None:
            ours = measured(kind)
            if not ours or not peer:
                return  # said already
            mine, theirs = (1000 * min(f.seconds for f in figures.values()) for figures in (ours, peer))
            both = {name: {k: f.to_dict() for k, f in side.items()} for name, side in (("ours", ours), ("peer", peer))}
            bench.row(f"lowbit.forward.b{batch}.{kind}", mine, theirs, "ms", **both)

        for kind in kinds:
            bench.attempt(f"forward.b{batch}.{kind}", partial(compare, kind))


def errors(bench: Bench, kinds: list[str]) -> None:
    """Memory of the weights and the error of one output, against float32 and against the plain type."""
    x = torch.randn(4, *SHAPES["dit"], generator=torch.Generator().manual_seed(1)).to(bench.device)
    noise = torch.linspace(0.1, 0.9, 4, device=bench.device)

    @torch.no_grad()
    def out(made: Side) -> Tensor:
        result: Tensor = made.network(x, noise, Cond(vector=made.asked.expand(4, -1))).double().cpu()
        return result

    exact = out(side(bench.device, None, torch.float32))
    made = side(bench.device, None, torch.bfloat16)
    half = out(made)
    made = side(bench.device, None)
    size = weight_bytes(made.network)
    del made

    def compare(kind: str) -> None:
        ours = side(bench.device, kind)
        found, low = out(ours), ours.low
        assert low is not None
        bench.row(f"lowbit.memory.{kind}", low.after / 1e6, size / 1e6, "MB", layers=low.layers, of=low.of)
        against_half = relative(found, half)
        bench.row(
            f"lowbit.error.{kind}", relative(found, exact), relative(half, exact), "rel", against_bf16=against_half
        )

    for kind in kinds:
        bench.attempt(f"error.{kind}", partial(compare, kind))


def training(bench: Bench, recipes: list[str]) -> None:
    """Time of loss and gradients, and how far the gradient is from the peer's."""
    cuda = bench.device.type == "cuda"
    batch, least = (TRAIN_BATCH, 1024) if cuda else (2, 16)

    def gradient(recipe: str | None) -> Tensor:
        work = train_work(min(batch, 8), bench.device, recipe, least)
        torch.manual_seed(2)
        work.run()
        return torch.cat([p.grad.flatten().float() for p in work.network.parameters() if p.grad is not None]).cpu()

    peer = measure(lambda: train_work(batch, bench.device, None, least), bench.device, bench.plan)
    exact = gradient(None)

    def compare(recipe: str) -> None:
        ours = measure(lambda: train_work(batch, bench.device, recipe, least), bench.device, bench.plan)
        more = {"gradient_error": relative(gradient(recipe), exact), "ours": ours.to_dict(), "peer": peer.to_dict()}
        bench.row(f"lowbit.train.b{batch}.{recipe}", 1000 * ours.seconds, 1000 * peer.seconds, "ms", **more)

    for recipe in recipes:
        bench.attempt(f"train.{recipe}", partial(compare, recipe))


def quality(bench: Bench, kinds: list[str], folder: Path, data: Data | None, n: int) -> None:
    """Whole samples and the held-out loss of a trained model: float32, the plain type, and each kind."""
    exact = Pipeline.from_pretrained(folder).to(bench.device)
    conditioner = exact.model.conditioner
    asked = asked_by(data.split("train"), conditioner.columns, n, 0) if data and conditioner else {"n": n}
    held_out = None if data is None else data.split("held_out")

    def outcome(pipeline: Pipeline) -> tuple[Tensor, float | None]:
        loss = None if held_out is None else held_out_loss(pipeline.model, held_out, n=max(8 * n, 512)).loss
        return samples(pipeline, asked, n), loss

    x0, loss = outcome(exact)
    half, half_loss = outcome(Pipeline.from_pretrained(folder).to(bench.device, torch.bfloat16))

    def compare(kind: str) -> None:
        pipeline = Pipeline.from_pretrained(folder).to(bench.device, plain_type(bench.device))
        low = lowbit(pipeline.model.denoiser.network, KINDS[kind][0], scales=KINDS[kind][1])
        ours, ours_loss = outcome(pipeline)
        about = {"model": folder.name, "n": n, "steps": STEPS, "asked_by": sorted(asked), "changed": str(low)}
        mine, theirs = (float((other - x0).square().mean().sqrt()) for other in (ours, half))
        bench.row(f"lowbit.model.sample.{kind}", mine, theirs, "dev", **about)
        if ours_loss is not None and loss is not None:
            bench.row(f"lowbit.model.loss.{kind}", ours_loss, loss, "loss", **about, bf16=half_loss)

    for kind in kinds:
        bench.attempt(f"model.{kind}", partial(compare, kind))


def samples(pipeline: Pipeline, asked: Mapping[str, Any], n: int) -> Tensor:
    """x0 (n, *S) of whole walks, float64 on the CPU. Seeds are 0 ... n - 1, so two models start from the same noise."""
    kept: list[Tensor] = []

    def keep(_: Pipeline, number: int, t: Tensor, parts: dict[str, Tensor]) -> None:
        if number == STEPS - 1:
            kept.append(parts["x"].double().cpu())

    plan = pipeline.plan(**asked, num_inference_steps=STEPS)
    for _ in pipeline.run(plan, batch_size=n, callback_on_step_end=keep):
        pass
    return torch.cat(kept)[:n]


def relative(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|."""
    return float((a - b).norm() / b.norm())


def _data(folder: Path, asked: str | None) -> Data | None:
    """The data asked for, or that of the run; none if a model folder does not say."""
    if asked is not None:
        return open_data(asked).build()
    if (folder / "recipe.yaml").is_file():
        built: Data = load_recipe(folder).data.build()
        return built
    return None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lowbit", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=("forward", "error", "train", "model"), help="leave others out")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--model", type=Path, help="a trained model or run")
    parser.add_argument("--data", help="its data, if not as the run's recipe says")
    parser.add_argument("--n", type=int, default=64, help="samples of the trained model")
    parser.add_argument("--quick", action="store_true", help="3 rounds of 3 steps: the order of magnitude")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--write", action="store_true", help="write the rows to results/lowbit.json")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a tiny DiT, to see that it runs"
    )
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here; --device cpu runs a tiny DiT, to see that it runs")
    parts = options.only or ("forward", "error", "train", "model")
    plan = Plan(3, 3, 3) if options.quick else Plan()
    bench = Bench(torch.device(options.device), plan if options.device == "cuda" else Plan(3, 3, 1), [])
    todo: dict[str, Callable[[], None]] = {
        "forward": lambda: forwards(bench, options.kinds),
        "error": lambda: errors(bench, options.kinds),
        "train": lambda: training(bench, options.recipes),
        "model": lambda: quality(
            bench, options.kinds, options.model, _data(options.model, options.data), options.n
        ),
    }  # fmt: skip
    for name in [p for p in parts if p != "model" or options.model is not None]:
        print(f"{name}: ours, peer, ratio", flush=True)
        bench.attempt(name, todo[name])
        for file in (options.json, RESULTS / "lowbit.json" if options.write else None):
            if file is not None:  # after every part: what is cut short keeps what it has
                write(bench.rows, file)
    show(bench.rows)


if __name__ == "__main__":
    main()
