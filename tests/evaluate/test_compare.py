"""Two reports: ratios where they asked the same, one sentence where they did not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from sfumato.errors import UserError
from sfumato.evaluate import compare_reports


def report(value: float = 4.0) -> dict[str, Any]:
    extractor = {
        "name": "wrn16-4",
        "sha256": "aa",
        "resize": "none",
        "dims": 256,
        "scores": ["fd_wrn16-4", "kid_wrn16-4"],
    }
    return {
        "run": "runs/x",
        "data": "cifar10",
        "n": 10_000,
        "metrics": {
            "fd_wrn16-4": {"value": value, "interval": [value - 0.5, value + 0.5], "real": 1.0},
            "kid_wrn16-4": {"value": 0.0, "interval": None, "real": None},
            "nll": {"value": 3.5, "interval": [3.4, 3.6], "real": None},
            "fd": {"value": 2.0, "interval": [1.0, 3.0], "real": 1.0},
        },
        "features": {"name": "wrn16-4", "sha256": "aa"},
        "settings": {
            "fingerprint": "f1",
            "part": "held_out",
            "seed": 0,
            "features": {
                "samples": 10_000,
                "training_items": 50_000,
                "held_out_items": 10_000,
                "compared": 10_000,
                "k": 5,
                "extractors": [extractor],
                "sampling": {"num_inference_steps": 20},
            },
            "nll": {"evaluations": 100, "standard_errors": {"items": 0.01}, "network_evaluations": 88},
            "class_scores": {"samples": 1000, "judge": "jj"},
        },
    }


def test_like_reports_give_ratios_and_whether_intervals_meet() -> None:
    first, second = report(4.0), report(5.0)
    second["settings"]["features"]["sampling"] = {"num_inference_steps": 10}
    second["settings"]["seed"] = 7
    second["settings"]["nll"]["standard_errors"] = {"items": 0.02}
    found = compare_reports(first, second)
    assert list(found) == list(first["metrics"])
    fd = found["fd_wrn16-4"]
    assert (fd.ratio, fd.apart) == (0.8, False)  # 3.5 ... 4.5 and 4.5 ... 5.5 touch
    assert found["kid_wrn16-4"].ratio is None and found["kid_wrn16-4"].apart is None
    assert compare_reports(report(4.0), report(6.0))["fd_wrn16-4"].apart is True
    assert fd.to_dict()["second"]["value"] == 5.0


def of_features(key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda r: r["settings"]["features"].__setitem__(key, value)


def of_extractor(key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda r: r["settings"]["features"]["extractors"][0].__setitem__(key, value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (of_extractor("sha256", "bb"), "fd_wrn16-4 can't be compared: the sha256 of the extractor wrn16-4 is aa in A and bb"),
        (of_extractor("resize", "bilinear 299"), "the resize is none in A and bilinear 299 in B"),
        (of_features("samples", 5000), "the number of samples is 10,000 in A and 5,000 in B"),
        (of_features("training_items", 20), "the number of training items is 50,000 in A and 20 in B"),
        (of_features("held_out_items", 20), "the number of held-out items is 10,000 in A and 20 in B"),
        (of_features("compared", 20), "the number of items compared with one another is 10,000 in A and 20 in B"),
        (of_features("k", 3), "the neighbour k is 5 in A and 3 in B"),
        (lambda r: r["settings"].update(fingerprint="f2"), "the fingerprint of the real data is f1 in A and f2 in B"),
        (lambda r: r["settings"].update(part="train"), "the part of the data is held_out in A and train in B"),
        (lambda r: r["settings"].pop("part"), "the part of the data is held_out in A and not stated in B"),
        (lambda r: r["settings"]["nll"].update(evaluations=50), "the setting nll.evaluations is 100 in A and 50 in B"),
        (lambda r: r.update(n=512), "nll can't be compared: the number of held-out items is 10,000 in A and 512 in B"),
        (lambda r: r["settings"]["class_scores"].update(judge="kk"), "fd can't be compared: the sha256 of the judge is jj"),
        (lambda r: r["settings"]["class_scores"].update(samples=9), "the number of samples is 1,000 in A and 9 in B"),
    ],
)  # fmt: skip
def test_unlike_reports_are_refused_with_both_values(change: Callable[[dict[str, Any]], Any], said: str) -> None:
    other = copy.deepcopy(report())
    change(other)
    for names, pair in ((("A", "B"), (report(), other)),):
        with pytest.raises(UserError) as caught:
            compare_reports(*pair, names)
        assert said in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError):
        compare_reports(other, report())


def test_reports_in_other_features_or_of_other_metrics() -> None:
    other = report()
    other["metrics"] = {"fd_vgg64": other["metrics"]["fd_wrn16-4"]}
    other["settings"]["features"]["extractors"][0]["name"] = "vgg64"
    with pytest.raises(UserError, match="the extractor is wrn16-4 in A and vgg64 in B; run `sfumato eval` again"):
        compare_reports(report(), other, ("A", "B"))
    losses = {"metrics": {"held_out": {"value": 1.0}}, "settings": {}}
    with pytest.raises(UserError, match="A and B have no metric in common"):
        compare_reports(report(), losses, ("A", "B"))
