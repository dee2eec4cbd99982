"""The adaptive Runge-Kutta pair of Dormand and Prince, 5(4), for any slope and for every sample with steps of its own.

    k_i = f(y + h sum_j a_ij k_j, t + c_i h),   y' = y + h sum_i b_i k_i,   error = h sum_i (b_i - b*_i) k_i

Dormand & Prince, "A family of embedded Runge-Kutta formulae", J. Comput. Appl. Math. 6, 1980, table 2. The seventh slope
of a step is the first of the next one, so an accepted step costs six evaluations. Step sizes by the PI rule and the
first step: Hairer, Norsett & Wanner, "Solving Ordinary Differential Equations I", 1993, II.4, and II, 1996, IV.2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import torch
from torch import Tensor

from sfumato.core import lift
from sfumato.errors import SfumatoError, UserError

Y = TypeVar("Y", bound=Tensor | tuple[Tensor, ...])
Parts = tuple[Tensor, ...]
_Slope = Callable[[Parts, Tensor], Parts]

_A = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_C = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)

_SAFETY, _BETA = 0.9, 0.04
_SHRINK, _GROW = 0.2, 10.0  # a step changes by no more than these factors


def integrate(
    f: Callable[[Y, Tensor], Y],
    y0: Y,
    t0: float | Tensor,
    t1: float | Tensor,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_evaluations: int = 10_000,
) -> tuple[Y, Tensor]:
    """y(t1) of dy/dt = f(y, t), y(t0) = y0, in either direction; and how many evaluations each sample needed, (B,) int64.

    y0: one tensor or several, all with the batch axis first, of a floating type. f is given y and t (B,), float64 on the
    CPU, and returns slopes of y's shapes. t0, t1: one number for all, or (B,).

    **Every sample has its own steps**, so its result does not depend on the batch that it is in (but for rounding). A step
    is accepted where the error of every tensor of y is at most 1 in the root mean square over the sample's elements of
    error / (atol + rtol max(|y|, |y'|)). f is evaluated for all samples until the last one has arrived; a sample that is
    there waits at t1. Cost: six evaluations a step and two to begin; one transfer from the device a step.

    Raises UserError for tolerances below what the type of y resolves, SfumatoError where f is not finite (with time and
    sample), where a step gets too small (a stiff or broken slope), and after `max_evaluations` of a sample.
    """
    parts, alone = _parts(y0), isinstance(y0, Tensor)
    _check(parts, rtol, atol)

    def slope(y: Parts, t: Tensor) -> Parts:
        return _parts(f(cast(Y, y[0] if alone else y), t))

    end, evaluations = _walk(slope, parts, t0, t1, rtol, atol, max_evaluations)
    return cast(Y, end[0] if alone else end), evaluations


def _parts(y: Tensor | Parts) -> Parts:
    return (y,) if isinstance(y, Tensor) else y


def step(f: _Slope, y: Parts, t: Tensor, h: Tensor, k1: Parts) -> tuple[Parts, Parts, Parts]:
    """One step of size h (B,) from t (B,): y' of order 5, the estimate of its error (of order 4's), and the slope at y'."""
    slopes = [k1]
    new = y
    for row, c in zip(_A, _C):
        new = _moved(y, h, row, slopes)
        slopes.append(f(new, t + c * h))
    zero = tuple(torch.zeros_like(part) for part in y)
    return new, _moved(zero, h, _ERROR, slopes), slopes[-1]


def _moved(y: Parts, h: Tensor, weights: tuple[float, ...], slopes: list[Parts]) -> Parts:
    """y + h sum_i weights_i slopes_i."""
    moved = []
    for i, part in enumerate(y):
        total = torch.zeros_like(part)
        for weight, k in zip(weights, slopes):
            if weight:
                total = torch.add(total, k[i], alpha=weight)
        moved.append(torch.addcmul(part, lift(h, part), total))
    return tuple(moved)


def _walk(
    f: _Slope, y: Parts, t0: float | Tensor, t1: float | Tensor, rtol: float, atol: float, most: int
) -> tuple[Parts, Tensor]:
    batch = len(y[0])
    t, end = (torch.as_tensor(v, dtype=torch.float64).cpu().expand(batch).clone() for v in (t0, t1))
    span = (end - t).abs()
    sign = torch.sign(end - t)
    k = f(y, t)
    _check_finite(k, t)
    h = torch.minimum(_first_step(f, y, k, t, sign, span, rtol, atol), span)
    active, grown = span > 0, torch.full_like(t, _GROW)
    last = torch.full_like(t, 1e-4)  # the error of the last accepted step, for the PI rule
    count = torch.full((batch,), 2)
    while bool(active.any()):
        left = (end - t).abs()
        ends = h >= left * (1 - 1e-10)
        h = torch.where(active, torch.where(ends, left, h), 0.0)
        new, error, k_new = step(f, y, t, sign * h, k)
        count += 6 * active
        ratio = _norms(error, y, new, rtol, atol)
        finite = torch.isfinite(ratio)
        accepted = active & finite & (ratio <= 1)
        y = tuple(torch.where(_rows(accepted, a), b, a) for a, b in zip(y, new))
        k = tuple(torch.where(_rows(accepted, a), b, a) for a, b in zip(k, k_new))
        t = torch.where(accepted, torch.where(ends, end, t + sign * h), t)
        active &= ~(accepted & ends)
        h, last, grown = _next_steps(h, ratio, last, grown, accepted)
        _check_progress(active, finite, h, t, span, count, most, (rtol, atol))
    return y, count


def _next_steps(h: Tensor, ratio: Tensor, last: Tensor, grown: Tensor, accepted: Tensor) -> tuple[Tensor, ...]:
    """Step sizes, errors of the last accepted steps, and the largest growth allowed (none right after a rejection).

    h' = h 0.9 r^-(1/5 - 3/4 beta) r_last^beta  (PI control: Hairer & Wanner 1996, IV.2, eq. 2.43), and after a rejection
    h' = h 0.9 r^-(1/5 - 3/4 beta).
    """
    safe = torch.where(torch.isfinite(ratio), ratio, torch.inf).clamp(1e-10, 1e10)
    plain = _SAFETY * safe ** -(0.2 - 0.75 * _BETA)
    factor = torch.where(accepted, plain * last**_BETA, plain.clamp(max=1.0))
    h = h * torch.minimum(factor.clamp(min=_SHRINK), grown)
    last = torch.where(accepted, safe.clamp(min=1e-4), last)
    return h, last, torch.where(accepted, _GROW, 1.0)


def _first_step(
    f: _Slope, y: Parts, k: Parts, t: Tensor, sign: Tensor, span: Tensor, rtol: float, atol: float
) -> Tensor:
    """Hairer, Norsett & Wanner 1993, II.4: from the sizes of y, of its slope, and of how the slope changes. (B,)."""
    d0, d1 = _norms(y, y, y, rtol, atol), _norms(k, y, y, rtol, atol)
    small = torch.minimum(torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1), span)
    ahead = f(_moved(y, sign * small, (1.0,), [k]), t + sign * small)
    change = tuple(a - b for a, b in zip(ahead, k))
    d2 = _norms(change, y, y, rtol, atol) / small
    steepest = torch.maximum(d1, d2)
    other = torch.where(steepest <= 1e-15, (1e-3 * small).clamp(min=1e-6), (0.01 / steepest) ** 0.2)
    chosen = torch.minimum(100 * small, other)
    return torch.where(torch.isfinite(chosen), chosen, small)


def _norms(error: Parts, y: Parts, new: Parts, rtol: float, atol: float) -> Tensor:
    """The largest over y's tensors of the root mean square of error / tolerance. (B,) float64 on the CPU."""
    found = []
    for e, a, b in zip(error, y, new):
        scaled = e / (atol + rtol * torch.maximum(a.abs(), b.abs()))
        found.append(scaled.square().reshape(len(e), -1).mean(1).sqrt())
    return torch.stack(found).amax(0).cpu().double()


def _rows(mask: Tensor, like: Tensor) -> Tensor:
    return mask.to(like.device).reshape(-1, *[1] * (like.ndim - 1))


def _check(y: Parts, rtol: float, atol: float) -> None:
    if not all(part.is_floating_point() for part in y):
        raise UserError("an equation is integrated in a floating type; convert y0 first")
    smallest = 10 * max(torch.finfo(part.dtype).eps for part in y)
    if not (rtol >= smallest and atol > 0):
        raise UserError(
            f"rtol = {rtol:g}, atol = {atol:g}: numbers of type {str(y[0].dtype).removeprefix('torch.')} resolve "
            f"rtol >= {smallest:.1g} and atol > 0; raise them or integrate in float64"
        )


def _check_finite(k: Parts, t: Tensor) -> None:
    whole = torch.stack([part.reshape(len(part), -1).isfinite().all(1) for part in k]).all(0).cpu()
    if not bool(whole.all()):
        i = int((~whole).nonzero()[0])
        raise SfumatoError(f"the slope of sample {i} is not finite at t = {float(t[i]):.6g}; the model has diverged")


def _check_progress(
    active: Tensor,
    finite: Tensor,
    h: Tensor,
    t: Tensor,
    span: Tensor,
    count: Tensor,
    most: int,
    tol: tuple[float, float],
) -> None:
    tiny = active & (h < 1e-13 * torch.maximum(span, t.abs()))
    if bool(tiny.any()):
        i = int(tiny.nonzero()[0])
        why = "the equation is too stiff there, or jumps" if bool(finite[i]) else "the slope is not finite there"
        raise SfumatoError(f"the steps of sample {i} have shrunk to {float(h[i]):.1g} at t = {float(t[i]):.6g}: {why}")
    late = active & (count + 6 > most)
    if bool(late.any()):
        i = int(late.nonzero()[0])
        raise SfumatoError(
            f"sample {i} stands at t = {float(t[i]):.6g} after {int(count[i])} evaluations with rtol = {tol[0]:g} and "
            f"atol = {tol[1]:g}; raise max_evaluations = {most}, or the tolerances if the equation is stiff"
        )
