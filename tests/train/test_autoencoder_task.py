"""An autoencoder's training: who learns from what, the equivariant treatment, resuming, and a score that it must reach."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sfumato.codecs import Latent
from sfumato.core import Batch, DataInfo, Draws
from sfumato.data import Digits
from sfumato.errors import Interrupted, UserError
from sfumato.nn import ConvAutoencoder, PatchCritic, Plain
from sfumato.nn.discriminator import hinge
from sfumato.recipes import load_recipe, trainer
from sfumato.spec import Spec
from sfumato.train import Silent
from sfumato.train.autoencoder_hooks import scores
from sfumato.train.autoencoder_task import AutoencoderTask, Reconstruction, treated
from sfumato.train.checkpoint import Checkpoints
from tests.train.test_resume import StopAt

INFO = DataInfo((3, 16, 16))


def task_of(adversarial: float = 0.5, *, shape: tuple[int, ...] = (3, 16, 16), **losses: Any) -> AutoencoderTask:
    torch.manual_seed(0)
    net = Spec(ConvAutoencoder, factor=4, channels=2, width=8, blocks=1, bottleneck=Spec(Plain))
    info = DataInfo(shape, "image" if len(shape) == 3 else "array")
    critic = PatchCritic(shape, width=8, layers=2) if adversarial else None
    task = AutoencoderTask(Latent(info, autoencoder=net), Reconstruction(adversarial=adversarial, **losses), critic)
    with torch.no_grad():
        for p in task.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return task


def batch_of(n: int = 4, shape: tuple[int, ...] = (3, 16, 16)) -> Batch:
    generator = torch.Generator().manual_seed(1)
    if len(shape) != 3:
        return Batch(torch.randn(n, *shape, generator=generator))
    return Batch(torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=generator))


def gradients(task: AutoencoderTask) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}


def test_one_backward_pass_gives_each_phase_its_own_gradient() -> None:
    task, batch = task_of(), batch_of()
    loss = task.loss(batch, Draws(0, 0, 4))
    loss.value.backward()
    ours = gradients(task)
    assert {id(p) for part in task.phases.values() for p in part} == {id(p) for p in task.parameters()}
    # The same by two separate backward passes, as it is usually written.
    task.zero_grad()
    net, critic = task.model.net, task.critic
    assert critic is not None
    x = task.model.field(batch.media)
    made = net.made(net.encode(x))
    direct = (made - x).abs().mean()
    against = -critic(made).mean()
    last: Any = net.last.weight  # type: ignore[union-attr]
    a, b = (torch.autograd.grad(v, last, retain_graph=True)[0].norm() for v in (direct, against))
    (direct + 0.5 * float(a / (b + 1e-6)) * against).backward(inputs=list(net.parameters()))
    hinge(critic(x), critic(made.detach())).mean().backward()
    usual = gradients(task)
    assert ours.keys() == usual.keys()
    for name, gradient in usual.items():
        assert torch.allclose(ours[name], gradient, rtol=1e-3, atol=1e-6 + 1e-4 * float(gradient.abs().max())), name
    assert float(loss.value.detach()) == pytest.approx(
        float(direct.detach()), rel=1e-5
    )  # what is logged is the reconstruction


def test_the_critic_begins_after_so_many_samples() -> None:
    task = task_of(after=100)
    task.loss(batch_of(), Draws(0, 96, 4)).value.backward()
    assert not any(gradient.any() for name, gradient in gradients(task).items() if name.startswith("critic"))
    task.loss(batch_of(), Draws(0, 100, 4)).value.backward()
    assert all(gradient.any() for name, gradient in gradients(task).items() if name.startswith("critic"))


@pytest.mark.parametrize("shape", [(2, 16), (3, 16, 16), (1, 8, 8, 8)])
def test_the_loss_in_two_halves_is_the_loss(shape: tuple[int, ...]) -> None:
    task, batch = task_of(shape=shape, equivariance=1.0, norm="l2"), batch_of(shape=shape)
    for start in (0, 4, 8):
        draws = Draws(3, start, 4)
        planned = task.plan(batch, draws)
        value, each = task.compute(planned.tensors)
        whole = task.loss(batch, draws)
        assert torch.equal(value, whole.value) and torch.equal(each, whole.per_sample)


def test_treatment_turns_latent_and_picture_alike_and_makes_both_smaller() -> None:
    x = torch.randn(2, 3, 8, 8)
    no, yes = torch.tensor([False]), torch.tensor([True])
    for flags in ([no, no, no], [yes, no, no], [no, yes, yes]):
        turn = torch.cat(flags)
        z, same = treated(x, x, turn, (8, 8), 1)
        axes = [2 + i for i in range(2) if turn[i]]
        exact = x.flip(axes) if axes else x
        exact = exact.transpose(2, 3) if turn[2] else exact
        assert torch.allclose(z, exact, atol=1e-6) and torch.allclose(same, exact, atol=1e-6)
    z, small = treated(torch.ones(1, 2, 4, 4), torch.ones(1, 3, 32, 32), torch.zeros(3, dtype=torch.bool), (2, 2), 8)
    assert torch.allclose(z, torch.ones(1, 2, 2, 2)) and torch.allclose(small, torch.ones(1, 3, 16, 16))


def test_noise_of_the_latent_has_a_share_of_its_channels_deviation(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: dict[float, list[Tensor]] = {0.0: [], 0.25: []}
    for noise, found in decoded.items():
        task = task_of(0.0, noise=noise)
        whole = task.model.net.made
        monkeypatch.setattr(task.model.net, "made", lambda z, whole=whole, found=found: (found.append(z), whole(z))[1])
        for _ in range(2):
            task.loss(batch_of(64), Draws(0, 0, 64))
    (clean, _), (first, again) = decoded[0.0], decoded[0.25]
    assert torch.equal(first, again)  # a function of the samples' numbers
    added = (first - clean).transpose(0, 1).flatten(1).std(1) / clean.transpose(0, 1).flatten(1).std(1)
    assert (added / 0.25 - 1).abs().max() < 0.08  # 1,024 numbers a channel


def test_settings_that_do_not_go_together() -> None:
    net = Spec(ConvAutoencoder, factor=4, width=8, blocks=1)
    with pytest.raises(UserError, match="needs a critic"):
        AutoencoderTask(Latent(INFO, autoencoder=net), Reconstruction(adversarial=0.1))
    wrong = (
        ({"equivariance": 2.0}, "share of the batches"),
        ({"after": -1}, "at least 0"),
        ({"noise": -0.1}, "at least 0"),
    )
    for settings, said in wrong:
        with pytest.raises(UserError, match=said):
            Reconstruction(**settings)  # type: ignore[arg-type]


def recipe_of(samples: int, **more: str) -> Any:
    asked = {
        "data": "digits", "factor": "2", "channels": "3", "adversarial": "0.1", "samples": str(samples), "batch": "32",
        "losses.after": "160", "width": "8", "train.evaluations": "2", "train.pictures": "1",
        "losses.equivariance": "0.3",
    }  # fmt: skip
    return load_recipe("ae", asked | more)


def test_an_interrupted_run_equals_one_that_was_not(tmp_path: Path) -> None:
    spec = recipe_of(320)
    trainer(spec, tmp_path / "whole", device="cpu", display=Silent()).fit()
    with pytest.raises(Interrupted):
        trainer(spec, tmp_path / "cut", device="cpu", display=StopAt(14)).fit()  # type: ignore[arg-type]
    trainer(spec, tmp_path / "cut", device="cpu", display=Silent()).fit()
    files = [Checkpoints(tmp_path / name / "checkpoints").all()[-1] for name in ("whole", "cut")]
    for name in ("weights", "ema", "optimizer"):
        a, b = (load_file(next(folder.glob(f"{name}*.safetensors"))) for folder in files)
        assert a.keys() == b.keys() and [k for k in a if not torch.equal(a[k], b[k])] == []


def test_it_learns_more_than_principal_components_of_its_kind_know(tmp_path: Path) -> None:
    """Beside the best linear code of patches of 2 x 2 into one number each, with twice the numbers and little training."""
    spec = recipe_of(
        4000, channels="2", adversarial="0", **{"losses.norm": "l2", "losses.equivariance": "0", "lr": "5e-3"}
    )
    made = trainer(spec, tmp_path / "run", device="cpu", display=Silent())
    made.fit()
    data = Digits().split("held_out")
    train = Digits().split("train")

    def patches(media: Tensor) -> np.ndarray:
        x = media.numpy().astype(np.float64).reshape(-1, 4, 2, 4, 2)
        return x.transpose(0, 1, 3, 2, 4).reshape(-1, 4)

    rows = patches(train.fetch(np.arange(len(train))).media)
    mean = rows.mean(0)
    _, _, axes = np.linalg.svd(rows - mean, full_matrices=False)
    real = patches(data.fetch(np.arange(len(data) * 64 // 64)).media)
    back = (real - mean) @ axes[:1].T @ axes[:1] + mean
    linear = 10 * np.log10(255**2 / np.square(back - real).mean())
    found = scores(made.ema.models[0], data, 64)
    assert found["psnr"] > linear + 2, (found, linear)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu_both_phases_are_recorded_and_learn_what_they_learn_unrecorded(tmp_path: Path) -> None:
    losses = {}
    for compiled in ("false", "true"):
        spec = recipe_of(1280, **{"train.compile": compiled, "train.log_every": "10", "losses.equivariance": "0"})
        made = trainer(spec, tmp_path / compiled, device="cuda", display=Silent())
        losses[compiled] = made.fit().loss
        codec = made.ema.models[0]
        assert isinstance(codec, Latent)
        media = Digits().fetch(range(32)).media
        half = codec.encode(media.cuda()).cpu()
        whole = codec.cpu().encode(media)
        assert (half - whole).abs().mean() < 0.05 * whole.std()
    assert losses["true"] == pytest.approx(losses["false"], rel=0.05)
