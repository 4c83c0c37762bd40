"""The report of compare.py: what stands in it, and how a real browser shows it."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from cmdist import comparison, report
from cmdist.journal import Journal
from cmdist.tracking import spool_folder
from ranks import pipeline
from runs import call, make_data, make_run

LONG = "a-run-whose-name-somebody-wrote-like-a-sentence-about-everything-that-was-tried-in-it-0123456789"


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """Eight runs: teacher, distillation, training, a very long name, one without figures, one whose points are not finite."""
    root = tmp_path_factory.mktemp("runs")
    data = make_data(root / "data")
    made = [make_run(root, "edm", data, objective="denoising")]
    made.append(make_run(root, "cd", data, objective="consistency_distillation", teacher=str(root / "edm")))
    made += [make_run(root, name, data) for name in ("ct", LONG, "ict", "g", "h", "i")]
    for place, run in enumerate(made):
        journal = Journal(spool_folder(str(run)))
        for step in range(1, 11):
            broken = float("nan") if run.name == "g" else 1.0
            values = {"n_timesteps": 2 + step // 4, "mu": 0.9 + step / 200, "consistency_error": broken * (0.1 + place / 100) / step}
            values |= {f"loss_sigma_{low}_{high}": high / step for low, high in ((0.002, 0.0075), (0.0075, 0.0283), (21.3, 80))}
            journal.append({"kind": "metrics", "time": step, "step": step, "values": values | {"device_hours": step / 100}})
    evaluate = pipeline("evaluate")
    for run in made[:4]:
        call(evaluate.main, run, "--n", "300")
    call(evaluate.main, made[4], "--n", "256")
    folder = made[2] / "glances"
    folder.mkdir()
    for path in (made[2] / "evaluations").glob("*.npz"):
        kind = re.search(r"fd_(\w+step)", path.name)[1]
        for step in (5, 10):
            (folder / f"step-{step:010d}-{kind}.npz").write_bytes(path.read_bytes())
    call(pipeline("compare").main, *made, "--out", root / "comparison")
    return root / "comparison" / "report.html"


class Elements(HTMLParser):
    """Tags with their attributes, and the text of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_the_file_needs_nothing_else(page):
    found = Elements(page.read_text())
    for tag, attributes in found.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert all(attributes.get(name, "data:").startswith("data:") for name in ("src", "href")), (tag, attributes)
    assert "@import" not in page.read_text() and "url(" not in page.read_text() and "fetch(" not in page.read_text()


def test_everything_that_was_asked_for_is_there(page):
    found = Elements(page.read_text())
    labels = [a["aria-label"] for tag, a in found.tags if tag == "svg" and "aria-label" in a]
    for label in ("loss", "N(k)", "mu(k)", "consistency error", "loss by noise level at the end"):
        assert label in labels
    assert {f"FD one-step, 300 images by {axis}" for axis in ("images seen", "device-hours")} < set(labels)
    assert any(label.startswith("FD one-step, 300 images by wall time") for label in labels)
    assert sum(label.startswith("FD one-step, 256 images (B)") for label in labels) == 3
    pictures = [a["alt"] for tag, a in found.tags if tag == "img"]
    assert {"1step samples of cd", "2step samples of ict", "ode samples of edm", "ct, step 5", "ct, step 10"} <= set(pictures)
    for text in ("Configuration", "Protocols", "run.seed", "curriculum.kind", LONG, "settings that are the same"):
        assert text in found.text


def test_names_and_values_are_escaped():
    run = {"id": "1", "name": "<script>alert(1)</script>", "params": {"a": "<b>"}, "tags": {}, "metrics": {}, "start": 0, "end": 1}
    row = comparison.Row(run | {"status": "FINISHED", "parent": None}, "none", "<script>alert(1)</script>")
    text = report.render([row], [], ["<i>note</i>"])
    assert "<script>alert" not in text and "<b>" not in text and "<i>note" not in text and "&lt;script&gt;alert" in text


# --- in a browser

_LOOK = """<script>addEventListener('load', () => {
  const chart = document.querySelector('svg.chart'), box = chart.getBoundingClientRect();
  chart.dispatchEvent(new PointerEvent('pointermove', { clientX: box.right - 20, clientY: box.top + 20 }));
  const tip = document.getElementById('tip');
  document.body.dataset.seen = JSON.stringify({
    images: [...document.images].map(i => { i.loading = 'eager'; return [i.complete, i.naturalWidth]; }),
    charts: [...document.querySelectorAll('svg.chart')].map(s => {
      const b = s.querySelector('.series').getBBox(), r = s.getBoundingClientRect();
      return [r.width, r.height, b.width + b.height]; }),
    wide: document.documentElement.scrollWidth - innerWidth,
    colours: [...new Set([...document.querySelectorAll('.keys circle, .keys polygon')].map(e => getComputedStyle(e).fill))],
    background: getComputedStyle(document.body).backgroundColor, tip: [tip.style.display, tip.textContent] });
})</script>"""


def browse(page: Path, folder: Path, width: int, dark: bool) -> dict:
    """What chromium shows of a page; fails on any message in its console."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")
    copy, picture = folder / "page.html", folder / f"{width}-{'dark' if dark else 'light'}.png"
    copy.write_text(page.read_text().replace('loading="lazy"', "").replace("</body>", _LOOK + "</body>"))
    command = [
        program,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={folder / 'profile'}",
        "--enable-logging=stderr",
    ]
    command += [
        f"--window-size={width},1600",
        f"--screenshot={picture}",
        "--dump-dom",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
    ]
    done = subprocess.run([*command, "--virtual-time-budget=3000", copy.as_uri()], capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr, done.stderr
    seen = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert seen, done.stderr
    return json.loads(seen[1].replace("&quot;", '"')) | {"picture": Image.open(picture).convert("RGB")}


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (500, True)])
def test_a_browser_shows_it_without_complaint(page, tmp_path, width, dark):
    seen = browse(page, tmp_path, width, dark)
    assert len(seen["images"]) >= 11 and all(complete and pixels > 50 for complete, pixels in seen["images"])
    assert len(seen["charts"]) >= 15 and all(w > 200 and h > 100 and drawn > 1 for w, h, drawn in seen["charts"])
    assert seen["wide"] <= 0, "the page scrolls sideways"
    assert len(seen["colours"]) == 8
    assert seen["tip"][0] == "block" and "cd" in seen["tip"][1]
    corner = seen["picture"].getpixel((3, 3))
    assert (max(corner) < 40) if dark else (min(corner) > 230)
