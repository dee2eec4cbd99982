"""What holds for every guidance: neutral scales, scales by sample, mixed times, nesting, no look at the device."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sfumato.core import Cond, CondShape, Flow, NetDenoiser, Process, UniformGrid, Velocity
from sfumato.errors import UserError
from sfumato.guidance import (
    Autoguidance,
    Chain,
    Classifier,
    ClassifierFree,
    Dynamic,
    Energy,
    Guidance,
    PerturbedAttention,
    PlusPlus,
    Projected,
    Static,
    ZeroStar,
    innermost,
)
from sfumato.nn import DiT
from tests.guidance.exact import ASKED, NULL, PROCESSES, TIMES, Squared, X, noise


def quadratic(x_t: Tensor, t: Tensor) -> Tensor:
    return -x_t.square().flatten(1).sum(1) / 10


BY_CONDITION: list[Guidance] = [
    ClassifierFree(3.0),
    ClassifierFree(3.0, rescale=0.7),
    ClassifierFree(3.0, interval=(-1.0, 1.0)),
    Projected(3.0),
    Projected(3.0, eta=0.5, norm=0.7),
    ZeroStar(3.0),
    ZeroStar(3.0, zero_init=0.3),
    PlusPlus(0.6),
    Chain(ClassifierFree(3.0), Autoguidance("worse", 2.0)),
]
OTHERS: list[Guidance] = [
    Autoguidance("worse", 2.0),
    Autoguidance("worse", 2.0, interval=(-1.0, 1.0)),
    Classifier(quadratic, 2.0),
    Energy(lambda x0: quadratic(x0, x0), 2.0),
]
NAMES = {"ids": lambda guidance: repr(guidance).partition("<")[0]}


class Worse:
    """Another model of the same data."""

    process: Process = Flow()

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        return torch.tanh(x_t)


def wrap(guidance: Guidance, inner: Squared | NetDenoiser, null: Cond = NULL, scale: Tensor | None = None):  # type: ignore[no-untyped-def]
    worse = Worse()
    worse.process = inner.process
    return guidance.wrap(inner, null, scale, times=UniformGrid()(inner.process, 10), models={"worse": worse})


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.kind)
@pytest.mark.parametrize("guidance", [*BY_CONDITION, *OTHERS], **NAMES)
def test_the_neutral_scale_changes_nothing_bit_for_bit(guidance: Guidance, process: Process) -> None:
    if guidance.neutral is None or isinstance(guidance, Chain):
        return
    inner = Squared(process)
    plain = inner(X, TIMES, ASKED)
    neutral = torch.full((4,), guidance.neutral, dtype=torch.float64)
    assert torch.equal(wrap(guidance, inner, scale=neutral)(X, TIMES, ASKED), plain)
    assert inner.rows == [4, 4]  # and costs nothing
    mixed = torch.tensor([guidance.neutral, 2.0, guidance.neutral, 5.0], dtype=torch.float64)
    got = wrap(guidance, inner, scale=mixed)(X, TIMES, ASKED)
    assert torch.equal(got[[0, 2]], plain[[0, 2]])
    if getattr(guidance, "interval", None) is None:
        assert not torch.isclose(got[1], plain[1]).any()


@pytest.mark.parametrize("guidance", [g for g in BY_CONDITION if not isinstance(g, Chain)], **NAMES)
def test_scale_0_is_the_unconditional_model_bit_for_bit_and_one_pass(guidance: Guidance) -> None:
    for scale, rows in (([0.0] * 4, [4]), ([0.0, 0.5, 0.0, 0.25], [8])):
        inner = Squared(Flow())
        got = wrap(guidance, inner, scale=torch.tensor(scale, dtype=torch.float64))(X, TIMES, ASKED)
        if not isinstance(guidance, ClassifierFree) or guidance.interval is None:
            assert inner.rows == rows
            assert torch.equal(got[[0, 2]], Squared(Flow())(X, TIMES, NULL)[[0, 2]])


@pytest.mark.parametrize("guidance", [*BY_CONDITION, *OTHERS], **NAMES)
def test_a_sample_gets_what_it_gets_alone(guidance: Guidance) -> None:
    """Scales, times and conditions of its neighbours do not matter."""
    inner = Squared(Flow())
    scale = torch.tensor([0.3, 0.0, 1.0, 0.9], dtype=torch.float64)
    together = wrap(guidance, inner, scale=scale)(X, TIMES, ASKED)
    for i in range(4):
        row = slice(i, i + 1)
        alone = wrap(guidance, inner, NULL[row], scale[row])(X[row], TIMES[row], ASKED[row])
        torch.testing.assert_close(together[row], alone, rtol=0, atol=1e-14)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.kind)
@pytest.mark.parametrize("guidance", [*BY_CONDITION, *OTHERS], **NAMES)
def test_a_time_for_every_token(guidance: Guidance, process: Process) -> None:
    """Equal times are one time; a token held at t = 0 keeps its data and has no part in sums over the others."""
    inner = Squared(process)
    x, data = noise(4, 6, 2), noise(4, 3, 2, seed=1)
    guided = wrap(guidance, inner)
    whole = guided(x, TIMES, ASKED)
    torch.testing.assert_close(guided(x, TIMES[:, None].expand(4, 6), ASKED), whole, rtol=0, atol=1e-13)

    class Held:
        """As `inner` on the tokens that are noisy, the data itself on those that are not."""

        def __init__(self) -> None:
            self.process = process

        def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
            return torch.where((t > 0)[..., None], inner(x_t, t, cond), x_t)

    times = torch.cat([TIMES[:, None].expand(4, 6), torch.zeros(4, 3)], 1)
    got = wrap(guidance, Held())(torch.cat([x, data], 1), times, ASKED)  # type: ignore[arg-type]
    assert torch.equal(got[:, 6:], data)
    if not isinstance(guidance, Energy | Classifier):  # sums over all tokens are what their functions make of them
        torch.testing.assert_close(got[:, :6], whole, rtol=0, atol=1e-13)


@pytest.mark.parametrize("guidance", [g for g in BY_CONDITION if not isinstance(g, Chain)], **NAMES)
def test_passes(guidance: Guidance) -> None:
    """Two for each sample where guidance acts, in one batch; none more."""
    inner = Squared(Flow())
    wrap(guidance, inner)(X, torch.full((4,), 0.5, dtype=torch.float64), ASKED)
    assert inner.rows == [8]


@pytest.mark.parametrize("outer", [g for g in BY_CONDITION if not isinstance(g, Chain)], **NAMES)
def test_nesting_serves_the_batch_of_an_outer_guidance(outer: Guidance) -> None:
    """The outer one asks for [x, x]; scales, null conditions and grids of the inner one go to the rows they belong to."""
    scale = torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64)
    inner = Squared(Flow())
    nested = wrap(outer, wrap(PlusPlus(), inner, scale=scale), scale=scale)

    class InTwo:
        """The inner guidance without batches: it is called for one half and the other."""

        process = inner.process

        def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
            assert cond is not None
            guided = wrap(PlusPlus(), inner, scale=scale)
            if len(x_t) == 4:
                return guided(x_t, t, cond)
            return torch.cat([guided(x_t[:4], t[:4], cond[:4]), guided(x_t[4:], t[4:], cond[4:])])

    torch.testing.assert_close(
        nested(X, TIMES, ASKED),
        wrap(outer, InTwo(), scale=scale)(X, TIMES, ASKED),
        rtol=0,
        atol=1e-14,  # type: ignore[arg-type]
    )
    assert innermost(nested) is inner


@pytest.mark.parametrize("guidance", [*BY_CONDITION, *OTHERS, PerturbedAttention(2.0)], **NAMES)
def test_nothing_is_read_back_from_the_device(guidance: Guidance) -> None:
    """On the meta device tensors have no content: reading a single number of x raises."""
    network = DiT((5, 6), CondShape(vector=1), width=8, depth=1, heads=2).to("meta")
    inner = NetDenoiser(network, Flow(), Velocity())
    x = torch.empty(4, 5, 6, device="meta")
    asked, null = (Cond(torch.empty(4, 1, device="meta")) for _ in range(2))
    guided = wrap(guidance, inner, null)
    bounds = (torch.empty(5, device="meta"), torch.empty(5, device="meta"))
    for denoiser in (guided, Static().wrap(guided, bounds), Dynamic().wrap(guided, bounds)):
        assert denoiser(x, TIMES, asked).shape == x.shape
        assert denoiser(x, torch.tensor([0.0, 0.4, 0.6, 0.8]).double(), asked).shape == x.shape


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf")])
def test_meaningless_scales_are_one_sentence(scale: float) -> None:
    for guidance in [*BY_CONDITION, *OTHERS]:
        with pytest.raises(UserError, match=r"guidance=\S+ is not a scale") as caught:
            wrap(guidance, Squared(Flow()), scale=torch.tensor([1.0, 1.0, 1.0, scale]))
        assert "\n" not in str(caught.value)
    for make in (ClassifierFree, Projected, ZeroStar, PlusPlus, PerturbedAttention):
        with pytest.raises(UserError, match=r"guidance=\S+ is not a scale"):
            make(scale)


@pytest.mark.parametrize("interval", [(2.0, 1.0), (1.0, 1.0), (float("nan"), 1.0)])
def test_intervals_must_rise(interval: tuple[float, float]) -> None:
    for make in (ClassifierFree, Projected, ZeroStar):
        with pytest.raises(UserError, match=r"interval must be \(low, high\) in log-SNR with low < high"):
            make(interval=interval)
    with pytest.raises(UserError, match="interval must be"):
        Autoguidance("worse", interval=interval)


def test_what_is_missing_is_named() -> None:
    inner = Squared(Flow())
    for guidance in BY_CONDITION:
        with pytest.raises(UserError, match=r"compares what was asked with anything, and this model is unconditional"):
            guidance.wrap(inner, times=TIMES, models={"worse": Worse()})
    with pytest.raises(UserError, match="called without a condition"):
        ClassifierFree().wrap(inner, NULL)(X, TIMES)
    with pytest.raises(UserError, match="guidance for 3 samples does not fit a batch of 4; give one scale a sample"):
        ClassifierFree().wrap(inner, NULL, torch.tensor([1.0, 2.0, 3.0]))(X, TIMES, ASKED)
