"""Figures of docs/studies as SVG, each for a light and for a dark page."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cmdist.report.markup import tag
from cmdist.system import storage


@dataclass(frozen=True)
class Theme:
    """The colours of a page; `method` gives the same thing the same colour in every figure."""

    name: str
    paper: str
    ink: str
    soft: str
    line: str
    method: dict[str, str] = field(default_factory=dict)


LIGHT = Theme(
    "light",
    "#ffffff",
    "#1b1f24",
    "#5b6570",
    "#dfe3e8",
    {"exact": "#1b1f24", "training": "#d55e00", "euler": "#0072b2", "heun": "#009e73", "other": "#b5508f"},
)
DARK = Theme(
    "dark",
    "#0d1117",
    "#e6e9ed",
    "#98a3af",
    "#2a323b",
    {"exact": "#e6e9ed", "training": "#ff8b4d", "euler": "#56b4f0", "heun": "#2ec99b", "other": "#e88fc3"},
)
Panel = Callable[[Axes, Theme], None]


def save(folder: str, name: str, panels: Sequence[Panel], width: float = 4.3, height: float = 3.7) -> None:
    """FOLDER/NAME-light.svg and -dark.svg: the panels side by side."""
    for theme in (LIGHT, DARK):
        style: dict[str, Any] = {
            "font.family": "DejaVu Sans",
            "font.size": 10,
            "svg.hashsalt": "cmdist",
            "text.color": theme.ink,
            "axes.edgecolor": theme.line,
            "axes.labelcolor": theme.soft,
            "axes.titlecolor": theme.ink,
            "axes.facecolor": theme.paper,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 11,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "xtick.color": theme.soft,
            "ytick.color": theme.soft,
            "legend.frameon": False,
            "legend.fontsize": 9,
            "lines.linewidth": 1.8,
        }
        with matplotlib.rc_context(cast(Any, style)):
            figure = Figure(figsize=(width * len(panels), height), facecolor=theme.paper)
            figure.set_layout_engine("constrained", w_pad=0.12)
            axes = figure.subplots(1, len(panels), squeeze=False)[0]
            for panel, ax in zip(panels, axes, strict=True):
                panel(ax, theme)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="svg", metadata={"Date": None})
        storage.write(storage.join(folder, f"{name}-{theme.name}.svg"), buffer.getvalue())


def picture(folder: str, name: str, alt: str) -> str:
    """The Markdown that shows the figure in the reader's theme."""
    dark = tag("source", media="(prefers-color-scheme: dark)", srcset=f"{folder}/{name}-dark.svg")
    return tag("picture", dark, tag("img", alt=alt, src=f"{folder}/{name}-light.svg"))


def note(ax: Axes, theme: Theme, text: str, at: tuple[float, float], method: str | None = None, **more: object) -> None:
    """A label beside a curve, in its colour."""
    colour = theme.method[method] if method else theme.soft
    ax.annotate(text, at, color=colour, **{"fontsize": 9, **more})  # type: ignore[arg-type]
