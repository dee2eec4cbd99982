"""Spoken digits for GPU minutes: ours and diffusers' U-Nets on the same mel bands, scored by the same judges in one run.

    python -m benchmarks.audio --data fsdd.npz --judges FOLDER --out DIR [--minutes 2] [--vocoder FOLDER]
                               [--peer unet2d|unet1d] [--json FILE] [--quick]

Both learn log-mel fields (64 bands x 128 frames), whitened by one codec, in the same minutes, and their samples go
through the same decoder. Conditions are the 60 pairs of speaker and digit: words for ours, a class for the peer.

unet2d: diffusers' `UNet2DModel` on (1, 64, 128), what its audio pipelines train on mel pictures: widths 64, 128, 128,
attention at the lowest, 60 classes and one for nothing (10% of the samples, for guidance). unet1d: its `UNet1DModel` on
(64, 128); it takes no class, so a pair of speaker and digit is given as 16 more channels of a learned table. Usual
settings: bfloat16, compiled, fused AdamW at 2e-4 after 500 steps of warm-up, noise prediction on a squared-cosine
schedule, EMA of 0.999 with warm-up, 50 DDIM steps, guidance 2. All data lie on the GPU as fields for the peer, so its
loader and transform cost nothing; compilation is not counted. Ours is recipe `digits-speech` in the library's own
`Trainer`, everything a run does besides training counted, 20 steps.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks._table import Row, machine, versions
from sfumato.codecs import Codec
from sfumato.data import Sounds, open_data
from sfumato.errors import UserError
from sfumato.evaluate.audio import sound_scores, target
from sfumato.evaluate.judge import Judge
from sfumato.output import Output
from sfumato.pipeline import Pipeline
from sfumato.recipes.build import trainer
from sfumato.recipes.judges_audio import sound_judge_of
from sfumato.recipes.speech import digits_speech, spoken

COLUMNS = ("label", "speakers")
NOTHING = 60
STEPS, GUIDANCE = 50, 2.0
BATCH = 128


@final
class Peer(nn.Module):
    """A network of diffusers that is asked by class. x (B, 64, 128), t (B,), y (B,) to the noise."""

    def __init__(self, kind: str, small: bool) -> None:
        super().__init__()
        from diffusers import UNet1DModel, UNet2DModel

        widths = (32, 64) if small else (64, 128, 128)
        self.two = kind == "unet2d"
        if self.two:
            down = ("DownBlock2D",) * (len(widths) - 1) + ("AttnDownBlock2D",)
            self.net: Any = UNet2DModel(
                sample_size=(64, 128), in_channels=1, out_channels=1, layers_per_block=2, block_out_channels=widths,
                down_block_types=down, up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (len(widths) - 1),
                norm_num_groups=16, num_class_embeds=NOTHING + 1,
            )  # fmt: skip
            return
        self.table = nn.Embedding(NOTHING + 1, 16)
        self.net = UNet1DModel(
            sample_size=128, in_channels=80, out_channels=64, layers_per_block=2, block_out_channels=(64, 128, 128),
            down_block_types=("DownBlock1D", "DownBlock1D", "AttnDownBlock1D"),
            up_block_types=("AttnUpBlock1D", "UpBlock1D", "UpBlock1D"), extra_in_channels=0,
            time_embedding_type="positional", use_timestep_embedding=True, out_block_type="OutConv1DBlock", act_fn="silu",
        )  # fmt: skip

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        if self.two:
            out: Tensor = self.net(x[:, None], t, class_labels=y).sample[:, 0]
            return out
        classes = self.table(y)[:, :, None].expand(-1, -1, x.shape[2])
        made: Tensor = self.net(torch.cat([x, classes], 1), t).sample
        return made


def train_peer(
    fields: Tensor, classes: Tensor, args: argparse.Namespace, device: torch.device
) -> tuple[Any, dict[str, Any]]:
    """The averaged network after `minutes`, and how many samples it saw."""
    from diffusers import DDPMScheduler
    from diffusers.training_utils import EMAModel

    torch.manual_seed(0)
    model = Peer(args.peer, args.quick).to(device)
    average = EMAModel(model.parameters(), decay=0.999, use_ema_warmup=True)
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4, fused=device.type == "cuda")
    run: Any = torch.compile(model) if device.type == "cuda" else model
    batch = 8 if args.quick else BATCH

    def step(number: int) -> None:
        rows = torch.randint(0, len(fields), (batch,), device=device)
        x0, y = fields[rows], classes[rows]
        y = torch.where(torch.rand(batch, device=device) < 0.1, NOTHING, y)
        noise, t = torch.randn_like(x0), torch.randint(0, 1000, (batch,), device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = F.mse_loss(run(scheduler.add_noise(x0, noise, t), t, y).float(), noise)
        for group in optimizer.param_groups:
            group["lr"] = 2e-4 * min(1.0, (number + 1) / 500)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.step(model.parameters())

    for number in range(3):  # compilation
        step(number)
    _wait(device)
    began, done = time.monotonic(), 0
    while time.monotonic() - began < 60 * args.minutes:
        for _ in range(1 if args.quick else 20):
            step(done + 3)
            done += 1
        _wait(device)
    seconds = time.monotonic() - began
    average.copy_to(model.parameters())
    parameters = sum(p.numel() for p in model.parameters())
    return model.eval(), {"samples": done * batch, "seconds": seconds, "parameters": parameters}


@final
class PeerPipeline:
    """The peer as `sound_scores` asks a pipeline."""

    def __init__(self, model: nn.Module, codec: Codec, data: Sounds, device: torch.device, steps: int) -> None:
        self.net, self.codec, self.data, self.device, self.steps = model, codec, data, device, steps
        self.classes = {c: int(k) for c, k in zip(_captions(data), _pairs(data).tolist())}
        self.model = _Asked()

    @torch.no_grad()
    def __call__(self, *, prompt: list[str], seed: int, batch_size: int, **more: Any) -> Output:
        from diffusers import DDIMScheduler

        scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False, timestep_spacing="trailing")
        scheduler.set_timesteps(self.steps)
        generator, parts = torch.Generator().manual_seed(seed), []
        for first in range(0, len(prompt), batch_size):
            y = torch.tensor([self.classes[p] for p in prompt[first : first + batch_size]], device=self.device)
            x = torch.randn(len(y), *self.codec.shape, generator=generator).to(self.device)
            both = torch.cat([y, torch.full_like(y, NOTHING)])
            for t in scheduler.timesteps:
                asked, free = self.net(torch.cat([x, x]), t.expand(2 * len(y)).to(self.device), both).chunk(2)
                x = scheduler.step(free + GUIDANCE * (asked - free), t, x).prev_sample
            parts.append(self.codec.decode(x).cpu())
        media = torch.cat(parts)
        return Output(media, media, tuple(range(len(media))), tuple(prompt), {"steps": self.steps}, self.data.info)


class _Asked:
    """What `sound_scores` reads of a model."""

    class conditioner:  # noqa: N801
        columns = ("caption",)


def main() -> None:
    args = _arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    data_spec = spoken(open_data(args.data))
    data = data_spec.build()
    assert isinstance(data, Sounds)
    judges = {c: _judge(args, data, c).to(device) for c in COLUMNS}
    ours, pipeline = _ours(args, data_spec, out, judges, data)
    print(f"ours: {json.dumps(ours, default=str)}", flush=True)
    codec = pipeline.model.codec
    train = np.flatnonzero(~data.held_out_mask())
    with torch.no_grad():
        parts = [data.fetch(train[i : i + 256]).media.to(device) for i in range(0, len(train), 256)]
        fields = torch.cat([codec.whiten(codec.encode(part)) for part in parts])
    model, theirs = train_peer(fields, _pairs(data)[train].to(device), args, device)
    print(f"peer: {json.dumps(theirs)}", flush=True)
    began = time.monotonic()
    peer: Any = PeerPipeline(model, codec, data, device, 4 if args.quick else STEPS)
    theirs["scores"] = _plain(peer, data, judges, args.n)
    theirs["scored_seconds"] = time.monotonic() - began
    _table(args, out, ours, theirs)


def _ours(
    args: argparse.Namespace, data_spec: Any, out: Path, judges: dict[str, Judge], data: Sounds
) -> tuple[dict[str, Any], Pipeline]:
    spec = digits_speech(data=data_spec, minutes=args.minutes, size="xs" if args.quick else "s", vocoder=args.vocoder)
    spec = spec.override("train.evaluations", 0).override("train.pictures", 0)
    shutil.rmtree(out / "run", ignore_errors=True)
    made = trainer(spec, out / "run").fit()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline = Pipeline.from_pretrained(out / "run").to(device)
    parameters = sum(p.numel() for p in pipeline.model.denoiser.parameters())
    began = time.monotonic()
    scores = _plain(pipeline, data, judges, args.n)
    found = {"samples": made.samples, "seconds": made.seconds, "parameters": parameters, "scores": scores}
    return {**found, "scored_seconds": time.monotonic() - began}, pipeline


def _plain(pipeline: Any, data: Sounds, judges: dict[str, Judge], n: int) -> dict[str, Any]:
    found: dict[str, Any] = sound_scores(pipeline, data, judges, n=n).to_dict()["metrics"]
    return found


def _table(args: argparse.Namespace, out: Path, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    about = machine(gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None)
    asked = {k: getattr(args, k) for k in ("minutes", "peer", "n", "quick")} | {"data": Path(args.data).name}
    settings = {
        **asked,
        "vocoder": bool(args.vocoder),
        "ours_parameters": ours["parameters"],
        "peer_parameters": theirs["parameters"],
    }
    rows = [_row("training", *(r["samples"] / r["seconds"] for r in (ours, theirs)), "samples/s", about, settings)]
    for name, score in ours["scores"].items():
        more = {**settings, "real": score["real"], "interval": score["interval"]}
        rows.append(_row(name, score["value"], theirs["scores"][name]["value"], "score", about, more))
    plain = [{**r.to_dict(), "ratio": r.ours / r.peer if r.peer else None} if r.peer else _without(r) for r in rows]
    for row in plain:
        print(f"{row['case']:28} ours {row['ours']:.5g}  peer {row['peer']:.5g}", flush=True)
    (Path(args.json) if args.json else out / "audio.json").write_text(json.dumps(plain, indent=1, default=str))


def _row(case: str, ours: float, peer: float, unit: str, about: dict[str, Any], settings: dict[str, Any]) -> Row:
    return Row(case, ours, peer, unit, None, about, versions("torch", "diffusers"), settings)


def _without(row: Row) -> dict[str, Any]:
    """A row of a peer that scores 0."""
    return {**row.__dict__, "ratio": None}


def _captions(data: Sounds) -> list[str]:
    return [str(c) for c in data.columns(np.arange(len(data)))["caption"]]


def _pairs(data: Sounds) -> Tensor:
    """(N,) the number of speaker and digit of each sound."""
    return target(data, "speakers").values * 10 + target(data, "label").values


def _judge(args: argparse.Namespace, data: Sounds, column: str) -> Judge:
    """The judge of a folder, whatever its settings; one is trained only where there is none."""
    folder = Path(args.judges) / column
    if not (folder / "judge.json").is_file():
        return sound_judge_of(data, column, folder, epochs=1 if args.quick else 40)
    judge = Judge.load(folder)
    if judge.trained.get("fingerprint") != data.fingerprint():
        raise UserError(f"{folder}: its judge was trained on other data than {args.data}; give another folder")
    return judge


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--judges", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--vocoder")
    parser.add_argument("--peer", choices=("unet2d", "unet1d"), default="unet2d")
    parser.add_argument("--n", type=int, default=1020)
    parser.add_argument("--json")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if args.quick:
        args.minutes, args.n = 0.2, 20
    return args


if __name__ == "__main__":
    main()
