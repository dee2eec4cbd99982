"""Labels, numbers and texts: what they give, that 'anything' is learned, and what they refuse."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from sfumato.conditioners import Conditioner, Label, Number, Text, Together
from sfumato.core.cond import Cond, CondShape
from sfumato.core.media import DataInfo
from sfumato.errors import UserError
from sfumato.nn import UNet
from sfumato.spec import Spec, dump_yaml, parse

INFO = DataInfo((1, 8, 8), labels=("cat", "dog", "eel"), captions=True, numbers=("age", "size"))
ROWS: dict[str, Any] = {
    "label": ["dog", "0", "eel"],
    "number": [[0.0, 5.0], [0.5, 10.0], [1.0, 7.0]],
    "caption": ["a red fox", "", "ένα κόκκινο"],
}


def made(name: str) -> Conditioner:
    torch.manual_seed(0)
    if name == "label":
        return Label(INFO, width=12)
    if name == "number":
        return Number(INFO, width=12, low=(0.0, 5.0), high=(1.0, 10.0))
    if name == "text":
        return Text(INFO, width=16, depth=2, heads=2, length=24)
    return Spec(Together, first=Spec(Label, width=4), second=Spec(Text, width=16, heads=2)).build(INFO)


every = pytest.mark.parametrize("name", ["label", "number", "text", "together"])


def parts(cond: Cond) -> dict[str, Tensor]:
    return {k: v for k in ("vector", "tokens", "mask", "concat") if (v := getattr(cond, k)) is not None}


@every
def test_gives_what_its_shape_says_and_null_has_the_same_parts(name: str) -> None:
    conditioner = made(name)
    for cond in (conditioner(conditioner.prepare(ROWS)), conditioner.null(3)):
        assert len(cond) == 3
        have = CondShape(*(0 if p is None else p.shape[-1] for p in (cond.vector, cond.tokens)))
        assert have == conditioner.shape
        assert (cond.mask is None) == (cond.tokens is None)


@every
def test_fits_a_network_and_its_null_can_be_dropped_in(name: str) -> None:
    conditioner = made(name)
    network = UNet(INFO.shape, conditioner.shape, width=8, mults=(1,), blocks=1)
    torch.nn.init.normal_(network.head.weight)
    for block in network.blocks:
        torch.nn.init.normal_(block.res.conv2.weight)
    cond = conditioner(conditioner.prepare(ROWS))
    mixed = cond.drop(torch.tensor([False, True, False]), conditioner.null(3))
    x, noise = torch.randn(3, 1, 8, 8), torch.rand(3)
    asked, nothing = network(x, noise, cond), network(x, noise, conditioner.null(3))
    got = network(x, noise, mixed)
    torch.testing.assert_close(got[[0, 2]], asked[[0, 2]], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got[1], nothing[1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(asked[0], nothing[0], atol=1e-3)


@every
def test_a_row_does_not_depend_on_the_batch(name: str) -> None:
    conditioner = made(name).double()
    whole = conditioner({k: _double(v) for k, v in conditioner.prepare(ROWS).items()})
    for i in range(3):
        one = conditioner({k: _double(v) for k, v in conditioner.prepare({c: [r[i]] for c, r in ROWS.items()}).items()})
        for key, value in parts(one).items():
            wide = parts(whole)[key][i]
            wide = wide[: len(value[0])] if key in ("tokens", "mask") else wide
            torch.testing.assert_close(value[0], wide, rtol=1e-10, atol=1e-10)


def _double(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


@every
def test_every_parameter_learns(name: str) -> None:
    conditioner = made(name)
    total = sum(
        v.square().sum()
        for cond in (conditioner(conditioner.prepare(ROWS)), conditioner.null(2))
        for k, v in parts(cond).items()
        if k != "mask"
    )
    assert isinstance(total, Tensor)
    total.backward()
    assert [n for n, p in conditioner.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)] == []


@every
def test_writes_down_and_reads_back(name: str) -> None:
    spec = {
        "label": Spec(Label, width=12),
        "number": Spec(Number, low=(0.0, 5.0), high=(1.0, 10.0)),
        "text": Spec(Text, depth=1),
        "together": Spec(Together, first="label", second=Spec(Text, width=64)),
    }[name]
    assert parse(Conditioner, yaml.safe_load(dump_yaml(spec))) == spec
    assert type(spec.build(INFO)) is type(made(name))


# ---------------------------------------------------------------- label


def test_labels_are_rows_of_the_table_by_number_or_name() -> None:
    label = made("label")
    assert isinstance(label, Label)
    for column in (torch.tensor([1, 0, 2]), ["dog", "cat", "eel"], ["1", "0", "eel"]):
        assert torch.equal(label(label.prepare({"label": column})).vector, label.table.weight[[1, 0, 2]])
    assert torch.equal(label.null(2).vector, label.table.weight[[3, 3]])


def test_class_names_that_are_numbers_are_names() -> None:
    label = Label(DataInfo((1, 8, 8), labels=("3", "7")))
    assert label.prepare({"label": ["7", "3"]})["label"].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("column", "says"),
    [
        (torch.tensor([0, 3]), "label 3 is outside 0 to 2: the data has 3 classes"),
        (torch.tensor([-1]), "label -1 is outside 0 to 2"),
        (["dgo"], "there is no class 'dgo'; did you mean 'dog'"),
        (torch.tensor([0.5]), "labels are whole numbers"),
        (torch.zeros(2, 2, dtype=torch.int64), r"shape \(2, 2\)"),
        ("dog", r"write \['dog'\]"),
        ([None], "label None is not a whole number or a class name"),
        ([1.5], "label 1.5 is not"),
        (3, r"write \[3\]"),
    ],
)
def test_bad_labels(column: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        made("label").prepare({"label": column})


# ---------------------------------------------------------------- number


def test_numbers_are_scaled_to_their_range() -> None:
    number = made("number")
    got = number.prepare({"number": torch.tensor([[0.0, 10.0], [0.25, 6.0]])})["number"]
    torch.testing.assert_close(got, torch.tensor([[0.0, 1.0], [0.25, 0.2]]))


def test_numbers_are_seen_finely() -> None:
    number = Number(DataInfo((1, 8, 8), numbers=("age",)), high=(100.0,))
    v = number(number.prepare({"number": [40.0, 41.0, 90.0]})).vector
    assert v is not None
    near, far = float((v[0] - v[1]).detach().norm()), float((v[0] - v[2]).detach().norm())
    assert 0.05 * far < near


@pytest.mark.parametrize(
    ("column", "says"),
    [
        ([[0.5, 11.0]], "size = 11 is outside 5 to 10; set low and high"),
        ([[math.nan, 6.0]], "age = nan is outside 0 to 1"),
        ([[0.5]], r"shape \(1, 1\) do not fit the 2 columns age, size"),
        ([["x", "y"]], "numbers must be numbers"),
    ],
)
def test_bad_numbers(column: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        made("number").prepare({"number": column})


# ---------------------------------------------------------------- text


def test_texts_are_bytes_padded_to_a_multiple_of_8_and_where_steps_are_recorded_of_32() -> None:
    texts = {"caption": ["abc", "", "é" * 5]}
    ids = made("text").prepare(texts)["caption"]
    assert ids.shape == (3, 16)
    assert ids[0].tolist() == [97, 98, 99] + [256] * 13
    assert ids[1].tolist() == [257] + [256] * 15
    assert made("text").to("meta").prepare(texts)["caption"].shape == (3, 32)
    assert bytes(ids[2, :10].tolist()).decode() == "é" * 5


def test_padding_changes_nothing() -> None:
    text = made("text").double()
    short = text.prepare({"caption": ["a fox"]})["caption"]
    for extra in (3, 40):
        wide = torch.cat([short, torch.full((1, extra), 256)], 1)
        a, b = text({"caption": short}), text({"caption": wide})
        torch.testing.assert_close(b.vector, a.vector, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(b.tokens[:, :8], a.tokens, rtol=1e-10, atol=1e-10)
        assert torch.equal(b.tokens[:, 8:], torch.zeros_like(b.tokens[:, 8:])) and not bool(b.mask[:, 8:].any())


def test_the_order_of_letters_counts() -> None:
    text = made("text")
    cond = text(text.prepare({"caption": ["ab", "ba", "ab"]}))
    assert torch.equal(cond.vector[0], cond.vector[2])
    assert not torch.allclose(cond.vector[0], cond.vector[1], atol=1e-3)


def test_an_empty_prompt_is_null() -> None:
    text = made("text").double()
    empty, null = text(text.prepare({"caption": [""]})), text.null(1)
    torch.testing.assert_close(empty.vector, null.vector, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(empty.tokens[:, :1], null.tokens, rtol=1e-12, atol=1e-12)
    assert int(empty.mask.sum()) == int(null.mask.sum()) == 1


@pytest.mark.parametrize(
    ("column", "says"),
    [
        (["x" * 25], "'x+' is 25 bytes long and this model reads 24.*conditioner.length=32"),
        (["é" * 13], "26 bytes long"),
        ([3], "a caption must be text, not 3"),
        ("a fox", r"write \['a fox'\]"),
        (["\ud800"], "not valid Unicode"),
        (None, "needs a 'caption'"),
    ],
)
def test_bad_texts(column: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        made("text").prepare({} if column is None else {"caption": column})


# ---------------------------------------------------------------- built for the wrong data


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: Label(DataInfo((1, 8, 8))), "the data has no labels"),
        (lambda: Text(DataInfo((1, 8, 8))), "the data has no captions"),
        (lambda: Number(DataInfo((1, 8, 8))), "the data has no numbers"),
        (lambda: Number(INFO, low=(0.0, 1.0, 2.0)), "low has 3 values for the 2 columns age, size"),
        (lambda: Number(INFO, low=(2.0,)), "low = 2.0 must be below high = 1.0 for 'age'"),
        (lambda: Text(INFO, width=20, heads=4), "width = 20 must be a multiple of 2 heads = 8"),
        (lambda: Text(INFO, depth=0), "depth = 0 must be at least 1"),
        (lambda: Spec(Together, first=Spec(Text, width=64), second="text").build(INFO), "widths 64 and 128"),
    ],
)
def test_refused_at_build(build: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        build()
