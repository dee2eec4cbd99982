"""Extractors: a judge's features as they are; the published networks with random weights, for what does not need theirs."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from sfumato.errors import UserError
from sfumato.evaluate import ConvJudge, Extractor, JudgeExtractor, WideResNet, open_extractor
from sfumato.evaluate.extractor import rgb
from sfumato.evaluate.standard import _prepared
from sfumato.files import sha256

GENERATOR = torch.Generator().manual_seed(0)
PICTURES = torch.randint(0, 256, (7, 3, 32, 32), generator=GENERATOR, dtype=torch.uint8)


def judge() -> WideResNet:
    torch.manual_seed(0)
    return WideResNet((3, 32, 32), ("a", "b"), depth=10, widen=1).eval()


def package(name: str) -> Any:
    """An optional package; the test is skipped where it is not installed, or can't be imported with this torch."""
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"{name}: {error}")


def test_a_judges_features_by_batches_with_its_name_and_hash(tmp_path: Path) -> None:
    made = judge()
    made.save(tmp_path / "judge")
    opened = open_extractor(str(tmp_path / "judge"))
    assert opened.about() == {
        "name": "wrn10-1",
        "sha256": sha256(tmp_path / "judge" / "judge.safetensors"),
        "resize": "none",
    }
    assert not opened.is_fid
    opened.batch = 3
    seen: list[tuple[int, int]] = []
    found = opened(PICTURES, lambda done, of: seen.append((done, of)))
    assert found.shape == (7, 64) and found.dtype == torch.float32
    assert torch.allclose(found, made.features(PICTURES), atol=1e-5)
    assert seen == [(3, 7), (6, 7), (7, 7)]
    assert not any(p.requires_grad for p in opened.network.parameters())
    assert opened.to("cpu") is opened and opened.device.type == "cpu"


@pytest.mark.parametrize("wrong", [PICTURES.float(), PICTURES[0], PICTURES[:0]])
def test_what_is_no_set_of_pictures_is_refused(wrong: Tensor) -> None:
    with pytest.raises(UserError, match="features are those of pictures"):
        JudgeExtractor(judge())(wrong)


def test_pictures_of_another_size_are_refused() -> None:
    with pytest.raises(UserError, match=r"looks at pictures of shape \(3, 32, 32\), not \(3, 16, 16\)"):
        JudgeExtractor(judge())(PICTURES[..., :16, :16])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("inceptoin:x", "extractor=inceptoin:x: there is no extractor 'inceptoin'; did you mean 'inception'?"),
        ("nowhere", "extractor=nowhere: there is no judge in this folder; give one that"),
        (
            "inception:w.safetensors",
            "extractor=inception:w.safetensors: there is no such file; give the file of weights",
        ),
        ("inception:w.pth", "w.pth: a pickle can run any code when it is loaded and is not read here; convert it"),
        (
            "dinov2:folder",
            "extractor=dinov2:folder: no config.json with .safetensors weights is there; download the model",
        ),
        ("clip:folder", "extractor=clip:folder: no config.json with .safetensors weights is there; download the model"),
    ],
)
def test_what_is_not_there_is_one_sentence(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("w.pth").write_bytes(b"x")
    with pytest.raises(UserError) as caught:
        open_extractor(text)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "name", "module"),
    [
        ("inception", "torch-fidelity", "torch_fidelity.feature_extractor_inceptionv3"),
        ("dinov2", "transformers", "transformers"),
        ("clip", "transformers", "transformers"),
    ],
)
def test_a_missing_package_is_named_with_the_remedy(
    kind: str, name: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    save_file({"x": torch.zeros(1)}, tmp_path / "w.safetensors")
    (tmp_path / "config.json").write_text("{}")
    path = tmp_path / "w.safetensors" if kind == "inception" else tmp_path
    with pytest.raises(
        UserError, match=rf'needs {name}, which can\'t be imported here .*pip install "sfumato\[eval\]"'
    ):
        open_extractor(f"{kind}:{path}")


def test_grey_pictures_become_three_equal_channels() -> None:
    grey = PICTURES[:, :1]
    assert torch.equal(rgb(grey, "clip"), torch.cat([grey] * 3, 1)) and rgb(PICTURES, "clip") is PICTURES
    with pytest.raises(UserError, match="clip looks at pictures of 1 or 3 channels, not 4"):
        rgb(torch.zeros(1, 4, 8, 8, dtype=torch.uint8), "clip")


def test_resizing_is_pillows_cubic_filter() -> None:
    """Within a grey level or two of Pillow's, which rounds after each axis (and cuts, so the greys are kept off the ends).
    A uniform picture has the value (v / 255 - mean) / deviation."""
    greys = PICTURES // 4 + 96
    made = _prepared(greys, 224, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    for ours, picture in zip(made, greys):
        image = Image.fromarray(picture.permute(1, 2, 0).numpy()).resize((224, 224), Image.Resampling.BICUBIC)
        assert np.abs(255 * ours.permute(1, 2, 0).numpy() - np.asarray(image, np.float32)).max() < 1.5
    grey = _prepared(torch.full((1, 3, 50, 70), 51, dtype=torch.uint8), 28, (0.1, 0.2, 0.3), (1.0, 0.5, 0.1))
    assert torch.allclose(grey, torch.tensor([0.1, 0.0, -1.0])[:, None, None].expand(1, 3, 28, 28), atol=1e-5)


def read_back(made: Extractor, network: torch.nn.Module) -> None:
    """All weights of the network that were saved, none at random."""
    theirs = network.state_dict()
    ours = made.network.state_dict()
    assert ours and all(torch.equal(value, theirs[name]) for name, value in ours.items())
    found = made(PICTURES)
    made.batch = 2
    assert torch.isfinite(found).all() and torch.allclose(made(PICTURES), found, atol=1e-4)


def test_dinov2_of_random_weights(tmp_path: Path) -> None:
    transformers = package("transformers")
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    network = transformers.Dinov2Model(config).eval()
    network.save_pretrained(tmp_path)
    made = open_extractor(f"dinov2:{tmp_path}")
    assert made.about() == {"name": "dinov2", "sha256": sha256(tmp_path / "model.safetensors"), "resize": "bicubic 224"}
    read_back(made, network)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    token = network(_prepared(PICTURES, 224, mean, std)).last_hidden_state[:, 0]
    assert torch.allclose(made(PICTURES), token, atol=1e-5)
    with pytest.raises(UserError, match="this is a model of type dinov2; give one of type clip"):
        open_extractor(f"clip:{tmp_path}")


def test_weights_that_are_not_all_there_are_refused(tmp_path: Path) -> None:
    transformers = package("transformers")
    from safetensors.torch import load_file

    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    transformers.Dinov2Model(config).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state.pop("layernorm.weight")
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"1 of the weights can\'t be read, such as layernorm\.weight; download them"):
        open_extractor(f"dinov2:{tmp_path}")


def test_clip_of_random_weights_from_a_whole_clip(tmp_path: Path) -> None:
    transformers = package("transformers")
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**small, "vocab_size": 50},
        vision_config={**small, "image_size": 40, "patch_size": 8},
        projection_dim=16,
    )
    network = transformers.CLIPModel(config).eval()
    network.save_pretrained(tmp_path)
    made = open_extractor(f"clip:{tmp_path}")
    assert (made.name, made.resize) == ("clip", "bicubic 40")
    assert made(PICTURES).shape == (7, 16)
    read_back(made, network)


def test_inception_of_random_weights(tmp_path: Path) -> None:
    """The weights come back, and features change by rounding only with the batch. A name of its own: not an FID."""
    module = package("torch_fidelity.feature_extractor_inceptionv3")
    state = random_inception(module)
    save_file(state, tmp_path / "w.safetensors")
    made = open_extractor(f"inception:{tmp_path / 'w.safetensors'}")
    assert made.about()["resize"] == "bilinear 299, as TensorFlow 1" and made.name == "inception" and not made.is_fid
    assert made.sha256 == sha256(tmp_path / "w.safetensors")
    assert made(PICTURES[:2]).shape == (2, 2048)
    assert torch.equal(made.network.state_dict()["fc.weight"], state["fc.weight"])
    assert torch.allclose(made(PICTURES[:1]), made(PICTURES[:2])[:1], atol=1e-4)
    save_file(state, tmp_path / "named.safetensors", {"source_sha256": "6726825d" + 56 * "0"})
    assert open_extractor(f"inception:{tmp_path / 'named.safetensors'}").is_fid
    state.pop("fc.weight")
    save_file(state, tmp_path / "less.safetensors")
    with pytest.raises(UserError, match=r"these are not the weights of torch-fidelity's Inception v3"):
        open_extractor(f"inception:{tmp_path / 'less.safetensors'}")


def random_inception(module: Any) -> dict[str, Tensor]:
    """Weights of torch-fidelity's network as it is initialised, without its download."""
    cls = module.FeatureExtractorInceptionV3
    kept: dict[str, Tensor] = {}

    class Fresh(cls):  # type: ignore[misc]
        def load_state_dict(self, state: Any, *args: Any, **kwargs: Any) -> Any:
            kept.update(self.state_dict())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *args, **kwargs: {})
        Fresh("inception", ["2048"])
    return {name: value.clone() for name, value in kept.items()}


def test_a_judge_of_no_saved_weights_has_the_hash_that_it_would_have(tmp_path: Path) -> None:
    made = ConvJudge((1, 8, 8), ("a", "b"), width=4)
    before = JudgeExtractor(made).sha256
    made.save(tmp_path / "j")
    assert before == sha256(tmp_path / "j" / "judge.safetensors")
