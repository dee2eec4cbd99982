"""Minutes of training until 95% of the samples show the digit that was asked for: ours and the peer's, one after the other.

Both train the U-Net of the row `cpu.train_step_8x8` (the same blocks and operations) on the same real digits,
conditioned on the label, in the same batches, without guidance, and are judged by the same classifier of real digits.
Each is used as its own documentation has it: ours with the settings of the recipe `digits`; the peer with the
discrete linear betas, noise prediction, its EMA and 50 DDIM steps, as in diffusers' training example, but for the
learning rate, `PEER_RATE` instead of the example's 1e-4, which is meant for days. That rate was not tuned, ours was
(by sweeps of the recipe): the row says what a user gets, not what the networks could do. A side that does not arrive
counts with the cap, so its ratio is a bound.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sfumato.codecs import Pixels
from sfumato.conditioners import Label
from sfumato.core import DenoisingLoss, Draws, Flow, LogitNormalTimes, NetDenoiser, SampleNoise, UniformGrid, Velocity
from sfumato.data import Digits
from sfumato.evaluate import Judge
from sfumato.nn import UNet
from sfumato.recipes.judges import train_judge
from sfumato.samplers import DPMpp2M, sample, start
from sfumato.train.ema import Ema

BATCH, EACH, GOAL = 64, 20, 0.95
PEER_RATE = 1e-3
CAP = 240.0  # seconds of training after which a side is said not to have arrived


class Side(ABC):
    """One contestant: a training step on whitened digits, and samples of given labels."""

    @abstractmethod
    def train(self, x0: Tensor, labels: Tensor, first: int) -> None:
        """One step; `first` is the number of the batch's first sample."""

    @abstractmethod
    def draw(self, labels: Tensor) -> Tensor:
        """Whitened samples (B, 1, 8, 8)."""


class Ours(Side):
    def __init__(self, width: int, mults: tuple[int, ...]) -> None:
        torch.manual_seed(0)
        self.label = Label(Digits().info, width=64)
        self.network = UNet((1, 8, 8), self.label.shape, width=width, mults=mults, attention=(1,), groups=4)
        self.denoiser = NetDenoiser(self.network, Flow(), Velocity())
        self.model = nn.ModuleDict({"denoiser": self.denoiser, "label": self.label})
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 3e-3, (0.9, 0.99), weight_decay=0.01, fused=True)
        self.ema, self.steps = Ema(self.model, (0.05,)), 0
        self.loss = DenoisingLoss(LogitNormalTimes())

    def train(self, x0: Tensor, labels: Tensor, first: int) -> None:
        cond = self.label({"label": labels})
        self.loss(self.denoiser, x0, cond, Draws(0, first, len(x0))).value.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1
        self.ema.update(self.steps)

    @torch.no_grad()
    def draw(self, labels: Tensor) -> Tensor:
        averaged = self.ema.models[0]
        times = UniformGrid()(Flow(), 12)
        x = start(Flow(), SampleNoise(tuple(range(len(labels)))).prior((1, 8, 8)), times[0])
        return sample(averaged["denoiser"], DPMpp2M(), x, times, averaged["label"]({"label": labels}))


class Peer(Side):
    def __init__(self, width: int, mults: tuple[int, ...], rate: float) -> None:
        from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
        from diffusers.training_utils import EMAModel

        torch.manual_seed(0)
        self.network = UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            block_out_channels=tuple(width * m for m in mults),
            layers_per_block=2,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=width,
            norm_num_groups=4,
            num_class_embeds=10,
        )
        self.noise = DDPMScheduler(1000)
        self.ddim = DDIMScheduler(1000, clip_sample=False, timestep_spacing="trailing")
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), rate, (0.95, 0.999), weight_decay=1e-6, fused=True
        )
        self.ema = EMAModel(self.network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
        self.generator = torch.Generator().manual_seed(0)

    def train(self, x0: Tensor, labels: Tensor, first: int) -> None:
        eps = torch.randn(x0.shape, generator=self.generator)
        k = torch.randint(0, 1000, (len(x0),), generator=self.generator)
        out = self.network(self.noise.add_noise(x0, eps, k), k, class_labels=labels, return_dict=False)[0]
        (out - eps).square().mean().backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.network.parameters())

    @torch.no_grad()
    def draw(self, labels: Tensor) -> Tensor:
        self.ema.store(self.network.parameters())
        self.ema.copy_to(self.network.parameters())
        self.ddim.set_timesteps(50)
        x = torch.randn(len(labels), 1, 8, 8, generator=torch.Generator().manual_seed(0))
        for k in self.ddim.timesteps:
            out = self.network(x, k, class_labels=labels, return_dict=False)[0]
            x = self.ddim.step(out, k, x, return_dict=False)[0]
        self.ema.restore(self.network.parameters())
        return x


def race(side: Side, codec: Pixels, judge: Judge, every: float = 15.0) -> dict[str, Any]:
    """Train until the goal is reached twice in a row, or the cap; seconds of training alone, looked at `every` seconds."""
    train = Digits().split("train")
    whole = train.fetch(np.arange(len(train)))
    x0, labels = codec.whiten(codec.encode(whole.media)), torch.as_tensor(whole.conditions["label"])
    asked = torch.arange(10).repeat_interleave(EACH)
    generator = torch.Generator().manual_seed(0)
    seconds, looked, first, curve = 0.0, 0.0, 0, []
    while seconds < CAP:
        rows = torch.randint(0, len(x0), (BATCH,), generator=generator)
        began = time.perf_counter()
        side.train(x0[rows], labels[rows], first)
        seconds += time.perf_counter() - began
        first += BATCH
        if seconds >= looked + every:
            looked = seconds
            shown = judge.predict(codec.decode(side.draw(asked)))
            curve.append((round(seconds, 1), float((shown == asked).double().mean())))
            if len(curve) > 1 and min(curve[-1][1], curve[-2][1]) >= GOAL:
                return {"seconds": curve[-2][0], "reached": True, "samples": first, "curve": curve}
    return {"seconds": CAP, "reached": False, "samples": first, "curve": curve}


def minutes_to_goal(width: int, mults: tuple[int, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(ours, the peer's) of `race`."""
    data = Digits()
    codec = Pixels(data.info)
    codec.measure([data.split("train").fetch(np.arange(len(data.split("train")))).media])
    judge = train_judge(data)
    return race(Ours(width, mults), codec, judge), race(Peer(width, mults, PEER_RATE), codec, judge)
