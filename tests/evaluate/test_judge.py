"""Judges: saved, loaded, refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sfumato.errors import UserError
from sfumato.evaluate import ConvJudge, Judge, Judged, Vgg, WideResNet
from sfumato.files import CorruptError, sha256, write_manifest

CLASSES = ("a", "b", "c")


SHAPE = (1, 9, 8)
TRAINED = {"accuracy": 0.5}
ARCHITECTURES = ("conv", "wrn", "vgg")


def judge(architecture: str = "conv", seed: int = 0) -> Judge:
    torch.manual_seed(seed)
    made: Judge
    if architecture == "conv":
        made = ConvJudge(SHAPE, CLASSES, width=4, features=6, trained=TRAINED)
    elif architecture == "wrn":
        made = WideResNet(SHAPE, CLASSES, depth=10, widen=1, trained=TRAINED)
    else:
        made = Vgg(SHAPE, CLASSES, width=2, trained=TRAINED)
    with torch.no_grad():
        for name, value in made.named_buffers():
            if "running" in name:
                value.add_(torch.rand_like(value))
    return made.eval()


def pictures(n: int = 5) -> torch.Tensor:
    return torch.randint(0, 256, (n, *SHAPE), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_round_trip_judges_alike_bit_for_bit(tmp_path: Path, architecture: str) -> None:
    made = judge(architecture)
    named = made.weights_sha256
    made.save(tmp_path / "judge")
    assert named == made.weights_sha256 == sha256(tmp_path / "judge" / "judge.safetensors")
    again = Judge.load(tmp_path / "judge")
    assert type(again) is type(made) and again.settings == made.settings and again.name == made.name
    assert not again.training
    assert again.classes == CLASSES
    assert again.trained["accuracy"] == 0.5
    assert again.weights_sha256 == made.weights_sha256
    assert torch.equal(again(pictures()), made(pictures()))
    assert torch.equal(again.features(pictures()), made.features(pictures()))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_picture_is_judged_alone(architecture: str) -> None:
    """Evaluation mode: what else is in the batch changes nothing beyond rounding, and labels are those of the logits."""
    made, shown = judge(architecture), pictures(700)
    one = torch.cat([made(shown[i : i + 1]) for i in range(5)])
    assert torch.allclose(one, made(shown)[:5], atol=1e-5)
    assert torch.equal(made.predict(shown), made(shown).argmax(1))
    judged = Judged.of(made, shown)
    assert judged.features.shape == (700, made.head.in_features)
    assert torch.allclose(made.head(judged.features), made(shown), atol=1e-5)


def rewrite(folder: Path, **changed: object) -> None:
    """Change judge.json, with a manifest that fits; None takes a key out."""
    config = folder / "judge.json"
    content = json.loads(config.read_text()) | changed
    config.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    write_manifest(folder)


def test_folders_that_name_no_architecture_hold_the_first_one(tmp_path: Path) -> None:
    made = judge()
    made.save(tmp_path / "judge")
    rewrite(tmp_path / "judge", architecture=None)
    again = Judge.load(tmp_path / "judge")
    assert isinstance(again, ConvJudge)
    assert torch.equal(again(pictures()), made(pictures()))


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    judge("wrn").save(tmp_path / "judge")
    rewrite(tmp_path / "judge", architecture="wrm")
    with pytest.raises(UserError, match="there is no judge 'wrm'; did you mean 'wrn'"):
        Judge.load(tmp_path / "judge")
    rewrite(tmp_path / "judge", architecture="vgg")
    with pytest.raises(CorruptError, match=r"does not fit judge\.json"):
        Judge.load(tmp_path / "judge")


def test_the_papers_number_of_parameters() -> None:
    """WRN-16-4 has 2.7 M, WRN-28-10 36.5 M (Zagoruyko & Komodakis 2016, table 4)."""

    def count(**settings: int) -> float:
        with torch.device("meta"):
            made = WideResNet((3, 32, 32), tuple("0123456789"), **settings)
        return round(sum(p.numel() for p in made.parameters()) / 1e6, 1)

    assert count() == 2.7
    assert count(depth=28, widen=10) == 36.5
    assert judge("wrn").name == "wrn10-1" and judge("vgg").name == "vgg2"


def test_settings_that_make_no_network_are_refused() -> None:
    with pytest.raises(UserError, match="7x9 are too small"):
        Vgg((1, 7, 9), CLASSES)
    with pytest.raises(UserError, match="depth = 12, widen = 4: depth must be 10, 16"):
        WideResNet(SHAPE, CLASSES, depth=12)


@pytest.mark.parametrize(
    ("shape", "positions"), [((1, 8, 8), 16), ((3, 28, 28), 16), ((3, 32, 32), 16), ((1, 5, 4), 6)]
)
def test_any_size_is_halved_down_to_four_positions_a_side(shape: tuple[int, int, int], positions: int) -> None:
    made = ConvJudge(shape, CLASSES, width=4)
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
    with pytest.raises(UserError, match=r"looks at pictures of shape \(1, 9, 8\), not \(1, 8, 8\)"):
        judge().predict(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    judge().save(tmp_path / "judge")
    rewrite(tmp_path / "judge", format=2)
    with pytest.raises(UserError, match="format 2 is not read"):
        Judge.load(tmp_path / "judge")
