"""The viewer of a report: what is written into the page, and a browser that draws and turns it."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from sfumato.core import DataInfo
from sfumato.kinds import kind_of
from sfumato.solid import viewer
from sfumato.train import Run
from sfumato.train.report import VIEW, render_report

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")


def block(*sides: int, at: tuple[int, int, int] = (1, 1, 0), grid: int = 8) -> np.ndarray:  # type: ignore[type-arg]
    voxels = np.zeros((4, grid, grid, grid), np.uint8)
    x, y, z = at
    voxels[:, x : x + sides[0], y : y + sides[1], z : z + sides[2]] = np.asarray([200, 90, 30, 255])[
        :, None, None, None
    ]
    return voxels


def test_every_voxel_that_can_be_seen_is_in_the_page() -> None:
    model = block(4, 4, 4)
    html = viewer.fragment([model], ['<b> & "quotes"'])
    rows = np.frombuffer(base64.b64decode(re.findall(r'data-voxels="([^"]*)"', html)[0]), np.uint8).reshape(-1, 6)
    assert len(rows) == 64 - 8  # all but the inside
    assert (rows[:, 3:] == [200, 90, 30]).all()
    assert {tuple(r) for r in rows[:, :3].tolist()} <= {tuple(p) for p in np.argwhere(model[3]).tolist()}
    assert "<b>" not in html
    assert "&lt;b&gt;" in html


def test_the_report_allows_this_script_and_no_other(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    assert "<script" not in render_report(run)
    info = DataInfo((4, 8, 8, 8), "voxels")
    html = kind_of(info).viewer([], info, [])
    run.write(VIEW, {"kind": "voxels", "html": html})
    page = render_report(run)
    assert page.count("<script") == 1
    assert re.search(r"default-src 'none'; [^\"]*script-src 'sha256-[A-Za-z0-9+/=]{44}'\"", page)
    run.write(VIEW, {"kind": "nothing known", "html": html})
    assert "<script" not in render_report(run)


@pytest.mark.skipif(BROWSER is None, reason="no headless browser (chromium) is installed")
def test_a_browser_draws_the_models_and_turns_them(tmp_path: Path) -> None:
    models = [block(1, 1, 1), block(3, 2, 1), block(2, 2, 2)]
    run = Run(tmp_path / "run")
    run.write(VIEW, {"kind": "voxels", "html": viewer.fragment(models, ["one", "six", "eight"])})
    page = render_report(run)
    still = _dom(page, tmp_path / "still.html")
    assert re.findall(r'data-state="([^"]*)"', still) == ["drawn"] * 3
    assert re.findall(r'data-triangles="(\d+)"', still) == ["12", "44", "48"]  # two for each outer face
    yaw = re.findall(r'data-yaw="([^"]*)"', still)[0]
    turning = """<script>
        const canvas = document.querySelector("canvas.voxels");
        canvas.setPointerCapture = () => {};
        for (const [type, x] of [["pointerdown", 10], ["pointermove", 60], ["pointerup", 60]])
          canvas.dispatchEvent(new PointerEvent(type, { clientX: x, clientY: 20, pointerId: 1 }));
        document.querySelectorAll("canvas.voxels")[1].dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
    </script></body>"""
    # A browser that shows nothing may put off a frame beyond what it is given; a timer it does not.
    timers = "<script>window.requestAnimationFrame = (draw) => setTimeout(draw, 0);</script>"
    free = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', timers, page).replace("</body>", turning)
    turned = [float(value) for value in re.findall(r'data-yaw="([^"]*)"', _dom(free, tmp_path / "turned.html"))]
    assert turned == pytest.approx([float(yaw) - 50 * 0.012, float(yaw) + 0.1, float(yaw)], abs=1e-3)


def _dom(page: str, file: Path) -> str:
    file.write_text(page, encoding="utf-8")
    done = subprocess.run(
        [str(BROWSER), "--headless", "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader",
         "--enable-unsafe-swiftshader", "--virtual-time-budget=3000", "--dump-dom", f"file://{file}"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return done.stdout
