"""Judges: saved, loaded, refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sfumato.errors import UserError
from sfumato.evaluate import Judge, Judged
from sfumato.files import CorruptError

CLASSES = ("a", "b", "c")


def judge(seed: int = 0) -> Judge:
    torch.manual_seed(seed)
    made = Judge((1, 9, 7), CLASSES, width=4, features=6, trained={"accuracy": 0.5})
    with torch.no_grad():
        for name, value in made.named_buffers():
            if "running" in name:
                value.add_(torch.rand_like(value))
    return made.eval()


def pictures(n: int = 5) -> torch.Tensor:
    return torch.randint(0, 256, (n, 1, 9, 7), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_round_trip_judges_alike_bit_for_bit(tmp_path: Path) -> None:
    made = judge()
    made.save(tmp_path / "judge")
    again = Judge.load(tmp_path / "judge")
    assert not again.training
    assert again.classes == CLASSES
    assert again.trained["accuracy"] == 0.5
    assert again.weights_sha256 == made.weights_sha256
    assert torch.equal(again(pictures()), made(pictures()))
    assert torch.equal(again.features(pictures()), made.features(pictures()))


def test_a_picture_is_judged_alone() -> None:
    """Evaluation mode: what else is in the batch changes nothing beyond rounding, and labels are those of the logits."""
    made, shown = judge(), pictures(700)
    one = torch.cat([made(shown[i : i + 1]) for i in range(5)])
    assert torch.allclose(one, made(shown)[:5], atol=1e-5)
    assert torch.equal(made.predict(shown), made(shown).argmax(1))
    judged = Judged.of(made, shown)
    assert judged.features.shape == (700, 6)
    assert torch.allclose(made.head(judged.features), made(shown), atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "positions"), [((1, 8, 8), 16), ((3, 28, 28), 16), ((3, 32, 32), 16), ((1, 5, 4), 6)]
)
def test_any_size_is_halved_down_to_four_positions_a_side(shape: tuple[int, int, int], positions: int) -> None:
    made = Judge(shape, CLASSES, width=4)
    channels = 4 * 2 ** (len(made.blocks) - 1)
    assert made.to_features.in_features == channels * positions
    assert made.eval()(torch.zeros(2, *shape, dtype=torch.uint8)).shape == (2, 3)


def test_a_changed_byte_is_named(tmp_path: Path) -> None:
    judge().save(tmp_path / "judge")
    weights = tmp_path / "judge" / "judge.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    with pytest.raises(CorruptError, match=r"judge\.safetensors"):
        Judge.load(tmp_path / "judge")


def test_what_is_not_a_judge_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no judge here"):
        Judge.load(tmp_path)
    with pytest.raises(UserError, match=r"looks at pictures of shape \(1, 9, 7\), not \(1, 8, 8\)"):
        judge().predict(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    from sfumato.files import write_manifest

    judge().save(tmp_path / "judge")
    config = tmp_path / "judge" / "judge.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"format": 2}))
    write_manifest(tmp_path / "judge")
    with pytest.raises(UserError, match="format 2 is not read"):
        Judge.load(tmp_path / "judge")
