"""Attention: which of PyTorch's kernels it is computed by, and that gradients are finite where one of them gives NaN."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.backends.cuda import cudnn_sdp_enabled, flash_sdp_enabled
from torch.nn import functional as F

from sfumato.nn.attention import attend, rms_norm


@pytest.mark.parametrize(
    ("queries", "keys", "grad", "cudnn"),
    [
        (64, 64, True, False),
        (64, 64, False, True),
        (256, 256, True, True),
        (256, 33, True, False),
        (1, 128, True, True),
    ],
)
def test_gradients_do_not_come_from_cudnn_where_the_last_tile_of_keys_is_not_full(
    monkeypatch: pytest.MonkeyPatch, queries: int, keys: int, grad: bool, cudnn: bool
) -> None:
    seen: list[tuple[bool, bool]] = []

    def attention(q: Any, k: Any, v: Any, attn_mask: Any = None) -> Any:
        seen.append((cudnn_sdp_enabled(), flash_sdp_enabled()))
        return q

    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    with FakeTensorMode(), torch.set_grad_enabled(grad):
        q = torch.empty(2, 4, queries, 64, device="cuda")
        k = torch.empty(2, 4, keys, 64, device="cuda")
        assert attend(q, k, k).shape == (2, queries, 256)
    assert seen == [(cudnn, True)]
    assert cudnn_sdp_enabled()  # as before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="cuDNN's kernels need a GPU")
def test_gradients_are_finite_where_all_logits_of_a_query_are_far_below_zero() -> None:
    torch.manual_seed(0)
    common = torch.zeros(64).index_fill(0, torch.tensor(0), 28.3)  # logits of about -100
    q, k, v = (torch.randn(8, 4, 64, 64) for _ in range(3))
    inputs = [t.cuda().bfloat16().requires_grad_() for t in (q + common, k - common, v)]
    attend(*inputs).sum().backward()
    assert all(bool(t.grad.isfinite().all()) for t in inputs if t.grad is not None)


def test_norms_of_queries_are_not_made_float32_by_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    norm, seen = F.rms_norm, []

    def watched(*args: Any) -> torch.Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        return norm(*args)

    monkeypatch.setattr(F, "rms_norm", watched)
    x = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        out = rms_norm(x, torch.full((8,), 2.0))
        assert torch.is_autocast_enabled("cpu")  # as before
    assert seen == [False] and out.dtype == torch.bfloat16
    wide = x.double()
    expected = 2 * wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert torch.allclose(out.double(), expected, rtol=2e-2, atol=1e-2)


def test_attention_is_softmax_of_scaled_products() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, 4:] = False
    logits = (q @ k.transpose(-1, -2) / 8**0.5).masked_fill(~mask[:, None, None, :], -torch.inf)
    expected = (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)
    assert torch.allclose(attend(q, k, v, mask), expected, atol=1e-6)
