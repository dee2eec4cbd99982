"""Items a second from disk to batches: packed arrays, a folder of PNG files, tar shards, through `Loader`.

    python -m benchmarks.data [--seconds 4] [--sides 32,64] [--items 50000] [--write]

The same pictures (coarse colours with fine noise, RGB) are written three ways into a temporary folder and read in the order
of training, batches of 128, with 1 and 2 threads of the loader; nothing is done with the batches. PNG and tar keep nothing
in memory (`cache=0`), as data larger than memory could not. The files lie in the page cache: it is the work of the processor
that is measured, not the disk. The first 10 batches are not counted.

The peer is the folder of PNG files read by `torch.utils.data.DataLoader` with a dataset of the usual ten lines (open,
convert, to tensor) and as many worker processes as we have threads. Torch itself has one thread.

The figure is the median of the repeats; lowest and highest are in the settings.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks._table import RESULTS, Row, machine, versions, write
from sfumato.data import Arrays, Data, Folder, Loader, Packed, Tar, pack

BATCH, WARM, ENCODED = 128, 10, 4_000


def smooth(count: int, side: int, seed: int = 0) -> Iterator[np.ndarray[Any, Any]]:
    """Pictures of a few coarse colours with fine noise on them."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 255, (4, 4, 3), np.uint8)).resize((side, side))
        yield np.clip(np.asarray(coarse, np.int16) + rng.integers(-6, 7, (side, side, 3)), 0, 255).astype(np.uint8)


def written(place: Path, side: int, items: int) -> dict[str, Data]:
    """The sets to read: packed ones of `items` pictures, encoded ones of 4,000."""
    pictures = list(smooth(ENCODED, side))
    (place / "png").mkdir(parents=True)
    with tarfile.open(place / "shard.tar", "w") as archive:
        for i, pixels in enumerate(pictures):
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, "PNG")
            (place / "png" / f"{i:05}.png").write_bytes(stream.getvalue())
            member = tarfile.TarInfo(f"{i:05}.png")
            member.size = stream.tell()
            archive.addfile(member, io.BytesIO(stream.getvalue()))
    media = np.stack(pictures).transpose(0, 3, 1, 2)
    np.savez(place / "x.npz", x=np.tile(media, (-(-items // ENCODED), 1, 1, 1))[:items])
    pack(Arrays(path=str(place / "x.npz")), place / "packed")
    (place / "x.npz").unlink()
    return {
        "packed": Packed(path=str(place / "packed")),
        "png": Folder(path=str(place / "png"), cache=0),
        "tar": Tar(path=str(place / "shard.tar"), cache=0),
    }


class Plain(Dataset[Tensor]):
    """What a training script writes when it needs pictures."""

    def __init__(self, folder: Path) -> None:
        self.files = sorted(folder.iterdir())

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.files[index]) as image:
            return torch.from_numpy(np.array(image.convert("RGB")).transpose(2, 0, 1))


def ours(data: Data, threads: int, seconds: float) -> float:
    """Items a second of the loader."""
    with Loader(data.split("train"), BATCH, 0, threads=threads, prefetch=4) as loader:
        return rate(lambda: len(next(loader)[1]), seconds)


def peer(folder: Path, workers: int, seconds: float) -> float:
    """Items a second of torch's loader."""
    loader = DataLoader(
        Plain(folder), BATCH, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=True
    )

    def endless() -> Iterator[Tensor]:
        while True:
            yield from loader

    batches = endless()
    return rate(lambda: len(next(batches)), seconds)


def rate(step: Callable[[], int], seconds: float) -> float:
    """Items a second of a function that hands out some."""
    for _ in range(WARM):
        step()
    begun, count = time.perf_counter(), 0
    while (spent := time.perf_counter() - begun) < seconds:
        count += step()
    return count / spent


def rows(sides: list[int], items: int, seconds: float, repeats: int) -> list[Row]:
    """A row a kind of data, side and number of threads."""
    made = []
    on, found = machine(torch_threads=torch.get_num_threads()), versions("sfumato", "numpy", "pillow")
    for side in sides:
        with tempfile.TemporaryDirectory() as folder:
            sets = written(Path(folder), side, items)
            for threads in (1, 2):
                theirs = [peer(Path(folder, "png"), threads, seconds) for _ in range(repeats)]
                for name, data in sets.items():
                    rates = [ours(data, threads, seconds) for _ in range(repeats)]
                    settings = {
                        "batch": BATCH, "side": side, "items": len(data), "threads": threads, "seconds": seconds,
                        "repeats": repeats, "lowest": min(rates), "highest": max(rates),
                        "peer": "torch DataLoader, PNG", "peer_lowest": min(theirs), "peer_highest": max(theirs),
                    }  # fmt: skip
                    case = f"{name} {side}x{side}, {threads} thread{'s' * (threads > 1)}"
                    ours_, peer_ = statistics.median(rates), statistics.median(theirs)
                    made.append(Row(case, ours_, peer_, "items/s", None, on, found, settings))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--sides", default="32,64")
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="keep the rows in benchmarks/results/data.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = rows([int(s) for s in options.sides.split(",")], options.items, options.seconds, options.repeats)
    print(f"{'case':<24}{'ours':>10}{'peer':>10}{'ratio':>8}  items/s (more is better)")
    for row in found:
        print(f"{row.case:<24}{row.ours:>10,.0f}{row.peer:>10,.0f}{row.ratio:>8.1f}")
    if options.write:
        write(found, RESULTS / "data.json")


if __name__ == "__main__":
    main()
