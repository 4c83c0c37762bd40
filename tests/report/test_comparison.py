"""Which figures may stand together; runs as plain dictionaries, without MLflow."""

from typing import Any

from cmdist.report import comparison
from cmdist.report.comparison import Figure, Row, keep_to, make_rows


def child(
    parent: str,
    metrics: dict[str, float],
    step: int = 10,
    protocol: str = "p",
    n: int = 5000,
    start: int = 0,
    **more: str,
) -> dict[str, Any]:
    params = {"protocol_id": protocol, "protocol.n": str(n), "sampling.ema": "0.9", **more}
    return {
        "parent": parent,
        "status": "FINISHED",
        "tags": {"step": str(step)},
        "start": start,
        "metrics": metrics,
        "params": params,
    }


def run(name: str, **params: str) -> dict[str, Any]:
    settings = {"train.global_batch": "64", **params}
    tags = {"cmdist.run": f"/runs/{params.pop('folder', 'x')}/{name}", "cmdist.world_size": "4"}
    return {
        "id": name,
        "name": name,
        "parent": None,
        "start": 0,
        "end": 10_000,
        "params": settings,
        "metrics": {},
        "tags": tags,
        "status": "FINISHED",
    }


def rows(*children: dict[str, Any], names: tuple[str, ...] = ("a", "b")) -> list[Row]:
    return make_rows([run(name) for name in names], children, "none")


def titles(found: list[Row], mixed: bool = False) -> list[str]:
    return [column.title for column in comparison.columns(found, mixed)]


def test_any_metric_has_a_column_in_a_fixed_order():
    metrics = {
        "recall_1step": 0.5,
        "fid_1step": 3.0,
        "kid_1step": 0.001,
        "fd_ode": 1.0,
        "fd_1step": 1.0,
        "fid_2step": 2.0,
        "fd_dinov2_4step": 9.0,
    }
    found = rows(child("a", metrics))
    assert titles(found) == [
        "FD one-step", "FD many-step", "FID one-step", "FID two-step", "FD DINOv2 4-step", "KID one-step",
        "recall one-step",
    ]  # fmt: skip
    assert found[0].newest("kid_1step").text == "0.001" and found[0].newest("fid_1step").text == "3.00"


def test_protocols_never_share_a_column_unless_mixed():
    found = rows(child("a", {"fd_1step": 1.0, "fd_2step": 2.0}), child("b", {"fd_1step": 3.0}, protocol="q", n=300))
    assert titles(found) == ["FD one-step", "FD one-step (B)", "FD two-step"]
    assert [c.protocol for c in comparison.columns(found)] == ["p", "q", "p"]
    assert titles(found, mixed=True) == ["FD one-step", "FD two-step"]
    assert comparison.differences(found) == ["(B) not comparable with the rest: b fd_1step (n 300, not 5000)"]


def test_figures_of_older_records_are_read_and_told_from_newer_ones():
    """Records of before the arithmetic was in the protocol have a column of their own, whichever are more."""
    new = {"protocol": "q", "protocol.arithmetic": "float32 without TF32"}
    found = rows(child("a", {"fd_1step": 1.0}), child("b", {"fd_1step": 3.0}, **new))
    (line,) = comparison.differences(found)
    assert line.endswith("b fd_1step (arithmetic float32 without TF32, not unknown)")
    found = rows(child("a", {"fd_1step": 2.0}), child("b", {"fd_1step": 3.0, "fd_2step": 1.0}, **new))
    (line,) = comparison.differences(found)
    assert line.endswith("a fd_1step (arithmetic unknown, not float32 without TF32)")


def test_a_glance_beside_an_evaluation_of_the_same_step_needs_no_column():
    both = [child("a", {"fd_1step": 5.0}), child("a", {"fd_1step": 6.0}, protocol="glance", n=2000, start=1)]
    assert titles(rows(*both)) == ["FD one-step"]
    later = child("a", {"fd_1step": 4.0}, step=20, protocol="glance", n=2000)
    assert titles(rows(*both, later)) == ["FD one-step", "FD one-step (B)"]  # it knows something newer
    other = child("b", {"fd_1step": 4.0}, protocol="glance", n=2000)
    assert titles(rows(*both, other)) == ["FD one-step", "FD one-step (B)"]  # all that there is of b


def test_the_newest_step_counts_and_there_the_last_made():
    found = rows(
        child("a", {"fd_1step": 1.0}, step=20, start=5),
        child("a", {"fd_1step": 2.0}, step=20, start=9),
        child("a", {"fd_1step": 3.0}, step=10, start=99),
        {**child("a", {"fd_1step": 4.0}, step=30), "status": "RUNNING"},
    )
    assert found[0].newest("fd_1step").value == 2.0 and found[0].step == "20"


def test_best_is_low_for_distances_and_high_for_scores():
    found = rows(child("a", {"fid_1step": 3.0, "is_1step": 9.0}), child("b", {"fid_1step": 5.0, "is_1step": 7.0}))
    assert [comparison.best(found, column) for column in comparison.columns(found)] == [3.0, 9.0]
    assert comparison.best(found[:1], comparison.columns(found)[0]) is None


def test_cost_at_a_step_lies_between_the_logged_ones():
    (row, _) = rows()
    row.__dict__["histories"] = {"wall_seconds": [(10, 20.0), (20, 60.0)]}
    assert [row.seconds_at(step) for step in (5, 10, 15, 20, 30)] == [10.0, 20.0, 40.0, 60.0, 60.0]
    assert row.images_at(15) == 960 and row.device_hours_at(15) == 40.0 * 4 / 3600
    row.__dict__["histories"] = {"device_hours": [(10, 2.0), (20, 4.0)]}
    assert row.device_hours_at(15) == 3.0 and row.seconds_at(15) is None


def test_runs_of_the_same_name_are_told_apart():
    found = make_rows([run("cd", folder="s1"), run("cd", folder="s2"), run("ct"), run("ct")], [], "none")
    comparison.name_apart(found)
    assert [row.name for row in found] == ["s1/cd", "s2/cd", "x/ct (1)", "x/ct (2)"]


def test_b7_urls_that_mlflow_names_are_looked_at_only_below_the_runs_that_were_given():
    def row() -> Row:
        run = {"params": {"data.url": "http://169.254.169.254/x"}, "tags": {"cmdist.run": "s3://bucket/runs/a"}}
        stems = ("s3://bucket/runs/a/evaluations/x", "s3://bucket/runs/../x", "/local/x", "pipe:x", "s3://bucket2/x")
        return Row(run, "", "a", [Figure("fid_1step", 1.0, 1, 1, {"stem": stem}) for stem in stems])

    one = row()
    assert keep_to([one], ["s3://bucket/runs"]) == 4
    assert one.params == {} and one.url == "s3://bucket/runs/a"
    assert [f.stem for f in one.figures] == ["s3://bucket/runs/a/evaluations/x", None, "/local/x", None, None]
    other = row()
    assert keep_to([other], []) == 6 and [f.stem for f in other.figures] == [None, None, "/local/x", None, None]
