"""The optimizer against torch's own, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from sfumato.core import Draws
from sfumato.data import Loader
from sfumato.errors import UserError
from sfumato.train import Training
from sfumato.train.optim import AdamW, decays
from tests.train.tiny import TinyData, make_task, make_trainer


def flat(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def gradients(module: nn.Module, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    for p in module.parameters():
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return torch.zeros(())


@pytest.mark.parametrize("clip", [0.0, 1e6, 0.5])
def test_it_is_torchs_fused_adamw_bit_for_bit(clip: float) -> None:
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Linear(5, 7), nn.Embedding(4, 6))
    ours[0].to(memory_format=torch.channels_last)
    theirs = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Linear(5, 7), nn.Embedding(4, 6))
    theirs.load_state_dict(ours.state_dict())
    optimizer = AdamW(ours, Training(samples=1, clip=clip, weight_decay=0.1, betas=(0.9, 0.99)))
    weights = [theirs[0].weight, theirs[2].weight]
    others = [p for p in theirs.parameters() if all(p is not w for w in weights)]
    groups = [{"params": weights, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, betas=(0.9, 0.99), fused=True)
    for step in range(5):
        loss = gradients(ours, step)
        for p in ours.parameters():  # as autograd gives them: in the layout of the parameter
            p.grad = torch.empty_like(p).copy_(p.grad)
        gradients(theirs, step)
        if clip:
            torch.nn.utils.clip_grad_norm_(theirs.parameters(), clip)
        for group in reference.param_groups:
            group["lr"] = 1e-2 / (step + 1)
        optimizer.step(1e-2 / (step + 1), loss)
        reference.step()
    if clip == 0.5:  # torch divides by norm + 1e-6
        torch.testing.assert_close(flat(ours), flat(theirs), rtol=1e-5, atol=1e-7)
    else:
        assert torch.equal(flat(ours), flat(theirs))


def test_the_loop_is_adamw_with_clipping_written_out(tmp_path: Path) -> None:
    """Eight steps of a trainer against the formulas of algorithm 2, clipped by the global norm."""
    settings = {"samples": 128, "lr": 1e-2, "warmup": 0.25, "decay": 0.5, "weight_decay": 0.1, "clip": 0.05}
    task, reference, data = make_task().double(), make_task().double(), TinyData()
    make_trainer(tmp_path, task=task, data=data, **settings).fit()
    rates = [0.0025, 0.0075, 0.01, 0.01, 0.00875, 0.00625, 0.00375, 0.00125]
    live = list(reference.parameters())
    first, second = ([torch.zeros_like(p) for p in live] for _ in range(2))
    with Loader(data.split("train"), 16, 0) as loader:
        for step, rate in enumerate(rates, 1):
            numbers, batch = next(loader)
            loss = reference.loss(batch, Draws(0, int(numbers[0]), 16)).value
            found = torch.autograd.grad(loss, live)
            norm = torch.sqrt(sum(g.square().sum() for g in found))
            assert norm > 0.05
            with torch.no_grad():
                for p, m, v, g in zip(live, first, second, found):
                    shortened = g * 0.05 / norm
                    m.mul_(0.9).add_(shortened, alpha=0.1)
                    v.mul_(0.99).add_(shortened.square(), alpha=0.01)
                    p.mul_(1 - rate * 0.1 * (p.ndim == 2))
                    p -= rate * (m / (1 - 0.9**step)) / ((v / (1 - 0.99**step)).sqrt() + 1e-8)
    torch.testing.assert_close(flat(task), flat(reference), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(where: str) -> None:
    model = nn.Linear(3, 3)
    optimizer = AdamW(model, Training(samples=1))
    loss = gradients(model, 0)
    optimizer.step(1e-2, loss)
    before = flat(model), {k: v.clone() for k, v in optimizer.state().items()}
    gradients(model, 1)
    if where == "gradient":
        model.bias.grad[1] = torch.inf
    _, bad = optimizer.step(1e-2, torch.tensor(torch.nan if where == "loss" else 0.0))
    assert bad == 1
    assert torch.equal(flat(model), before[0])
    assert all(torch.equal(v, before[1][k]) for k, v in optimizer.state().items())
    gradients(model, 2)
    assert optimizer.step(1e-2, loss)[1] == 0
    assert optimizer.state()["count"] == 2


def test_the_kernels_flag_leaves_a_step_out_too() -> None:
    # What a GPU does: the flag is read by the kernel and not by Python.
    p, m, v = torch.ones(4), torch.zeros(4), torch.zeros(4)
    for flag in (1.0, 0.0):
        torch._fused_adamw_(
            [p], [torch.full((4,), torch.nan if flag else 1.0)], [m], [v], [], [torch.ones(())], lr=0.1, beta1=0.9,
            beta2=0.99, weight_decay=0.0, eps=1e-8, amsgrad=False, maximize=False, found_inf=torch.tensor(flag),
        )  # fmt: skip
        assert torch.equal(p, torch.ones(4)) == bool(flag)
    torch.testing.assert_close(p, torch.full((4,), 0.9))


def test_what_decays() -> None:
    assert decays(nn.Linear(2, 3), nn.Linear(2, 3).weight)
    assert decays(nn.Conv2d(2, 3, 3), nn.Conv2d(2, 3, 3).weight)
    assert not decays(nn.Linear(2, 3), nn.Linear(2, 3).bias)
    assert not decays(nn.LayerNorm(3), nn.LayerNorm(3).weight)
    assert not decays(nn.Embedding(4, 3), nn.Embedding(4, 3).weight)
    assert not decays(nn.Module(), torch.zeros(1, 8))  # a learned null token


def test_a_model_without_parameters_to_train_is_refused() -> None:
    with pytest.raises(UserError, match="nothing to train"):
        AdamW(make_task().requires_grad_(False), Training(samples=1))
