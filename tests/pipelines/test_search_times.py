"""The search of times on a small run: as good as a full scan, killed and gone on with, on one rank and two."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from cmdist import tuning
from cmdist.core.noise import karras_sigmas
from cmdist.errors import ConfigError
from cmdist.evaluation import records
from ranks import Ranks, pipeline, run_pipeline
from runs import call, make_data, make_run

search_times, evaluate = pipeline("search_times"), pipeline("evaluate")
SMALL = ("--levels", 14, "--few", 130, "--many", 160)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "data")


def result(run: Path) -> dict[str, Any]:
    (path,) = (run / "evaluations").glob("times-*.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_it_is_as_good_as_a_full_scan_and_its_times_can_be_used(tmp_path: Path, data: Path, capfd) -> None:
    run = make_run(tmp_path, "ct", data)
    call(search_times.main, run, *SMALL)
    found = result(run)
    assert found["metric"] == "fd" and found["times"][0] == 80.0 and len(found["times"]) == 2
    assert (run / "evaluations/times-2.png").read_bytes().startswith(b"\x89PNG")
    grid = karras_sigmas(14).tolist()
    scanned = {}
    for level in grid[1:-1]:
        call(evaluate.main, run, "--steps", 2, "--times", 80, level, "--n", 160)
        line = capfd.readouterr().out.splitlines()[-1]
        scanned[level] = float(line.split()[1])
    decided = {time: score for time, images, score in found["probes"][0] if images == 160}
    assert set(decided) <= set(scanned) and scanned[found["times"][1]] == pytest.approx(min(decided.values()), abs=1e-4)
    assert min(decided.values()) <= min(scanned.values()) + 1e-4  # of every level but the ends
    call(evaluate.main, run, "--times", "search", "--n", 170)
    name = max((run / "evaluations").glob("step-*fd_2step*.json"), key=lambda path: path.stat().st_mtime)
    sampling = json.loads(name.read_text())["sampling"]
    assert sampling["times"] == found["times"] and sampling["times searched on"] == "fd"


def test_a_search_that_is_killed_goes_on_and_makes_nothing_twice(tmp_path: Path, data: Path, monkeypatch) -> None:
    whole, killed = (make_run(tmp_path / name, "ct", data) for name in ("whole", "killed"))
    make, made = records.make, []

    def counting(*arguments: Any) -> Any:
        if len(made) == 4:
            made.append("killed")
            raise KeyboardInterrupt
        made.append(json.dumps(arguments[3][0]["sampling"]) + str(arguments[3][0]["protocol"]["seeds"]))
        return make(*arguments)

    monkeypatch.setattr(records, "make", counting)
    with pytest.raises(KeyboardInterrupt):
        call(search_times.main, killed, *SMALL)
    assert not list((killed / "evaluations").glob("times-*"))
    call(search_times.main, killed, *SMALL)
    made.remove("killed")
    assert len(made) == len(set(made)) > 6
    before = len(made)
    call(search_times.main, killed, *SMALL)
    assert len(made) == before  # everything is there
    monkeypatch.setattr(records, "make", make)
    call(search_times.main, whole, *SMALL)
    assert result(whole)["times"] == result(killed)["times"] and result(whole)["fresh"] == result(killed)["fresh"]


def test_two_ranks_find_the_same(tmp_path: Path, data: Path) -> None:
    one, two = (make_run(tmp_path / name, "ct", data) for name in ("one", "two"))
    call(search_times.main, one, *SMALL)
    ranks = Ranks(2, tmp_path / "log", run_pipeline, "search_times", [str(two), *map(str, SMALL)])
    assert ranks.join() == [0, 0], ranks.text
    assert result(one) == result(two)


def probes(run: Path) -> dict[str, int]:
    """How often each probe was made: a record of its own each time."""
    made = [json.loads(path.read_text()) for path in (run / "evaluations").glob("step-*.json")]
    names = [json.dumps(record["sampling"]) + str(record["protocol"]["seeds"]) for record in made]
    return {name: names.count(name) for name in names}


def test_jobs_of_an_array_share_the_probes(tmp_path: Path, data: Path) -> None:
    one, shared = (make_run(tmp_path / name, "ct", data) for name in ("one", "shared"))
    call(search_times.main, one, *SMALL)
    arguments = [str(shared), *map(str, SMALL)]
    jobs = [
        Ranks(1, tmp_path / f"log{k}", in_an_array, k, 3, "search_times", arguments)
        for k in (1, 2, 3)
    ]  # fmt: skip
    assert [job.join() for job in jobs] == [[0]] * 3, [job.text for job in jobs]
    assert result(one) == result(shared) and probes(one) == probes(shared) and set(probes(shared).values()) == {1}


def in_an_array(task: int, count: int, name: str, arguments: list[str]) -> None:
    values = {"ID": task, "COUNT": count, "MIN": 1, "MAX": count}
    os.environ.update({f"SLURM_ARRAY_TASK_{key}": str(value) for key, value in values.items()})
    run_pipeline(name, arguments)


def test_the_probes_of_a_job_that_is_lost_are_made_by_another(tmp_path: Path, data: Path, monkeypatch) -> None:
    one, alone = (make_run(tmp_path / name, "ct", data) for name in ("one", "alone"))
    monkeypatch.setattr(tuning, "LEAST", 0.1)
    monkeypatch.setattr(tuning, "LONGER", 0.1)
    call(search_times.main, one, *SMALL)
    call(search_times.main, alone, *SMALL, "--part", "2/2")
    assert result(one) == result(alone)
    with pytest.raises(ConfigError, match="--part 3/2: K/N with K from 1 to N is needed"):
        call(search_times.main, alone, *SMALL, "--part", "3/2")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--steps", 1), "2 or more; one step has no time to search"),
        (("--metric", "precision"), "--metric precision: of those that are the lower the better one is needed"),
        (("--levels", 2), "at least 3 are needed for 2 steps"),
        (("--few", 200, "--many", 100), "2 <= few <= many"),
    ],
)
def test_what_cannot_be_searched_is_one_sentence(tmp_path: Path, data: Path, arguments: Any, sentence: str) -> None:
    run = make_run(tmp_path, "ct", data)
    with pytest.raises(ConfigError, match=sentence):
        call(search_times.main, run, *arguments)
    assert not (run / "evaluations").exists()


def test_a_denoiser_has_no_times_and_a_run_without_a_search_says_so(tmp_path: Path, data: Path) -> None:
    edm, ct = make_run(tmp_path, "edm", data, "denoising"), make_run(tmp_path, "ct", data)
    with pytest.raises(ConfigError, match="edm makes a denoiser; times are searched for consistency models"):
        call(search_times.main, edm)
    with pytest.raises(ConfigError, match=r"no times were searched for step .*search_times.py .*/ct` does that"):
        call(evaluate.main, ct, "--times", "search")
    with pytest.raises(ConfigError, match="--times found: falling noise levels, or `search` alone, are needed"):
        call(evaluate.main, ct, "--times", "found")
