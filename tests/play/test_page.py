"""The page in a real browser that reaches this machine alone: each control is used, and the pixels change."""

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from browser import Browser
from cmdist.errors import CmdistError
from cmdist.play import player, server
from cmdist.play.room import Room
from ranks import REPOSITORY, pipeline
from runs import GUIDABLE, make_data, make_run

EMOJI = REPOSITORY / "configs/emoji"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Of a page with the models that come with the code."""
    cpu = torch.device("cpu")
    models = [player.opened(f"{EMOJI}/{n}.yaml", f"{EMOJI}/weights/{n}.safetensors", None, cpu) for n in ("cd", "edm")]
    with server.listening(0) as at:
        serving = server.serving(Room(*models), at)
        thread = threading.Thread(target=serving.serve_forever, daemon=True)
        thread.start()
        yield at.getsockname()[1]
        serving.shutdown()
        thread.join(10)


@pytest.fixture
def page(port: int, tmp_path: Path) -> Iterator[Browser]:
    browser = Browser(tmp_path)
    try:
        assert browser.open(f"http://127.0.0.1:{port}/") is None
        browser.wait("document.body && document.body.dataset.ready", "the page is ready")
        yield browser
        strange = [url for url in browser.requests if not url.startswith((f"http://127.0.0.1:{port}/", "data:"))]
        assert strange == []
        assert [
            said for said in browser.complaints if "Failed to load resource" not in said
        ] == []  # those are asked for
    finally:
        browser.close()


def pictures(page: Browser, row: str) -> list[str]:
    """The pictures of a row, once nothing is being computed."""
    page.wait("!document.querySelector('.busy')", "the page rests")
    return list(page.see(f"[...document.querySelectorAll('#{row} img')].map(e => e.src)"))


def put(page: Browser, control: str, value: object) -> None:
    """Give a control a value as the mouse or the keys would."""
    page.see(
        f"(e => {{ if (e.type === 'checkbox') e.checked = {json.dumps(value)}; else e.value = {json.dumps(value)}; "
        "for (const kind of ['input', 'change']) e.dispatchEvent(new Event(kind, {bubbles: true})) })"
        f"(document.getElementById({json.dumps(control)}))"
    )


def error(page: Browser, panel: str) -> str:
    page.wait("!document.querySelector('.busy')", "the page rests")
    return str(page.see(f"document.querySelector('#{panel} .error').textContent"))


def test_samples_change_with_seed_steps_and_times_and_two_models_stand_side_by_side(page: Browser) -> None:
    first = pictures(page, "samples")
    assert len(set(first)) == 6
    page.click("#next")
    assert not set(pictures(page, "samples")) & set(first)
    put(page, "seed", "1")
    assert pictures(page, "samples")[:5] == first[1:]
    put(page, "steps", "2")
    two = pictures(page, "samples")
    assert not set(two) & set(first)
    put(page, "time-1", "0.9")
    later = pictures(page, "samples")
    assert not set(later) & set(two)
    put(page, "beside", True)
    above, below = pictures(page, "samples"), pictures(page, "besides")
    assert above == later[:3] and len(set(below)) == 3 and not set(above) & set(below)
    put(page, "beside", False)
    assert pictures(page, "besides") == []
    put(page, "steps", "1")
    told = page.wait("document.querySelector('#sample .told').textContent", "the time is told")
    count, seconds = int(told.split()[0]), float(told.split()[-2])
    assert count == 6 and seconds / count < 0.3


def test_a_way_leads_from_seed_to_seed(page: Browser) -> None:
    way = pictures(page, "way")
    assert way[4] == way[9] and way[0] == pictures(page, "samples")[0] and way[8] == pictures(page, "samples")[1]
    put(page, "share", "1")
    assert pictures(page, "way")[9] == way[8]
    put(page, "to", "5")
    other = pictures(page, "way")
    assert other[0] == way[0] and other[8] == pictures(page, "samples")[5]
    put(page, "from", "3")
    assert pictures(page, "way")[0] == pictures(page, "samples")[3]


def test_each_task_edits_what_is_drawn_or_uploaded(page: Browser, tmp_path: Path) -> None:
    seen = [pictures(page, "edits")]
    assert len(seen[0]) == 4

    def changed(what: str) -> None:
        now = pictures(page, "edits")
        assert error(page, "edit") == "" and now[1:] and not set(now[1:]) & set(seen[-1][1:]), what
        seen.append(now)

    page.click("#clear")
    assert "nothing is generated" in error(page, "edit") or "mask" in error(page, "edit")
    page.drag("#board", (0.2, 0.2), (0.8, 0.8))
    changed("a stroke of the mask")
    page.click("#invert")
    changed("the mask inverted")
    put(page, "brush", "keep")
    put(page, "width", "9")
    page.drag("#board", (0.1, 0.9), (0.3, 0.7))
    changed("a part kept")
    put(page, "levels", "20")
    changed("more levels")
    put(page, "edit-times", "80 5 1")
    changed("other times")
    put(page, "edit-seed", "7")
    changed("another seed")
    put(page, "count", "2")
    assert len(pictures(page, "edits")) == 3
    for task in ("colourise", "superresolve"):
        put(page, "task", task)
        changed(task)
    put(page, "patch", "8")
    changed("larger patches")
    put(page, "task", "stroke")
    page.click("#white")
    changed("a white sheet")
    put(page, "colour", "#2040d0")
    page.drag("#board", (0.3, 0.5), (0.7, 0.5))
    changed("a stroke of colour")
    put(page, "task", "denoise")
    page.click("#take")
    changed("denoising of the first sample")
    put(page, "sigma", "2")
    changed("more noise")
    put(page, "add-noise", True)
    changed("noise added")
    colours = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "wide.png")
    page.upload("#file", tmp_path / "wide.png")
    page.wait("document.querySelector('#upload .error').textContent", "a picture of another shape is refused")
    put(page, "fit", True)
    changed("an uploaded picture")
    (tmp_path / "none.png").write_text("no picture")
    page.upload("#file", tmp_path / "none.png")
    assert "none.png" in page.wait("document.querySelector('#upload .error').textContent", "what is no picture")


def test_what_cannot_be_is_a_sentence_on_the_page(page: Browser, tmp_path: Path) -> None:
    put(page, "steps", "heun")
    assert "a consistency model takes a number" in error(page, "sample")
    put(page, "steps", "1")
    put(page, "seed", "-1")
    assert "seed" in error(page, "sample")
    put(page, "seed", "0")
    assert error(page, "sample") == ""
    page.type("#run", str(tmp_path / "nothing"))
    page.click("#open button")
    page.wait("document.querySelector('#models .error').textContent", "a run that is not there")
    assert len(set(pictures(page, "samples"))) == 6  # what was open stays open
    run = make_run(tmp_path, "ct", make_data(tmp_path / "data"))
    page.type("#run", str(run))
    page.click("#open button")
    page.wait("document.getElementById('first-title').textContent.startsWith('ct, step 10')", "a run is open")
    page.wait("document.querySelectorAll('#label option').length === 10", "it has classes")
    grey = pictures(page, "samples")
    put(page, "label", "7")
    assert not set(pictures(page, "samples")) & set(grey)
    put(page, "beside", True)
    assert "side by side they must be equal" in error(page, "sample")
    put(page, "slot", "second")
    page.click("#open button")
    page.wait("document.getElementById('second-title').textContent.startsWith('ct, step 10')", "and as the second")
    put(page, "beside-steps", "1")
    assert pictures(page, "besides") == pictures(page, "samples") and error(page, "sample") == ""


def test_a_model_that_knows_no_class_is_guided_and_the_one_beside_it_is_not(page: Browser, tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    runs = {
        "first": make_run(tmp_path, "edm", data, "denoising", **GUIDABLE),
        "second": make_run(tmp_path, "ct", data),
    }
    assert page.wait("document.getElementById('guided').hidden", "the shipped model is not guided")
    for slot, run in runs.items():
        put(page, "slot", slot)
        page.type("#run", str(run))
        page.click("#open button")
        page.wait(f"document.getElementById('{slot}-title').textContent.startsWith('{run.name}, ')", "it is open")
    put(page, "beside", True)
    page.wait("!document.getElementById('guided').hidden", "this one is")
    before, beside = pictures(page, "samples"), pictures(page, "besides")
    put(page, "guidance", "4")
    assert not set(pictures(page, "samples")) & set(before) and pictures(page, "besides") == beside
    put(page, "guidance", "1")
    assert pictures(page, "samples") == before
    put(page, "guidance", "101")
    assert "guidance" in error(page, "sample")


def test_its_server_answers_this_machine_and_its_own_page_only(port: int) -> None:
    def reply(method: str, path: str, body: str = "", **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    assert reply("GET", "/")[0] == 200 and reply("GET", "/play.js")[0] == 200
    assert reply("GET", "/server.py")[0] == 404 and reply("GET", "/../server.py")[0] == 404
    assert reply("GET", "/", Host="evil.example")[0] == 400
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert reply("POST", "/sample", "seed=1", **form)[0] == 415
    kind = {"Content-Type": "application/json"}
    status, said = reply("POST", "/sample", '{"slot": "third"}', **kind)
    assert status == 400 and "error" in json.loads(said)
    assert reply("POST", "/nothing", "{}", **kind)[0] == 404
    assert reply("POST", "/sample", "{", **kind)[0] == 400


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["runs/nowhere"], "runs/nowhere"),
        (["--weights", "x.safetensors"], "--weights is of a model, and none is given"),
        (["--beside-weights", "x.safetensors"], "--beside-weights is of a model"),
        (["--port", "99999"], "99999"),
    ],
)
def test_a_page_that_cannot_be_is_one_sentence(arguments: list[str], sentence: str) -> None:
    with pytest.raises(CmdistError) as caught:
        pipeline("play").main(arguments)
    assert sentence in str(caught.value) and caught.value.exit_code == 2
