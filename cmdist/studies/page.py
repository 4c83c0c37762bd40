"""The page of a study: tables of all figures and of their medians, a figure, and words around their numbers."""

from typing import Any

from cmdist.checkpoints import search
from cmdist.errors import ConfigError
from cmdist.report import drawing, grids, tables
from cmdist.report.tables import Row
from cmdist.studies import claims
from cmdist.studies.grid import Cell, Study
from cmdist.studies.running import flops
from cmdist.system import storage


def write(study: Study, name: str, grid: list[Cell], out: str) -> str:
    """Write OUT/NAME.md and, in OUT/NAME, figures.csv, medians.csv and the figure; the page's place. Raises ConfigError
    if nothing was measured.
    """
    folder = storage.join(out, name)
    rows = [row for cell in grid for row in _rows(study, cell)]
    if not rows:
        raise ConfigError(f"nothing of the study {name} was measured yet")
    tables.write(folder, "figures", rows)
    tables.write(folder, "medians", grids.medians(rows))
    titles = {group: words.title or group for group, words in study.groups.items()}
    axes = list(dict.fromkeys(axis for group in study.groups.values() for axis in group.axes))
    grids.draw_costs(folder, axes, titles)
    if study.panels:
        grids.draw(folder, [panel.model_dump() for panel in study.panels], titles)
    place = storage.join(out, f"{name}.md")
    storage.write(place, text(study, name, out).encode())
    return place


def text(study: Study, name: str, out: str) -> str:
    """The page as its tables have it."""
    folder = storage.join(out, name)
    axes = list(dict.fromkeys(axis for group in study.groups.values() for axis in group.axes))
    titles = {group: words.title or group for group, words in study.groups.items()}
    table, seeds = grids.markdown(folder, axes, titles), len(study.seeds)
    named = ", ".join(map(str, study.seeds))
    spread = f"with seed {named}" if seeds == 1 else f"the median of seeds {named}, then the lowest and the highest"
    parts = [
        f"# {study.title}",
        study.question.strip(),
        *([drawing.picture(name, "figure", study.title)] if study.panels else []),
        f"    python pipelines/study.py configs/studies/{name}.yaml",
        claims.table(study.claims, folder),
        grids.filled(study.text, folder).strip(),
        "## At equal images, FLOPs and time",
        drawing.picture(name, "costs", "Frechet distance against cost"),
        grids.COST_NOTE,
        "## All figures",
        f"Of each run {spread}: Frechet distance of generated images to all real ones; the images that training saw, "
        "the floating-point operations of training as `--plan` counts them, and the seconds that training took, start "
        "and saving included, beside other runs.",
        table,
        f"[Every figure]({name}/figures.csv), [medians]({name}/medians.csv).",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _rows(study: Study, cell: Cell) -> list[Row]:
    axes = list(dict.fromkeys(axis for group in study.groups.values() for axis in group.axes))
    rows: list[Row] = []
    figures = {(row["step"], row["sampler"], row["metric"]): row["value"] for row in cell.figures()}
    seconds = {step: _seconds(cell, step) for step in cell.steps}
    for (step, sampler, metric), value in sorted(figures.items()):
        if step not in cell.steps or sampler not in map(str, cell.samplers(step)):
            continue
        share = step / cell.config.train.steps
        place: dict[str, Any] = {"group": cell.group} | {axis: cell.axes.get(axis, "") for axis in axes}
        cost = {"images": step * cell.config.train.global_batch, "tflop": flops(cell.config) * share / 1e12}
        where = {"seed": cell.seed, "run": cell.name, "step": step} | cost | {"seconds": seconds[step]}
        rows.append(place | where | {"metric": metric, "sampler": sampler, "value": float(value)})
    return rows


def _seconds(cell: Cell, step: int) -> float:
    """Device-seconds up to a step, as its checkpoint has them; 0 if it is not there any more."""
    if step not in search.steps(cell.url):
        return 0.0
    return float(search.open_checkpoint(cell.url, step).state["clock"].get("device_seconds", 0.0))
