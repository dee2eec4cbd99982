"""What `test_sequence.py` starts as several processes: networks and trainings whose samples' tokens they share."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sfumato.codecs import Arrays
from sfumato.core import Batch, Cond, CondShape, DataInfo, DenoisingLoss, Flow, NetDenoiser, Velocity
from sfumato.data import Data
from sfumato.model import Model
from sfumato.nn import DiT, MMDiT
from sfumato.nn.split import TokenNetwork, share_tokens
from sfumato.train import DiffusionTask, Hook, Moment
from sfumato.train.checkpoint import weights
from sfumato.train.sequence import Neighbours
from tests.train.tiny import make_trainer

RANK = int(os.environ.get("RANK", "0"))
BATCH = 8
SMALL: dict[str, Any] = {"width": 32, "depth": 2, "heads": 4}
WORDS = CondShape(vector=3, tokens=6, concat=1)

# name: network, shape of a sample, condition, settings. No number of tokens but the first is a multiple of 2.
CASES: dict[str, tuple[type[TokenNetwork], tuple[int, ...], CondShape, dict[str, Any]]] = {
    "dit": (DiT, (2, 8, 8), CondShape(), {}),
    "dit odd": (DiT, (2, 10, 6), CondShape(), {"qk_norm": False}),
    "dit one token": (DiT, (2, 2), CondShape(), {}),
    "dit crossed": (DiT, (2, 9), WORDS, {"absolute": False}),
    "dit 3-D": (DiT, (1, 5, 6, 5), CondShape(vector=3), {"rotary": False}),
    "mmdit": (MMDiT, (2, 10, 6), WORDS, {}),
    "mmdit plain": (MMDiT, (2, 9), CondShape(), {"single": 1}),
    "mmdit single": (MMDiT, (2, 10, 6), WORDS, {"single": 2, "qk_norm": False}),
}


def asked(shape: tuple[int, ...], cond: CondShape, words: int = 5) -> tuple[Tensor, Tensor, Cond]:
    """The same on every process; of the second sample two words are masked out, of the third all."""
    g = torch.Generator().manual_seed(1)

    def normal(*size: int) -> Tensor:
        return torch.randn(3, *size, generator=g, dtype=torch.float64).requires_grad_()

    mask = torch.arange(words) < torch.tensor([[words], [words - 2], [0]])
    given = Cond(
        normal(cond.vector) if cond.vector else None,
        normal(words, cond.tokens) if cond.tokens else None,
        mask if cond.tokens else None,
        normal(cond.concat, *shape[1:]) if cond.concat else None,
    )
    return normal(*shape), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), given


def one_pass(network: nn.Module, given: tuple[Tensor, Tensor, Cond], **more: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The output, and gradients of a function of it to all weights and inputs."""
    x, noise, cond = given
    leaves = {"x": x, "vector": cond.vector, "tokens": cond.tokens, "concat": cond.concat}
    named = {**dict(network.named_parameters()), **{k: v for k, v in leaves.items() if v is not None}}
    out = network(x, noise, cond, **more)
    target = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=out.dtype)
    found = torch.autograd.grad((out - target).square().mean(), list(named.values()), allow_unused=True)
    assert any(g is not None for g in found)
    return out.detach(), {k: torch.zeros_like(v) if g is None else g for (k, v), g in zip(named.items(), found)}


def made(case: str) -> TokenNetwork:
    kind, shape, cond, settings = CASES[case]
    torch.manual_seed(0)
    network = kind(shape, cond, **{**SMALL, **settings}).double()  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return network


def compared(case: str, group: Neighbours, **more: Any) -> dict[str, float]:
    """How far a pass of all processes is from one of this process alone, relative to the largest number."""
    network, given = made(case), asked(*CASES[case][1:3])
    out, gradients = one_pass(network, given, **more)
    with share_tokens(network, group):
        ours, each = one_pass(network, given, **more)
    far = {"output": apart(ours, out)}
    scale = max(float(g.abs().max()) for g in gradients.values())
    for name, gradient in each.items():
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        far[name] = float((gradient / group.size - gradients[name]).abs().max()) / scale
    assert network.token_group is None
    worst = max(far, key=lambda name: far[name])
    return {"output": far["output"], worst: far[worst]}


def apart(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def kept(network: TokenNetwork, x: Tensor) -> int:
    """Bytes that a pass keeps for its backward pass, weights aside."""
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    found: dict[int, int] = {}

    def note(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        out = network(x, torch.full((len(x),), 0.5, dtype=torch.float64))
    assert out.requires_grad
    return sum(found.values())


def shares(group: Neighbours) -> float:
    """What is kept of a pass that is shared, over what is kept of one that is not."""
    network = DiT((2, 32, 32), CondShape(), **SMALL)
    x = torch.zeros(2, 2, 32, 32)
    alone = kept(network, x)
    with share_tokens(network, group):
        return kept(network, x) / alone


def half(group: Neighbours) -> float:
    """How far the outputs are apart in bfloat16."""
    network, (x, noise, cond) = made("mmdit single").float(), asked(*CASES["mmdit single"][1:3])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        alone = network(x, noise, cond)
        with share_tokens(network, group):
            return apart(network(x, noise, cond), alone)


# ---------------------------------------------------------------- trainings


@final
class Waves(Data, name="waves-for-tests"):
    """Fields (2, 9), five patches of two. every: each such item can't be read."""

    def __init__(self, every: int = 0) -> None:
        self.every = every
        self.x = np.random.default_rng(0).normal(size=(256, 2, 9)).astype(np.float32).cumsum(-1)

    @property
    def info(self) -> DataInfo:
        return DataInfo((2, 9), "array")

    def __len__(self) -> int:
        return len(self.x)

    @property
    def broken_share(self) -> float:
        return 0.2

    def fetch(self, indices: Any, draws: Any = None) -> Batch:
        return Batch(torch.from_numpy(self.x[np.asarray(indices)]))

    def unreadable(self, indices: Any = None) -> dict[int, str]:
        asked = range(len(self)) if indices is None else np.asarray(indices).tolist()
        return {i: f"item {i}" for i in sorted(set(asked)) if self.every and i % self.every == 0}

    def held_out_mask(self) -> Any:
        return np.arange(len(self)) % 8 == 0

    def fingerprint(self) -> str:
        return "waves"


class Look(Hook):
    """Uses the averaged model on the main process alone, as evaluation and pictures do; the live one where it is whole."""

    times = 2

    def __init__(self, live: bool) -> None:
        self.live = live

    def __call__(self, moment: Moment) -> Mapping[str, Any]:
        x, t = torch.ones(1, 2, 9), torch.tensor([0.5], dtype=torch.float64)
        with torch.no_grad():
            models: list[Any] = [moment.model, *([moment.task.model] if self.live else [])]
            return {f"look{i}": float(model.denoiser(x, t).square().mean()) for i, model in enumerate(models)}


def make_task(kind: str) -> DiffusionTask:
    torch.manual_seed(0)
    network = {"dit": DiT, "mmdit": MMDiT}[kind]((2, 9), CondShape(), **SMALL)
    info = Waves().info
    return DiffusionTask(Model(NetDenoiser(network, Flow(), Velocity()), Arrays(info), None, info), DenoisingLoss())


def train(folder: Path, kind: str = "dit", every: int = 0, **settings: Any) -> dict[str, Any]:
    """Ten steps, if the settings do not say otherwise. Returns what is logged, and leaves the weights in a file."""
    folder.mkdir(parents=True, exist_ok=True)
    usual = {"samples": 10 * BATCH, "batch": BATCH, "warmup": 0.0, "decay": 0.0, "log_every": 2}
    task, data = make_task(kind), Waves(every)
    trainer = make_trainer(
        folder, task=task, data=data, hooks=[Look("parallel" not in settings)], **{**usual, **settings}
    )
    trainer.fit()
    whole = trainer.parallel.whole(weights(trainer.task))
    if trainer.parallel.main:
        torch.save({k: v.clone() for k, v in whole.items()}, folder / "weights.pt")
    return {"step": trainer.pace.step, "replaced": trainer.tally.total.state(), "micro": trainer.micro}


def main() -> int:
    """Arguments: a folder, and JSON of {folder's name: settings of a training}. Networks are compared by all processes."""
    torch.set_num_threads(1)
    root, trainings = Path(sys.argv[1]), json.loads(sys.argv[2])
    dist.init_process_group("gloo")
    group = Neighbours(dist.get_world_size())
    far = {case: compared(case, group) for case in CASES}
    far |= {
        f"{case}, identity": compared(case, group, identity={0}) for case in ("dit crossed", "mmdit", "mmdit single")
    }
    found: dict[str, Any] = {"far": far}
    found |= {"shares": shares(group), "half": half(group)}
    for name, settings in trainings.items():
        found[name] = train(root / name, **settings)
    (root / f"seen-{RANK}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
