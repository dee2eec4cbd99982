"""A few shapes for items of many: which there are, and which is nearest to an item.

Pictures and volumes: all shapes whose sides are multiples of m, with at most A = side^d elements, the longest side at
most 4 times the shortest, and no other such shape around them: for A = 64 x 64 and m = 8 that is 32 x 128, 40 x 96, 48 x 80,
56 x 72, 64 x 64 and the same turned. An item of size s goes to the shape b with the smallest

    d(s, b) = | (log s - mean log s) - (log b - mean log b) |^2

so that the proportions decide, and the first of these in the order of their sides if there are several.

Signals (one axis): lengths can't be alike in area, so the items are sorted by length, cut into k parts of as many items each,
and every part is brought to the length of its shortest item, rounded down to a multiple of m.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

from sfumato.data.order import Buckets
from sfumato.errors import UserError

RATIO = 4
GRANULE = 256
MULTIPLE = 8

Sizes = NDArray[np.int64]  # (N, d)


def check_settings(buckets: int, multiple: int, granule: int) -> None:
    """Refuse numbers that mean nothing."""
    for name, value, least in (("buckets", buckets, 0), ("multiple", multiple, 1), ("granule", granule, 1)):
        if value < least:
            raise UserError(f"{name} = {value}: must be at least {least}")


def shapes_of_area(side: float, dims: int, multiple: int) -> list[tuple[int, ...]]:
    """All shapes of about side^dims elements (see above), in the order of their sides."""
    most = round(side**dims / multiple**dims, 6)  # in units of the multiple
    longest = int(side / multiple * RATIO ** ((dims - 1) / dims) + 1e-6)
    found = []
    for front in product(range(1, max(1, longest) + 1), repeat=dims - 1):
        last = int(most // np.prod(front)) if front else int(most)
        shape = (*front, min(last, RATIO * min(front)) if front else last)
        if last >= 1 and max(shape) <= RATIO * min(shape):
            found.append(shape)
    kept = [s for s in found if not any(o != s and all(a >= b for a, b in zip(o, s)) for o in found)]
    if not kept:
        raise UserError(
            f"size = {side:g}: holds no shape of sides that are multiples of {multiple}; set a larger size="
        )
    return [tuple(multiple * side for side in shape) for shape in sorted(kept)]


def nearest(sizes: Sizes, shapes: Sizes) -> Sizes:
    """(N,) number of the shape, of (K, d), with the nearest proportions."""
    found = [
        np.round(((_proportions(part)[:, None] - _proportions(shapes)) ** 2).sum(-1), 12).argmin(1)
        for part in np.array_split(sizes, -(-len(sizes) // 4096))
    ]
    return np.concatenate(found)


def _proportions(sizes: Sizes) -> NDArray[np.float64]:
    logs = np.log(np.maximum(sizes, 1).astype(np.float64))
    return np.asarray(logs - logs.mean(-1, keepdims=True))


def by_proportions(sizes: Sizes, side: float, most: int, multiple: int, granule: int) -> Buckets:
    """At most `most` shapes, each with `granule` items or more (but one), and the nearest of them for every item.

    The shape with the fewest items is given up, and its items go to the nearest of the others, until both hold.
    """
    distinct, inverse, counts = np.unique(sizes, axis=0, return_inverse=True, return_counts=True)
    shapes = np.asarray(shapes_of_area(side, sizes.shape[1], multiple), np.int64)
    of = nearest(distinct, shapes)
    kept = np.unique(of)
    while len(kept) > 1:
        items = np.bincount(of, weights=counts, minlength=len(shapes))[kept]
        if len(kept) <= most and items.min() >= granule:
            break
        moved = of == kept[items.argmin()]
        kept = np.delete(kept, items.argmin())
        of[moved] = kept[nearest(distinct[moved], shapes[kept])]
    named = [tuple(int(side) for side in shape) for shape in shapes[kept]]
    return _sorted(named, np.searchsorted(kept, of)[inverse.reshape(-1)], granule)


def by_length(lengths: Sizes, most: int, multiple: int, granule: int) -> Buckets:
    """At most `most` lengths with `granule` items or more each (but one), for items (N,); all but the shortest are cut."""
    count = max(1, min(most, len(lengths) // granule))
    order = np.argsort(lengths, kind="stable")
    firsts = [len(lengths) * part // count for part in range(count)]
    ladder = sorted({max(multiple, int(lengths[order[i]]) // multiple * multiple) for i in firsts})
    of = np.maximum(np.searchsorted(ladder, lengths, side="right") - 1, 0)
    return _sorted([(length,) for length in ladder], of, granule)


def _sorted(shapes: list[tuple[int, ...]], of: Sizes, granule: int) -> Buckets:
    """The shape of most items first."""
    items = np.bincount(of, minlength=len(shapes))
    order = np.argsort(-items, kind="stable")
    number = np.empty(len(shapes), np.int64)
    number[order] = np.arange(len(shapes))
    return Buckets(tuple(shapes[i] for i in order.tolist()), number[of], granule)
