"""pipelines/compare.py on small runs whose figures are put into MLflow by evaluate.py; its report, also in a real
browser.
"""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from cmdist.errors import ConfigError, DataError
from cmdist.report import comparison, sections
from cmdist.tracking.journal import Journal
from cmdist.tracking.mlflow import spool_folder
from ranks import pipeline
from runs import call, make_data, make_run

compare = pipeline("compare")
evaluate = pipeline("evaluate")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("runs")
    data = make_data(root / "data")
    made = {"edm": make_run(root, "edm", data, objective="denoising")}
    made["cd"] = make_run(root, "cd", data, objective="consistency_distillation", teacher=str(root / "edm"))
    made["ct"] = make_run(root, "ct", data)
    for run in made.values():
        call(evaluate.main, run, "--n", "300")
    call(evaluate.main, "reference", str(data), "--n", "300")
    made["odd"] = make_run(root, "odd", data)
    call(evaluate.main, str(made["odd"]), "--n", "256")
    made["new"] = make_run(root, "new", data)  # not evaluated
    return made


def compared(capsys, *arguments: str) -> tuple[dict[str, list[str]], str]:
    capsys.readouterr()
    call(compare.main, *arguments)
    text = capsys.readouterr().out
    lines = [line for line in text.splitlines() if line.count("  ") >= 6]
    return {
        cells[0]: cells
        for cells in (
            [
                c.strip()
                for c in line.replace(" [B]", "[B]").replace(" (B)", "(B)").replace(" min", "_min").split("  ")
                if c.strip()
            ]
            for line in lines
        )
    }, text


def value(run: Path, metric: str) -> str:
    (path,) = (run / "evaluations").glob(f"*{metric}*.json")
    found = json.loads(path.read_text())["metrics"][metric]
    return f"{found:.2f}" if found >= 1 else f"{found:.3g}"


def test_table_shows_each_runs_figures(runs, capsys, tmp_path):
    rows, text = compared(capsys, *(str(runs[name]) for name in ("edm", "cd", "ct")), "--out", str(tmp_path))
    ode = value(runs["edm"], "fd_ode")
    assert rows["edm"] == ["edm", "denoising", "10", "0.9", "-", "-", ode, "10_min"]
    one, two = value(runs["cd"], "fd_1step"), value(runs["cd"], "fd_2step")
    assert rows["cd"] == [
        "cd",
        "consistency_distillation",
        "10",
        "0.9",
        one,
        two,
        f"({ode})",
        "10_min",
    ]  # the teacher's in brackets
    assert rows["ct"][-2:] == ["-", "10_min"]
    assert "(B)" not in text and "for reference: real images, drawn with replacement" in text
    assert Image.open(tmp_path / "comparison.png").size == (1440, 540)
    assert Image.open(tmp_path / "samples.png").height > 5 * 4 * 40  # five blocks of four rows


def test_figures_of_another_protocol_have_columns_of_their_own_unless_mixed(runs, capsys, tmp_path):
    folders = [str(runs[name]) for name in ("cd", "ct", "odd")]
    rows, text = compared(capsys, *folders, "--out", str(tmp_path))
    assert rows["run"][4:8] == ["FD one-step", "FD one-step(B)", "FD two-step", "FD two-step(B)"]
    assert rows["odd"][4:8] == ["-", value(runs["odd"], "fd_1step"), "-", value(runs["odd"], "fd_2step")]
    assert rows["cd"][5] == rows["cd"][7] == rows["ct"][5] == "-"
    (note,) = [line for line in text.splitlines() if line.startswith("(B)")]
    assert (
        note
        == "(B) not comparable with the rest: odd fd_1step, odd fd_2step (n 256, not 300; seeds [0, 255], not [0, 299])"
    )
    rows, text = compared(capsys, *folders, "--out", str(tmp_path), "--mixed")
    assert rows["run"][4:6] == ["FD one-step", "FD two-step"]
    assert rows["odd"][4:6] == [value(runs["odd"], "fd_1step") + "[B]", value(runs["odd"], "fd_2step") + "[B]"]
    assert "[B]" not in "".join(rows["cd"] + rows["ct"])
    assert "<small>(B)</small>" in (tmp_path / "report.html").read_text()


def test_run_without_figures_and_whole_experiment(runs, capsys, tmp_path):
    uri = f"sqlite:///{runs['ct'].parent}/mlflow.db"
    everything = runs["new"]
    compared(capsys, str(everything), "--out", str(tmp_path))  # delivers its journal
    rows, _ = compared(capsys, "--experiment", "tests", "--uri", uri, "--out", str(tmp_path))
    assert {"edm", "cd", "ct", "odd", "new"} <= set(rows)
    assert rows["new"][2:7] == ["-", "-", "-", "-", "-"]


def test_what_cannot_be_compared_is_a_sentence(runs, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError, match="give run folders or --experiment"):
        call(compare.main)
    with pytest.raises(ConfigError, match="needs --uri"):
        call(compare.main, "--experiment", "x")
    with pytest.raises(DataError, match="is not a run folder"):
        call(compare.main, str(tmp_path))
    with pytest.raises(DataError, match="holds no runs"):
        call(compare.main, "--experiment", "nothing", "--uri", f"sqlite:///{runs['ct'].parent}/mlflow.db")


# --- the report


LONG = "a-run-whose-name-somebody-wrote-like-a-sentence-about-everything-that-was-tried-in-it-0123456789"


@pytest.fixture(scope="module")
def page(runs) -> Path:
    """Eight runs: teacher, distillation, training, another protocol, one without figures, a very long name, points that
    are not finite.
    """
    root = runs["ct"].parent
    made = [*runs.values(), *(make_run(root, name, root / "data") for name in (LONG, "broken", "last"))]
    for place, run in enumerate(made):
        journal = Journal(spool_folder(str(run)))
        for step in range(1, 11):
            broken = float("nan") if run.name == "broken" else 1.0
            values = {
                "n_timesteps": 2 + step // 4,
                "mu": 0.9 + step / 200,
                "consistency_error": broken * (0.1 + place / 100) / step,
            }
            values |= {
                f"loss_sigma_{low}_{high}": high / step for low, high in ((0.002, 0.0075), (0.0075, 0.0283), (21.3, 80))
            }
            journal.append(
                {"kind": "metrics", "time": step, "step": step, "values": values | {"device_hours": step / 100}}
            )
    folder = runs["cd"] / "glances"
    folder.mkdir()
    for path in (runs["cd"] / "evaluations").glob("*.npz"):
        kind = re.search(r"fd_(\w+step)", path.name)[1]
        for step in (5, 10):
            (folder / f"step-{step:010d}-{kind}.npz").write_bytes(path.read_bytes())
    call(compare.main, *made, "--out", root / "eight", "--html", root / "eight.html")
    return root / "eight.html"


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
    assert {"1step samples of cd", "2step samples of odd", "ode samples of edm", "cd, step 5", "cd, step 10"} <= set(
        pictures
    )
    for text in (
        "Configuration",
        "Protocols",
        "run.seed",
        "objective.curriculum.kind",
        LONG,
        "settings that are the same",
    ):
        assert text in found.text


def test_names_and_values_are_escaped():
    run = {
        "id": "1",
        "name": "<script>alert(1)</script>",
        "params": {"a": "<b>"},
        "tags": {},
        "metrics": {},
        "start": 0,
        "end": 1,
    }
    row = comparison.Row(run | {"status": "FINISHED", "parent": None}, "none", "<script>alert(1)</script>")
    text = sections.render([row], [], ["<i>note</i>"])
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
    colours: [...new Set(
      [...document.querySelectorAll('.keys circle, .keys polygon')].map(e => getComputedStyle(e).fill))],
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
    done = subprocess.run(
        [*command, "--virtual-time-budget=3000", copy.as_uri()], capture_output=True, text=True, timeout=120
    )
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
