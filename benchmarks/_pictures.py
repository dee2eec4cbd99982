"""What the benchmarks of autoencoders and latents share: one file of labelled pictures, and a judge of them.

    python -m benchmarks._pictures FILE.parquet OUT.tar

writes the pictures of a parquet file (`image`, `label`, `caption`) as a tar that needs no more than Pillow to be read.
"""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks._table import machine, versions
from sfumato.data import Data, open_data
from sfumato.evaluate import Judge
from sfumato.recipes.judges_pictures import Schooling, train_picture_judge

PACKAGES = ("sfumato", "diffusers", "numpy")


def to_tar(source: Path, out: Path) -> None:
    """As said above. Labels become their rank in alphabetical order."""
    import pyarrow.parquet as parquet

    table = parquet.read_table(source)
    names = sorted(set(table["label"].to_pylist()))
    with tarfile.open(out, "w") as made:
        for i, row in enumerate(table.to_pylist()):
            image = row["image"]["bytes"] if isinstance(row["image"], dict) else row["image"]
            sides = {".webp": image, ".cls": str(names.index(row["label"])).encode(), ".txt": row["caption"].encode()}
            for suffix, content in sides.items():
                member = tarfile.TarInfo(f"{i:06}{suffix}")
                member.size = len(content)
                made.addfile(member, io.BytesIO(content))


def opened(path: str, size: int | None = None) -> Data:
    """The data set of a path; size: side in pixels, for a run at the size of a CPU."""
    spec = open_data(path)
    return (spec if size is None else spec.with_(size=size)).build()


def everything(data: Data) -> Tensor:
    """All pictures (N, C, H, W) uint8."""
    return torch.cat([data.fetch(range(i, min(i + 256, len(data)))).media for i in range(0, len(data), 256)])


def judge_of(data: Data, folder: Path, device: torch.device, epochs: int = 20, seed: int = 0) -> Judge:
    """The judge of a folder, trained on the training part if there is none; another network for every seed."""
    if (folder / "judge.json").is_file():
        return Judge.load(folder)
    small = device.type != "cuda"
    schooling = Schooling(
        epochs=1 if small else epochs, batch=32 if small else 128, rate=0.05, cut=0 if small else 32, seed=seed
    )
    judge = train_picture_judge(data, "vgg", schooling=schooling, device=device, width=4 if small else 32)
    judge.save(folder)
    return judge


def where(device: torch.device) -> tuple[dict[str, Any], dict[str, str]]:
    """(machine, versions) of a row."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "none"
    return machine(gpu=name), versions(*PACKAGES)


if __name__ == "__main__":
    to_tar(Path(sys.argv[1]), Path(sys.argv[2]))
