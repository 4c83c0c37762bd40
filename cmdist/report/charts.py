"""Plots of several runs."""

import io
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from cmdist.report.svg import FAR

_TITLES = {"fd_1step": "one step", "fd_2step": "two steps", "fd_ode": "many steps (ODE)"}


def comparison(
    losses: Sequence[tuple[str, Sequence[tuple[int, float]]]], distances: Sequence[tuple[str, Mapping[str, float]]]
) -> bytes:
    """A PNG: the loss of each run by step, and its Frechet distances by metric, both on logarithmic scales; what has no
    place there is left out.
    """
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    curves, bars = figure.subplots(1, 2)
    losses = [(name, [point for point in points if 1 / FAR <= point[1] <= FAR]) for name, points in losses]
    distances = [(name, {m: v for m, v in values.items() if 1 / FAR <= v <= FAR}) for name, values in distances]
    for name, points in losses:
        if points:
            curves.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 20 else None)
    curves.set(xlabel="step", ylabel="loss (another one for each objective)", yscale="log", title="training loss")
    if any(points for _, points in losses):
        curves.legend()
    metrics = sorted({metric for _, values in distances for metric in values})
    width = 0.8 / max(len(metrics), 1)
    for place, metric in enumerate(metrics):
        heights = [
            (number, sorted(values), values[metric]) for number, (_, values) in enumerate(distances) if metric in values
        ]
        places = [
            number + (own.index(metric) - (len(own) - 1) / 2) * width for number, own, _ in heights
        ]  # centred on the run's name
        drawn = bars.bar(
            places, [height for *_, height in heights], width, label=_TITLES.get(metric, metric), color=f"C{place}"
        )
        bars.bar_label(drawn, fmt="%.1f", fontsize=8)
    bars.set_xticks(range(len(distances)), [name for name, _ in distances])
    bars.set_xlim(-0.6, len(distances) - 0.4)
    bars.set(ylabel="Frechet distance", yscale="log", title="Frechet distance of the newest evaluated checkpoint")
    if metrics:
        bars.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def search(probes: Sequence[Sequence[Sequence[float]]], metric: str) -> bytes:
    """A PNG: the score of each time that was tried, (time, images, score), a plot for each time that was added."""
    figure = Figure(figsize=(6 * len(probes), 4), layout="constrained")
    plots = figure.subplots(1, len(probes), squeeze=False)[0]
    for number, (plot, tried) in enumerate(zip(plots, probes, strict=True), 1):
        for images in sorted({int(count) for _, count, _ in tried}):
            points = sorted((time, score) for time, count, score in tried if count == images)
            plot.plot(*zip(*points, strict=True), marker=".", label=f"{images:,} images")
        plot.set(xscale="log", xlabel="sigma", ylabel=metric, title=f"time {number + 1}, the earlier ones fixed")
        plot.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
