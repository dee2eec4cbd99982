"""A host that is many steps ahead of the GPU gives every step its own batch, and every step of a walk its own noise."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sfumato.codecs import Mel
from sfumato.codecs import Voxels as VoxelCodec
from sfumato.conditioners import Text
from sfumato.core import DenoisingLoss, Draws, Flow, LogisticGrid, NetDenoiser, SampleNoise, Velocity
from sfumato.data import Data, Solids, Tones
from sfumato.model import Model
from sfumato.nn import UNet
from sfumato.nn.captured import Captured
from sfumato.samplers import Ancestral, DPMpp2M, ExpAdams, Solver, sample, start
from sfumato.train import DiffusionTask, Training
from sfumato.train.ema import Ema
from sfumato.train.step import GraphStep, PlainStep, Step, choose_step

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
BATCH, STEPS = 64, 40
DATA: dict[str, Data] = {"sounds": Tones(count=512), "solids": Solids(count=512)}


def _task(data: Data, device: str) -> DiffusionTask:
    """An untrained model whose answer depends on everything it is given: no weight is zero."""
    torch.manual_seed(0)
    info = data.info
    codec = Mel(info, bands=32) if info.kind == "audio" else VoxelCodec(info, fold=2)
    codec.measure([data.fetch(np.arange(128)).media])
    text = Text(info, width=32, depth=1, heads=2, buckets=256)
    network = UNet(codec.shape, text.shape, width=32, mults=(1, 2), blocks=1, attention=(1,))
    task = DiffusionTask(Model(NetDenoiser(network, Flow(), Velocity()), codec, text, info), DenoisingLoss())
    for p in network.parameters():
        if p.ndim > 1:
            nn.init.normal_(p, std=p[0].numel() ** -0.5)
    network.embed.vector.weight.data *= 50  # captions are told apart
    return task.to(device)


def _step(task: DiffusionTask, data: Data, record: bool) -> Step:
    settings = Training(samples=1, batch=BATCH)
    optimizer, ema = settings.optimizer.build(task, settings), Ema[nn.Module](task.model, settings.ema)
    micro = (data.fetch(np.arange(BATCH)), Draws(3, 0, BATCH))
    half = torch.bfloat16
    return choose_step(task, optimizer, ema, half, lambda _: None, record=record, micro=micro, count=1, say=print)


def losses(step: Step, data: Data, order: list[int]) -> Tensor:
    """The loss of every sample of so many steps that change nothing, none of which is waited for. (steps, B)."""
    micros = [(data.fetch(np.arange(BATCH) + k * 7), Draws(3, k * BATCH, BATCH)) for k in order]
    if torch.cuda.is_available():
        torch.cuda._sleep(2_000_000_000)  # a second in which the host runs ahead
    return torch.stack([step([micro], 0.0, 1).parts[0].per_sample for micro in micros]).float().cpu()


@GPU
@pytest.mark.parametrize("kind", list(DATA))
def test_a_recorded_step_reads_its_own_batch(kind: str) -> None:
    data, order = DATA[kind], list(range(STEPS))
    task = _task(data, "cuda")
    steps = [_step(copy.deepcopy(task), data, record) for record in (True, False)]
    assert [type(step) for step in steps] == [GraphStep, PlainStep]
    ours, theirs = (losses(step, data, order) for step in steps)
    other = losses(steps[1], data, order[1:] + order[:1])
    assert (theirs - other).abs().mean() > 0.1 * theirs.mean()  # another batch would be seen
    assert (ours - theirs).abs().mean() < 0.005 * theirs.mean()  # another caption alone: 0.009 and more
    assert (ours - theirs).abs().max() < 0.1 * theirs.mean()


def walked(solver: Solver, device: str) -> Tensor:
    """x0 of 256 samples by twelve steps, on the CPU."""
    data = DATA["sounds"]
    model = _task(data, device).model.eval()
    asked = [str(c) for c in data.columns(np.arange(256))["caption"]]
    denoiser = model.denoiser.through(Captured(model.denoiser.network)) if device == "cuda" else model.denoiser
    process, noise = model.denoiser.process, SampleNoise(tuple(range(256)))
    times = LogisticGrid()(process, 12)
    with torch.no_grad():
        cond = model.condition({"caption": asked})
        x = start(process, noise.prior(model.codec.shape, device=model.device), times[0])
        return sample(denoiser, solver, x, times, cond, noise=noise).cpu()


@GPU
@pytest.mark.parametrize("solver", [ExpAdams(), DPMpp2M(eta=0.5), Ancestral()], ids=repr)
def test_a_walk_on_a_gpu_is_that_on_the_cpu(solver: Solver, monkeypatch: pytest.MonkeyPatch) -> None:
    for backend in (torch.backends.cudnn, torch.backends.cuda.matmul):
        monkeypatch.setattr(backend, "allow_tf32", False)
    ours, theirs = walked(solver, "cuda"), walked(solver, "cpu")
    assert (ours - theirs).norm() < 1e-3 * theirs.norm()
