"""The pages of docs/studies say what their tables say, and the tables say what the command computes."""

import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from cmdist.core.exact import FiniteDataSet
from cmdist.core.studies.fixed_points import training
from cmdist.core.studies.line import Line, interpolate
from cmdist.errors import ConfigError
from cmdist.report import tables
from cmdist.report.tables import Row
from cmdist.theory import digits, limit, limit_page, multistep, multistep_page, pages
from cmdist.theory.digits import Truth
from pipelines import exact

STUDIES = Path(__file__).parents[2] / "docs" / "studies"
GIVEN = {"0.2", "0.3", "0.6", "0.002"}  # what defines the data and the grid; "σ = 0.3 and 3" bounds a sum
FEW = [18, 20, 40]


@pytest.mark.parametrize("question", ["limit", "multistep"])
def test_a_page_is_its_template_filled_from_its_tables(question: str) -> None:
    assert (STUDIES / f"{question}.md").read_text() == pages.text(question, str(STUDIES))


@pytest.mark.parametrize("page", [limit_page.TEXT, multistep_page.TEXT, multistep_page.TRAINED])
def test_templates_hold_no_measured_number(page: str) -> None:
    prose = re.sub(r"\[arXiv.*?\)", "", page)
    assert set(re.findall(r"\d+\.\d+", prose)) <= GIVEN


def compare(question: str, name: str, rows: list[Row], **kept: str) -> None:
    """The rows against those of the committed table that have the same key, to the digits that are shown."""
    committed = tables.pick(tables.read(str(STUDIES / question), name), **kept)
    for row in rows:
        texts = {key: tables.shown(value) for key, value in row.items()}
        key = {k: v for k, v in texts.items() if k in ("data", "method", "levels", "tau", "start", "times", "sigma")}
        found = tables.pick(committed, **key)
        assert len(found) == 1, f"{name}: {len(found)} rows with {key}"
        for column, text in texts.items():
            other = found[0][column]
            if column not in key and text != other:
                assert float(text) == pytest.approx(float(other), rel=2e-3, abs=2e-5), f"{name} {key} {column}"


def test_the_tables_of_the_limit_are_what_is_computed() -> None:
    compare("limit", "fixed_points", limit.fixed_points(FEW))
    compare("limit", "variance", limit.variance([18]))
    compare("limit", "through", limit.through(FEW))
    compare("limit", "theorems", limit.theorems([20])[:1])


def test_the_tables_of_several_steps_are_what_is_computed() -> None:
    study = multistep.Study(18)
    compare("multistep", "two_steps", multistep.two_steps(study))
    compare("multistep", "forgetting", multistep.forgetting(study))
    compare("multistep", "exactly", multistep.exactly(study))


def test_the_command_draws_both_themes_and_writes_the_page(tmp_path: Path) -> None:
    for question in ("limit", "multistep"):
        shutil.copytree(STUDIES / question, tmp_path / question, ignore=shutil.ignore_patterns("*.svg"))
        exact.main([question, "--out", str(tmp_path), "--page"])
        page = (tmp_path / f"{question}.md").read_text()
        assert page == (STUDIES / f"{question}.md").read_text()
        shown = set(re.findall(r'"([^"]+\.svg)"', page))
        assert {name.rpartition("-")[2] for name in shown} == {"light.svg", "dark.svg"}
        for name in shown:
            assert ElementTree.parse(tmp_path / name).getroot().tag.endswith("svg")
            assert (STUDIES / name).exists()


def test_the_command_refuses_what_the_page_cannot_say(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 80"):
        exact.main(["limit", "--out", str(tmp_path), "--most", "40"])
    with pytest.raises(ConfigError, match="belongs to `multistep`"):
        exact.main(["limit", "--out", str(tmp_path), "--runs", "runs/digits/cd"])
    with pytest.raises(ConfigError, match="no table wlaks; it has fixed_points, functions, walks"):
        exact.main(["limit", "--out", str(tmp_path), "--only", "wlaks"])
    assert list(tmp_path.iterdir()) == []


def test_walks_on_a_finite_data_set_have_the_mean_that_quadrature_has() -> None:
    """Two images of one pixel: a mixture whose components have no width."""
    images, labels = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).double(), torch.zeros(2, dtype=torch.long)
    line = Line(torch.tensor([-1.0, 1.0], dtype=torch.float64), 1e-3, torch.full((2,), 0.5, dtype=torch.float64))
    z = line.scores(limit.SIGMA_MIN, 600, 300)
    table = training(line, limit.grid(18), z)[0]
    x = torch.tensor([-60.0, -20.0, 5.0, 30.0], dtype=torch.float64)
    model = Truth(images, labels).training(18, walks=8000)
    seen = model(x.view(-1, 1, 1, 1), torch.full((4,), 80.0, dtype=torch.float64), torch.zeros(4, dtype=torch.long))
    wanted = interpolate(line.quantile(z, limit.SIGMA_MAX), table, x)
    torch.testing.assert_close(seen.flatten(), wanted, rtol=0, atol=0.04)


def test_the_variances_of_walks_on_images_add_up_and_the_error_falls() -> None:
    images = torch.randn(40, 1, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    few, many = digits.chain(images, [10, 160], starts=300, walks=10)
    for row in (few, many):
        assert float(row["variance_f"]) + float(row["variance_lost"]) == pytest.approx(float(row["data"]), rel=0.05)
    assert float(many["rms"]) < 0.7 * float(few["rms"])


def test_the_exact_function_has_no_error_and_another_one_has() -> None:
    images = torch.randn(20, 1, 2, 2, generator=torch.Generator().manual_seed(0)).tanh()
    labels = torch.arange(20) % 2
    truth = Truth(images, labels)
    models = {"exact": truth.consistency, "mean": truth.denoised}
    rows = digits.error_over_sigma(models, images, labels, truth, [0.1, 1.0, 80.0])
    assert max(float(row["rms"]) for row in rows[:3]) == 0
    assert float(rows[-1]["rms"]) > 0.3
    assert float(rows[-1]["rms"]) == pytest.approx(float(rows[2]["rms_of_mean"]))
    whole, sigma = FiniteDataSet(images, labels), torch.full((20,), 0.7)
    torch.testing.assert_close(truth.denoised(images, sigma, labels), whole(images, sigma, labels))
    rows = digits.over_tau("exact", truth.consistency, (1, 2, 2), 2, [1.0], lambda x: float(len(x)), 8)
    assert [row["tau"] for row in rows] == [0.0, 1.0]
