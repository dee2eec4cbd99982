"""Alignment of inner features: the term by hand, who learns from it, and grids that differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.codecs import Pixels
from sfumato.conditioners import Label
from sfumato.core import Batch, DataInfo, DenoisingLoss, Draws, Flow, NetDenoiser, Velocity
from sfumato.errors import UserError
from sfumato.evaluate.architectures import ConvJudge
from sfumato.evaluate.extractor import JudgeExtractor
from sfumato.model import Model
from sfumato.nn import DiT, MMDiT, UNet
from sfumato.recipes import load_recipe, prepare
from sfumato.spec import Spec
from sfumato.train import Align, Alignment, DiffusionTask
from sfumato.train.align import places, resampled

INFO = DataInfo((1, 8, 8), labels=("a", "b"))


def model(network: str = "dit") -> Model:
    torch.manual_seed(0)
    codec, label = Pixels(INFO), Label(INFO, width=8)
    made: Any = {
        "dit": lambda: DiT(codec.shape, label.shape, width=16, depth=4, heads=2),
        "unet": lambda: UNet(codec.shape, label.shape, width=8, mults=(1, 2), blocks=1),
        "mmdit": lambda: MMDiT(codec.shape, label.shape, width=16, depth=2, heads=2, single=2),
    }[network]()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return Model(NetDenoiser(made, Flow(), Velocity()), codec, label, INFO)


def batch(n: int = 4) -> tuple[Batch, Draws]:
    g = torch.Generator().manual_seed(1)
    media = torch.randint(0, 256, (n, 1, 8, 8), generator=g, dtype=torch.uint8)
    return Batch(media, {"label": torch.arange(n) % 2}), Draws(0, 0, n)


def judge(folder: Path) -> ConvJudge:
    torch.manual_seed(3)
    made = ConvJudge((1, 8, 8), ("a", "b"), width=4, features=8).eval()
    made.save(folder)
    return made


def outputs(task: DiffusionTask, numbers: list[int]) -> list[Tensor]:
    """What the blocks give in the pass of a loss, by hooks of the test's own."""
    found: dict[int, Tensor] = {}
    blocks: Any = task.model.denoiser.network.blocks
    handles = [blocks[i].register_forward_hook(lambda m, a, out, i=i: found.__setitem__(i, out)) for i in numbers]
    task.loss(*batch())
    for handle in handles:
        handle.remove()
    return [found[i] for i in numbers]


def test_the_term_is_the_cosine_between_two_blocks() -> None:
    """With P the identity, on a network whose blocks differ."""
    ours = model()
    align = Alignment(Align(block=0, target=2, weight=0.7), ours)
    align.project = nn.Sequential(nn.Linear(16, 16, bias=False))
    nn.init.eye_(align.project[0].weight)  # type: ignore[arg-type]
    plain = DiffusionTask(ours, DenoisingLoss()).loss(*batch())
    task = DiffusionTask(ours, DenoisingLoss(), align=align)
    loss = task.loss(*batch())
    h, y = outputs(task, [0, 2])
    want = 0.7 * (1 - (F.normalize(h, dim=-1) * F.normalize(y, dim=-1)).sum(-1).mean())
    torch.testing.assert_close(loss.value - plain.value, want, rtol=1e-4, atol=1e-5)
    assert torch.equal(loss.per_sample, plain.per_sample)


@pytest.mark.parametrize("network", ["dit", "mmdit", "unet"])
def test_only_the_earlier_block_learns_from_the_later_one(network: str) -> None:
    ours = model(network)
    align = Alignment(Align(), ours)
    blocks: Any = ours.denoiser.network.blocks
    assert align.target is not None and align.block < align.target
    media, draws = batch()
    with align.watch(blocks) as seen:
        DenoisingLoss()(ours.denoiser, ours.codec.whiten(ours.codec.encode(media.media)), _cond(ours, media), draws)
    align.loss(seen, media.media, getattr(ours.denoiser.network, "patch", None)).backward()
    touched = [any(p.grad is not None and bool(p.grad.any()) for p in block.parameters()) for block in blocks]
    assert touched[align.block] and not any(touched[align.block + 1 :])
    assert all(p.grad is not None and bool(p.grad.any()) for p in align.project.parameters())


def _cond(ours: Model, media: Batch) -> Any:
    return ours.condition(media.conditions)


def test_an_encoder_of_the_users_own(tmp_path: Path) -> None:
    """A judge's coarsest map, laid over the network's grid; its weights are in no state."""
    seer = judge(tmp_path / "judge")
    ours = model()
    align = Alignment(Align(teacher=str(tmp_path / "judge")), ours)
    assert {name.split(".")[0] for name in align.state_dict()} == {"project"}
    media, draws = batch()
    task = DiffusionTask(ours, DenoisingLoss(), align=align)
    plain = DiffusionTask(ours, DenoisingLoss()).loss(media, draws).value
    got = task.loss(media, draws).value - plain
    (h,) = outputs(task, [align.block])
    maps = seer.maps(media.media.float())[-1].detach()
    assert maps.shape[2:] == (4, 4)  # that of the patches, so that nothing is resampled
    y = maps.flatten(2).mT
    want = 0.5 * (1 - F.cosine_similarity(align.project(h), y, dim=-1).mean())
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert JudgeExtractor(seer).maps(media.media).equal(maps)


def test_places_of_patches_and_of_fields() -> None:
    tokens = torch.randn(2, 5 + 12, 7)
    flat, grid = places(tokens, (7, 6), (2, 2))
    assert grid == (4, 3) and torch.equal(flat, tokens[:, 5:])
    field = torch.randn(2, 7, 1, 9)
    flat, grid = places(field, (18,), None)  # a 1-D field inside a U-Net
    assert grid == (9,) and torch.equal(flat, field[:, :, 0].mT)


def test_resampling_keeps_means_and_ramps() -> None:
    """A ramp: means of pairs on the way down, and up again a ramp inside its ends; a constant stays."""
    ramp = torch.arange(8.0)[None, :, None]
    down = resampled(ramp, (8,), (4,))
    assert down[0, :, 0].tolist() == [0.5, 2.5, 4.5, 6.5]
    up = resampled(down, (4,), (8,))
    torch.testing.assert_close(up[0, 1:-1], ramp[0, 1:-1])
    both = resampled(torch.full((1, 8, 3), 2.0), (2, 4), (4, 2))
    assert both.shape == (1, 8, 3) and bool((both == 2).all())
    square = torch.arange(16.0)[None, :, None]
    assert resampled(square, (4, 4), (2, 2))[0, :, 0].tolist() == [2.5, 4.5, 10.5, 12.5]


def test_a_recipe_trains_with_it_and_the_model_is_as_without() -> None:
    spec = load_recipe("shapes", {"data.count": "60", "align": "repa", "network.width": "8"})
    assert isinstance(spec, Spec)
    prepared: Any = prepare(spec)
    with_it = prepared.task
    without: Any = prepare(load_recipe("shapes", {"data.count": "60", "network.width": "8"})).task
    assert not with_it.separable and without.separable
    ours, theirs = with_it.model.state_dict(), without.model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    optimizer = torch.optim.SGD(with_it.parameters(), lr=0.1)
    data = prepared.data.split("train")
    for step in range(3):
        optimizer.zero_grad()
        with_it.loss(data.fetch([2 * step, 2 * step + 1]), Draws(0, 2 * step, 2)).value.backward()
        optimizer.step()
    assert all(bool(p.grad.any()) for p in with_it.align.parameters())


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: Align(weight=0.0), "weight = 0.0 must be above 0"),
        (lambda: Align(teacher="dinov2:x", target=2), "target = 2 is a block of teacher=self"),
        (lambda: Alignment(Align(block=4), model()), "block = 4: the network has blocks 0 to 3"),
        (lambda: Alignment(Align(target=7), model()), "target = 7: the network has blocks 0 to 3"),
        (lambda: Alignment(Align(block=2, target=1), model()), "target = 1 must be a block after block = 2"),
        (lambda: Alignment(Align(teacher="/no/such"), model()), "no judge in this folder"),
    ],
)
def test_refused(build: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        build()


def test_a_teacher_of_pictures_sees_no_latents(tmp_path: Path) -> None:
    judge(tmp_path / "judge")
    align = Alignment(Align(teacher=str(tmp_path / "judge")), model())
    assert align.teacher is not None
    with pytest.raises(UserError, match=r"sees pictures.*use align\.teacher=self"):
        align.teacher.maps(torch.randn(2, 4, 8, 8))
