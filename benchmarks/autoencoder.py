"""Our autoencoder beside the architecture of diffusers' AutoencoderKL, trained for the same minutes on the same pictures.

    python -m benchmarks.autoencoder DATA [--minutes 2] [--only f8 f4] [--perceptual FOLDER] [--adversarial 0.1 | 0]
                                     [--keep FOLDER] [--json FILE] [--write] [--tiny] [--device cuda|cpu]

DATA: a .npz or .npy file, a .tar, anything that data= takes; both sides see its training part and are scored on all of the
held-out one, with averaged weights, in bfloat16 on a GPU. Perceptual features are those of a judge, the same for both, which
is trained on the data's labels first if --perceptual FOLDER has none; without it neither side has that term.

Ours is the recipe `ae`. The peer is AutoencoderKL of four levels (128, 256, 512, 512; f4 has the first three, as the
published ones have), with the losses of latent diffusion: |x' - x| + 0.5 perceptual + 1e-6 KL + 0.5 lambda adversarial, a
patch discriminator with batch norms, hinge loss, and two Adam optimizers (0.5, 0.9). It is run in channels-last memory under
bfloat16 autocast with fused Adam; rate 2e-4 falling to 0 in the last half, as ours falls. On both sides the critic begins at
half of the run.

Needs, with the usual 2 minutes: about 9 minutes of one GPU for f8 and f4 both, and 16 GiB of it. Rows: PSNR (dB) and SSIM of
held-out pictures, milliseconds a picture through encoder and decoder, pictures learnt a second.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks._pictures import everything, judge_of, opened, where
from benchmarks._table import RESULTS, Row, show, write
from sfumato.codecs import Latent
from sfumato.core.random import keys
from sfumato.data import Data
from sfumato.device import wait
from sfumato.evaluate.perceptual import Perceptual, open_perceptual
from sfumato.evaluate.reconstruction import psnr, ssim
from sfumato.nn import AutoencoderKL
from sfumato.recipes import load_recipe, trainer
from sfumato.train import Ema, Silent

BATCH, TIMED = 32, 64
CASES = {"f8": (8, 4), "f4": (4, 3)}  # factor, channels of the latent


@dataclass(frozen=True)
class Figures:
    """psnr, ssim: means over held-out pictures. ms: of a picture both ways. rate: pictures learnt a second."""

    psnr: float
    ssim: float
    ms: float
    rate: float
    samples: int
    parameters: int


def quality(through: Callable[[Tensor], Tensor], held: Tensor, device: torch.device) -> tuple[float, float]:
    """PSNR and SSIM of pictures (N, C, H, W) uint8 in grey levels, made to uint8 again."""
    found = []
    for real in held.split(TIMED):
        made = through(real.to(device)).cpu()
        found.append(torch.stack([psnr(made, real).clamp(max=100.0), ssim(made, real)]))
    means = torch.cat(found, 1).mean(1)
    return float(means[0]), float(means[1])


def milliseconds(through: Callable[[Tensor], Tensor], held: Tensor, device: torch.device) -> float:
    """A picture's share of a batch, the best of five after warming up."""
    batch = held[:TIMED].to(device)
    times = []
    for _ in range(3 if device.type == "cpu" else 8):
        wait(device)
        begun = time.perf_counter()
        through(batch)
        wait(device)
        times.append(time.perf_counter() - begun)
    return 1000 * min(times[1:]) / len(batch)


# ---------------------------------------------------------------- ours


def ours(args: argparse.Namespace, case: str, data: Data, device: torch.device, folder: Path) -> Figures:
    factor, channels = CASES[case]
    half = args.expected if args.expected is not None else 100_000_000
    asked = {
        "data": args.data, "factor": str(factor), "channels": str(channels), "minutes": str(args.minutes),
        "adversarial": str(args.adversarial), "size": "xs" if args.tiny else "m", "batch": str(args.batch),
        "losses.after": str(half), "train.evaluations": "0", "train.pictures": "1", "train.checkpoint_minutes": "100",
    }  # fmt: skip
    if args.tiny:
        asked["data.size"] = str(args.tiny_side)
    if args.perceptual:
        asked["losses.perceptual"] = str(args.perceptual)
    made = trainer(load_recipe("ae", asked), folder, device=str(device), display=Silent())
    result = made.fit()
    codec = made.ema.models[0]
    assert isinstance(codec, Latent)
    codec.to(device, memory_format=torch.channels_last).eval()

    @torch.no_grad()
    def through(real: Tensor) -> Tensor:
        return codec.decode(codec.whiten(codec.encode(real)))

    held = everything(data.split("held_out"))
    found = quality(through, held, device)
    count = sum(p.numel() for p in codec.net.parameters())
    return Figures(*found, milliseconds(through, held, device), result.samples / result.seconds, result.samples, count)


# ---------------------------------------------------------------- the peer


def peer_network(case: str, side: int, tiny: bool) -> tuple[nn.Module, str]:
    """diffusers' AutoencoderKL where it is installed, else the same network of ours (equal to 1e-5 by a test), and which."""
    channels = CASES[case][1]
    widths = [128, 256, 512, 512][: 4 if case == "f8" else 3]
    widths, layers, groups = ([16] * len(widths), 1, 4) if tiny else (widths, 2, 32)
    try:
        from diffusers import AutoencoderKL as Theirs
    except ImportError:
        usual = AutoencoderKL((3, side, side), channels=channels, widths=tuple(widths), layers=layers, groups=groups)
        return usual, "the same architecture in plain torch"
    down, up = ["DownEncoderBlock2D"] * len(widths), ["UpDecoderBlock2D"] * len(widths)
    made = Theirs(
        down_block_types=down, up_block_types=up, block_out_channels=widths, layers_per_block=layers,
        norm_num_groups=groups, latent_channels=channels, sample_size=side,
    )  # fmt: skip
    return made, "diffusers.AutoencoderKL"


def moments(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and logarithm of the variance."""
    if isinstance(net, AutoencoderKL):
        mean, logvar = net.hidden(x).float().chunk(2, 1)
        return mean, logvar.clamp(-30, 20)
    found = net.encode(x).latent_dist
    return found.mean.float(), found.logvar.float()


def decoded(net: Any, z: Tensor) -> Tensor:
    out: Tensor = net.made(z) if isinstance(net, AutoencoderKL) else net.decode(z).sample
    return out.float()


def discriminator(width: int) -> nn.Sequential:
    """The patch discriminator of latent diffusion: batch norms, three layers of stride 2."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
    at = width
    for i, stride in ((2, 2), (4, 2), (8, 1)):
        layers += [nn.Conv2d(at, width * i, 4, stride, 1, bias=False), nn.BatchNorm2d(width * i), nn.LeakyReLU(0.2)]
        at = width * i
    return nn.Sequential(*layers, nn.Conv2d(at, 1, 4, 1, 1))


class Peer:
    """The network and its two optimizers."""

    def __init__(self, net: nn.Module, device: torch.device, perceptual: Perceptual | None, adversarial: float) -> None:
        layout = {"memory_format": torch.channels_last}
        self.net: Any = net.to(device, **layout).train()  # type: ignore[call-overload]
        self.critic = discriminator(64).to(device, **layout)  # type: ignore[call-overload]
        self.perceptual = None if perceptual is None else perceptual.to(device)
        self.adversarial, self.device = adversarial, device
        fused = True if device.type == "cuda" else None
        self.first = torch.optim.Adam(self.net.parameters(), 2e-4, (0.5, 0.9), fused=fused)
        self.second = torch.optim.Adam(self.critic.parameters(), 2e-4, (0.5, 0.9), fused=fused)
        self.ema: Ema[Any] = Ema(self.net, (0.05,))
        self.last = self.net.decoder.conv_out.weight

    def step(self, x: Tensor, number: int, rate: float, judged: bool) -> None:
        for group in (*self.first.param_groups, *self.second.param_groups):
            group["lr"] = rate
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            mean, logvar = moments(self.net, x)
            made = decoded(self.net, mean + (0.5 * logvar).exp() * torch.randn_like(mean))
            direct = (made - x).abs().mean()
            if self.perceptual is not None:
                direct = direct + 0.5 * self.perceptual((made + 1) * 127.5, (x + 1) * 127.5).mean()
            nats = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum()
            loss = direct + 1e-6 * nats / x.numel()
            if judged:
                against = -self.critic(made).float().mean()
                a, b = (torch.autograd.grad(v, self.last, retain_graph=True)[0].norm() for v in (direct, against))
                loss = loss + self.adversarial * (a / (b + 1e-4)).clamp(max=1e4).detach() * against
        self.first.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.first.step()
        if judged:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                real, fake = self.critic(x).float(), self.critic(made.detach()).float()
            self.second.zero_grad()
            (0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())).backward()  # type: ignore[no-untyped-call]
            self.second.step()
        self.ema.update(number)

    @torch.no_grad()
    def through(self, real: Tensor) -> Tensor:
        net = self.ema.models[0]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            x = (real.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
            made = decoded(net, moments(net, x)[0])
        return ((made + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def peer(args: argparse.Namespace, case: str, data: Data, device: torch.device) -> tuple[Figures, str]:
    torch.manual_seed(0)
    net, said = peer_network(case, data.info.shape[1], args.tiny)
    adversarial = 0.5 if args.adversarial else 0.0
    trained = Peer(net, device, open_perceptual(str(args.perceptual)) if args.perceptual else None, adversarial)
    media = everything(data.split("train")).to(device)
    generator = torch.Generator(device).manual_seed(int(keys(0, "peer", [0])[0]) >> 1)

    def batch() -> Tensor:
        chosen = torch.randint(0, len(media), (args.batch,), generator=generator, device=device)
        return (media[chosen].float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)

    budget, number = 60 * args.minutes, 0
    torch.backends.cudnn.benchmark = True
    trained.step(batch(), 1, 0.0, bool(adversarial))  # kernels are chosen before the clock starts, as for ours
    wait(device)
    begun, done = time.perf_counter(), 0.0
    while done < 1:
        number += 1
        judged = bool(adversarial) and done >= 0.5
        trained.step(batch(), number, 2e-4 * min(1.0, 2 * (1 - done), (number + 1) / 100), judged)
        if number % 10 == 0 or device.type == "cpu":
            wait(device)
            done = (time.perf_counter() - begun) / budget
    seconds, samples = time.perf_counter() - begun, number * args.batch
    trained.ema.copy_buffers()
    held = everything(data.split("held_out"))
    found = quality(trained.through, held, device)
    count = sum(p.numel() for p in trained.net.parameters())
    return Figures(*found, milliseconds(trained.through, held, device), samples / seconds, samples, count), said


# ---------------------------------------------------------------- rows


def rows_of(case: str, a: Figures, b: Figures, settings: dict[str, Any], device: torch.device) -> list[Row]:
    mine, theirs = where(device)
    more = settings | {
        "ours_samples": a.samples, "peer_samples": b.samples, "ours_parameters": a.parameters,
        "peer_parameters": b.parameters,
    }  # fmt: skip
    units = {"psnr": "dB", "ssim": "", "ms": "ms/picture", "rate": "pictures/s"}
    return [
        Row(f"ae.{case}.{name}", getattr(a, name), getattr(b, name), unit, None, mine, theirs, more)
        for name, unit in units.items()
    ]


def parsed(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.autoencoder", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--only", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--perceptual", type=Path)
    parser.add_argument("--adversarial", type=float, default=0.1)
    parser.add_argument("--expected", type=int, help="samples after which our critic begins; by default measured first")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--keep", type=Path, help="where the runs of ours are kept: codec=FOLDER/f8")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/autoencoder.json")
    parser.add_argument("--tiny", action="store_true", help="small networks and pictures, to see that it runs")
    parser.add_argument("--tiny-side", type=int, default=32)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(words)


def half_of_the_run(args: argparse.Namespace, case: str, device: torch.device, folder: Path) -> int:
    """Samples of half of our run, from a tenth of it without a critic: the recipe counts in samples, not minutes."""
    shorter = argparse.Namespace(**(vars(args) | {"minutes": args.minutes / 10, "expected": None}))
    data = opened(args.data, args.tiny_side if args.tiny else None)
    return int(5 * ours(shorter, case, data, device, folder).samples)


def main(words: list[str] | None = None) -> list[Row]:
    args = parsed(words)
    device = torch.device(args.device)
    data = opened(args.data, args.tiny_side if args.tiny else None)
    if args.perceptual:
        judge_of(data, args.perceptual, device)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as spare:
        for case in args.only:
            runs = args.keep or Path(spare)
            if args.adversarial and args.expected is None:
                args.expected = half_of_the_run(args, case, device, Path(spare) / f"{case}-short")
            a = ours(args, case, data, device, runs / case)
            if device.type == "cuda":
                torch.cuda.empty_cache()
            b, said = peer(args, case, data, device)
            args.expected = None
            settings = {
                "peer": said, "minutes": args.minutes, "batch": args.batch, "adversarial": args.adversarial,
                "perceptual": bool(args.perceptual), "held_out": len(data.split("held_out")), "shape": data.info.shape,
            }  # fmt: skip
            rows += rows_of(case, a, b, settings, device)
            show(rows[-4:])
            if args.json:
                args.json.write_text(json.dumps([row.to_dict() for row in rows], indent=1), encoding="utf-8")
    if args.write:
        write(rows, RESULTS / "autoencoder.json")
    return rows


if __name__ == "__main__":
    main()
