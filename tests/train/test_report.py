"""report.html: well formed, complete in itself, all text escaped, and true to the files it is made from."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from sfumato import media
from sfumato.train import MetricsLog, Run, Section, render_report, write_report
from sfumato.train.svg import Axis, Series, chart, number

EVIL = "<script>alert('x')</script>\"&"
VOID = {"meta", "img", "br", "line", "circle", "polyline"}


class Page(HTMLParser):
    """Checks that tags are closed in order and collects what a page refers to."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.images: list[Image.Image] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        for name in ("src", "href", "data", "action", "poster", "srcset"):
            if name in given:
                self.links.append(str(given[name]))
        assert not [name for name in given if name.startswith("on")]
        if tag == "img":
            head, _, data = str(given["src"]).partition(",")
            assert head == "data:image/png;base64"
            image = Image.open(io.BytesIO(base64.b64decode(data)))
            assert image.size == (int(str(given["width"])), int(str(given["height"])))
            self.images.append(image)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "digits & <more>")
    run.folder.mkdir()
    log = MetricsLog(run.metrics)
    for step in range(1, 11):
        samples = 64 * step
        entry = {"loss": 1 / step, "grad_norm": 0.5, "lr": 1e-3, "samples_per_second": 100.0}
        log.append({"step": step, "samples": samples, **entry})
        if step % 5 == 0:
            log.append({"step": step, "samples": samples, "held_out": 2 / step, "held_out_levels": [1.0, 0.5]})
            log.append({"step": step, "samples": samples, "levels": [None, *[0.1 * i for i in range(1, 20)]]})
    log.append({"step": 10, "samples": 640, "loss": float("nan"), "lr": 1e-3})
    run.set_state("finished", step=10, samples=640, seconds=185.0, progress=1.0, loss=0.1)
    run.write("data.json", {"kind": "folder", "labels": [EVIL, "b"], "train": 100, "problems": []})
    run.write("env.json", {"torch": "2", "command": ["sfumato", "train", EVIL]})
    run.write("samples/asked.json", {"request": {"prompt": [EVIL]}, "words": [EVIL]})
    for step in range(1, 13):
        sheet = media.grid([Image.new("L", (8, 8), 20 * step)] * 8, 4)
        media.save_png(sheet, run.samples / f"step-{step:08d}.png", {"samples": str(64 * step)})
    media.save_png(Image.new("L", (16, 4)), run.samples / "strip.png")
    media.save_png(Image.new("L", (9, 9)), run.folder / "nearest.png")
    run.write("scores.json", {"accuracy": {"value": 0.97, "interval": [0.95, 0.98], "real": 0.99}, EVIL: 3})
    return run


def test_it_is_well_formed_and_refers_to_nothing_outside(run: Run) -> None:
    file = write_report(run)
    text = file.read_text(encoding="utf-8")
    page = Page(text)
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not {"script", "link", "iframe", "object", "form", "base", "a"} & set(page.tags)
    assert re.findall(r"https?:|url\(|@import|//", re.sub(r"base64,[^\"]*", "", text)) == []
    assert "default-src 'none'" in text
    assert text.startswith("<!DOCTYPE html>")


def test_text_is_escaped_everywhere(run: Run) -> None:
    text = render_report(run)
    assert EVIL not in text and "<script" not in text
    page = Page(text)
    # In the classes, the command line, the command to type next, and the scores; the title too is text.
    assert page.text.count("alert('x')") >= 2
    assert text.count(html.escape("<script>alert(")) == 4
    assert "digits & <more>" in page.text


def test_it_shows_what_the_files_say(run: Run) -> None:
    page = Page(render_report(run))
    for word in ("finished", "100%", "640", "3 min 05 s", "0.1000", "0.2000", "0.95 to 0.98", "768 samples"):
        assert word in page.text, word
    # The newest sheet, eight of the eleven before it as they came, the strip, and what was drawn after training.
    assert len(page.images) == 11
    assert "nearest" in page.text
    assert page.text.index("768 samples") < page.text.index("64 samples")
    assert page.tags.count("svg") == 5


def test_sections_can_be_added(run: Run) -> None:
    page = Page(render_report(run, [Section("Mine <1>", "<p class=x>hello</p>")]))
    assert "Mine <1>" in page.text and "hello" in page.text


def test_of_an_empty_run_there_is_a_page_too(tmp_path: Path) -> None:
    page = Page(render_report(Run(tmp_path / "empty")))
    assert page.images == [] and "svg" not in page.tags
    assert "sfumato sample" in page.text


def test_damaged_files_are_left_out(run: Run) -> None:
    (run.samples / "step-00000012.png").write_bytes(b"not a picture")
    (run.folder / "scores.json").write_text("{")
    (run.folder / "data.json").write_text("[]")
    assert len(Page(render_report(run)).images) == 10


def test_an_interrupted_run_says_how_to_go_on(run: Run) -> None:
    run.set_state("interrupted", step=1, samples=64)
    run.write("env.json", {"command": ["sfumato", "train", "digits", "data=my photos"]})
    assert "sfumato train digits 'data=my photos'" in Page(render_report(run)).text


def test_many_lines_stay_a_small_page(run: Run) -> None:
    with run.metrics.open("a") as stream:
        for step in range(20_000):
            stream.write(json.dumps({"step": step, "samples": 64 * step, "loss": 0.5}) + "\n")
    assert len(render_report(run)) < 200_000


# ---------------------------------------------------------------- charts


def test_points_are_where_they_belong() -> None:
    # The plot area is 58 ... 548 by 10 ... 258 in a box of 560 by 300.
    made = chart([Series("a", [0, 5, 10], [0, 1, 2])], "x", from_zero=True)
    assert 'points="58.0,258.0 303.0,134.0 548.0,10.0"' in made


def test_on_a_log_scale_equal_ratios_are_equal_lengths() -> None:
    axis = Axis(0.01, 100.0, log=True)
    assert [axis(v) for v in (0.01, 1.0, 10.0, 100.0)] == pytest.approx([0, 0.5, 0.75, 1])
    assert axis.ticks() == pytest.approx([0.01, 0.1, 1, 10, 100])


@pytest.mark.parametrize("limits", [(0.0, 1.0), (0.13, 0.1301), (-3.0, 17.0), (0.0, 123456.0)])
def test_ticks_are_few_and_inside(limits: tuple[float, float]) -> None:
    ticks = Axis(*limits, log=False).ticks()
    assert 2 <= len(ticks) <= 7
    assert all(limits[0] - 1e-9 <= tick <= limits[1] + 1e-9 for tick in ticks)


@pytest.mark.parametrize("y", [[1.0], [2.0, 2.0], [0.0, 0.0], [float("nan"), 1.0], [-1.0, 1.0]])
def test_awkward_series_are_drawn(y: list[float]) -> None:
    made = chart([Series("s", list(range(len(y))), y)], "x", log_y=True)
    assert made.startswith("<svg") and "nan" not in made and "inf" not in made


def test_nothing_to_draw_is_nothing() -> None:
    assert chart([Series("s", [], [])], "x") == ""


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (1.5, "1.5"), (12345, "12.35k"), (2e6, "2M"), (0.02, "0.02"), (3e-5, "3.0e-5")]
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text
