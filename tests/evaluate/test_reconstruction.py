"""PSNR and SSIM against closed forms and an independent computation; perceptual distances."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sfumato.errors import UserError
from sfumato.evaluate.architectures import ConvJudge, Vgg, WideResNet
from sfumato.evaluate.perceptual import VggMaps, open_perceptual
from sfumato.evaluate.reconstruction import psnr, ssim


def test_psnr_of_a_constant_error() -> None:
    real = torch.randint(0, 200, (2, 3, 16, 16), dtype=torch.uint8)
    made = real + torch.tensor([1, 5], dtype=torch.uint8).view(2, 1, 1, 1)
    assert psnr(made, real).tolist() == pytest.approx([20 * math.log10(255), 20 * math.log10(51)])
    assert psnr(real, real).tolist() == [math.inf, math.inf]


def test_ssim_of_flat_pictures_and_of_the_same() -> None:
    a, b = torch.full((1, 1, 16, 16), 100.0), torch.full((1, 1, 16, 16), 140.0)
    c1 = 2.55**2
    assert float(ssim(a, b)) == pytest.approx((2 * 100 * 140 + c1) / (100**2 + 140**2 + c1), rel=1e-6)
    noise = torch.randint(0, 256, (2, 3, 20, 13), dtype=torch.uint8)
    assert ssim(noise, noise).tolist() == pytest.approx([1.0, 1.0])


def test_ssim_is_that_of_separate_gaussian_filters() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (24, 30)).astype(np.float64)
    y = np.clip(x + rng.normal(0, 30, x.shape), 0, 255)

    def filtered(v: np.ndarray) -> np.ndarray:
        return np.asarray(ndimage.gaussian_filter(v, 1.5, truncate=3.5)[5:-5, 5:-5])

    mx, my = filtered(x), filtered(y)
    sxx, syy, sxy = filtered(x * x) - mx * mx, filtered(y * y) - my * my, filtered(x * y) - mx * my
    luminance = (2 * mx * my + 2.55**2) / (mx**2 + my**2 + 2.55**2)
    structure = (2 * sxy + 7.65**2) / (sxx + syy + 7.65**2)
    ours = ssim(torch.from_numpy(y)[None, None], torch.from_numpy(x)[None, None])
    assert float(ours) == pytest.approx(float((luminance * structure).mean()), rel=1e-9)


def test_pictures_too_small_for_the_window_are_refused() -> None:
    with pytest.raises(UserError, match="at least 11"):
        ssim(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize("kind", [ConvJudge, WideResNet, Vgg])
def test_a_judge_measures_distances_with_gradients(kind: type, tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = {"depth": 10, "widen": 1} if kind is WideResNet else {"width": 4}
    kind((1, 16, 16), ("a", "b"), **settings).save(tmp_path / "judge")
    perceptual = open_perceptual(str(tmp_path / "judge"))
    x = 255 * torch.rand(2, 1, 16, 16)
    made = (x + 5 * torch.randn_like(x)).requires_grad_()
    distance = perceptual(made, x)
    assert not perceptual(x, x).any() and (distance > 0).all()
    assert torch.allclose(perceptual(x, made), distance, rtol=1e-4)
    distance.sum().backward()
    assert made.grad is not None and made.grad.any()
    before = perceptual(made, x)
    assert torch.equal(perceptual.train()(made, x), before)  # its norms never learn


def test_lpips_weights_scale_each_channel(tmp_path: Path) -> None:
    torch.manual_seed(0)
    maps = VggMaps()
    save_file(maps.state_dict(), tmp_path / "vgg.safetensors")
    widths = (64, 128, 256, 512, 512)
    lins = {f"lin{i}.model.1.weight": torch.full((1, n, 1, 1), 2.0) for i, n in enumerate(widths)}
    save_file(lins, tmp_path / "lin.safetensors")
    plain = open_perceptual(f"vgg:{tmp_path / 'vgg.safetensors'}")
    lpips = open_perceptual(f"lpips:{tmp_path / 'vgg.safetensors'},{tmp_path / 'lin.safetensors'}")
    a, b = 255 * torch.rand(2, 1, 3, 32, 32)
    assert torch.allclose(lpips(a, b), 2 * plain(a, b), rtol=1e-5)
    assert [m.shape[1:] for m in maps(a)] == [(n, 32 // 2**i, 32 // 2**i) for i, n in enumerate(widths)]
    with pytest.raises(UserError, match="not the weights of VGG-16"):
        open_perceptual(f"vgg:{tmp_path / 'lin.safetensors'}")
    with pytest.raises(UserError, match="nothing is downloaded"):
        open_perceptual("vgg:/nowhere.safetensors")
    with pytest.raises(UserError, match="no judge in this folder"):
        open_perceptual(str(tmp_path))
