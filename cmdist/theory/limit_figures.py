"""The figures of docs/studies/limit.md, from its tables."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from cmdist.report.drawing import Theme, note, save
from cmdist.report.tables import Table, pick, points, read

LABELS = {"training": "training", "euler": "distillation, Euler", "heun": "distillation, Heun", "exact": "exact"}


def draw(folder: str) -> None:
    """All figures, into the folder of the tables."""
    walks, functions = read(folder, "walks"), read(folder, "functions")
    fixed, levels, learnt = read(folder, "fixed_points"), read(folder, "variance"), read(folder, "schedules")
    held = read(folder, "through")
    save(
        folder,
        "answer",
        [
            lambda ax, theme: paths(ax, theme, walks),
            lambda ax, theme: curves(ax, theme, functions),
            lambda ax, theme: errors(ax, theme, fixed),
        ],
    )
    save(
        folder,
        "where",
        [
            lambda ax, theme: variance(ax, theme, levels),
            lambda ax, theme: schedules(ax, theme, learnt),
            lambda ax, theme: through(ax, theme, held),
        ],
    )


def paths(ax: Axes, theme: Theme, table: Table) -> None:
    """Walks of the chain, Euler's path and the ODE's from one point."""

    def scaled(path: str) -> tuple[list[float], list[float]]:
        sigma, x = points(table, "sigma", "x", path=path)
        return sigma, [v / (1 + s * s) ** 0.5 for s, v in zip(sigma, x, strict=True)]

    names = list(dict.fromkeys(row["path"] for row in table))
    for name in [n for n in names if n.startswith("walk")]:
        ax.plot(*scaled(name), color=theme.method["training"], lw=0.7, alpha=0.45)
    ax.plot(*scaled("exact"), color=theme.method["exact"], lw=2.2)
    ax.plot(*scaled("euler"), color=theme.method["euler"], lw=2, ls="--", marker="o", ms=2.5)
    sigma, mean = scaled("mean")
    ax.plot(sigma, mean, "o", color=theme.method["training"], ms=9, mec=theme.paper, mew=1.5, clip_on=False, zorder=5)
    ax.set(
        xscale="log",
        xlim=(80, 0.002),
        ylim=(-1.75, 1.9),
        xlabel="noise level σ  (noise on the left, data on the right)",
    )
    ax.set_ylabel("x / √(1 + σ²)")
    ax.set_title("One noisy x: where does it end?")
    note(ax, theme, "training averages\nover random walks", (70, -1.62), "training")
    note(ax, theme, "their mean:\nno data there", (0.004, mean[0] - 0.1), "training", ha="right", va="top")
    note(ax, theme, "the true curve, and Euler's\n(dashed, 17 steps)", (70, 1.4), "exact")


def curves(ax: Axes, theme: Theme, table: Table) -> None:
    """f at sigma_max over x."""
    few, many = sorted({int(row["levels"]) for row in table if row["method"] == "training"})
    ax.plot(*points(table, "x", "f", method="exact"), color=theme.method["exact"], lw=2.4)
    ax.plot(*points(table, "x", "f", method="euler", levels=few), color=theme.method["euler"], ls="--")
    ax.plot(*points(table, "x", "f", method="training", levels=few), color=theme.method["training"])
    ax.plot(*points(table, "x", "f", method="training", levels=many), color=theme.method["training"], lw=1.2, ls=":")
    ax.set(xlabel="x / 80 at σ = 80", ylabel="f(x), the sample", ylim=(-1.75, 1.75), xlim=(-2.5, 2.5))
    ax.set_title("What is learnt")
    ax.axhline(0, color=theme.line, lw=0.8, zorder=0)
    note(ax, theme, f"training, N = {few}", (0.0, 0.12), "training", ha="left")
    note(ax, theme, f"(dotted: N = {many})", (0.0, -0.14), "training", ha="left")
    note(ax, theme, f"Euler, N = {few}", (-2.35, -1.55), "euler")
    note(ax, theme, "exact: a step\nbetween the modes", (-2.35, 0.9), "exact")


def errors(ax: Axes, theme: Theme, table: Table) -> None:
    """Mean absolute error over N, two modes."""
    ends = {}
    for method in ("training", "euler", "heun"):
        n, e = points(table, "levels", "mean_abs", data="two modes", method=method)
        ax.plot(n, e, color=theme.method[method], marker="o", ms=4)
        ends[method] = (n, e)
    ax.set(xscale="log", yscale="log", xlabel="number of noise levels N", ylabel="mean |f − exact|")
    ax.set_title("The error, over N")
    ax.minorticks_off()
    for method, power, place, lift in (
        ("training", "1/√N", 3, 1.9),
        ("euler", "1/N", 4, 0.1),
        ("heun", "1/N²", 0, 0.005),
    ):
        n, e = ends[method]
        note(ax, theme, f"{LABELS[method]}: {power}", (n[place], e[place] * lift), method)
    counted(ax, ends["heun"][0])


def counted(ax: Axes, counts: Sequence[float]) -> None:
    """Every second number of levels as it is, instead of powers of ten."""
    shown = [int(n) for n in counts][::2]
    ax.set_xticks(shown, [f"{n:,}" for n in shown])


def variance(ax: Axes, theme: Theme, table: Table) -> None:
    """Where the variance is lost, beside where pairs are drawn."""
    most = max(int(row["levels"]) for row in table)
    sigma, share = points(table, "sigma", "share", levels=most)
    for column, colour, style in (("uniform", "euler", "--"), ("lognormal", "heun", "-.")):
        ax.plot(*points(table, "sigma", column, levels=most), color=theme.method[colour], ls=style)
    ax.fill_between(sigma, share, color=theme.method["training"], alpha=0.3, lw=0)
    ax.plot(sigma, share, color=theme.method["training"])
    ax.set(xscale="log", xlabel="noise level σ", ylabel="share", ylim=(0, None), xlim=(0.002, 80))
    ax.set_title(f"Where the averaging happens (N = {most})")
    peak = max(range(len(share)), key=lambda i: share[i])
    note(
        ax,
        theme,
        "variance\nlost",
        (sigma[peak], share[peak]),
        "training",
        xytext=(-52, -22),
        textcoords="offset points",
    )
    note(ax, theme, "pairs drawn:\n- - uniformly\n-·- log-normally", (0.0026, share[peak] * 0.55), None)


def schedules(ax: Axes, theme: Theme, table: Table) -> None:
    """The tabular learner's error along the schedules, uniform draw."""
    looks = {
        "N = 11": (theme.soft, ":", 0.82, 0.015),
        "N = 21": (theme.soft, "--", 0.2, 0.02),
        "N = s1 + 1": (theme.soft, "-", 0.25, 0.035),
        "doubling N(k)": (theme.method["heun"], "-", 0.0, 0.0),
        "paper's N(k)": (theme.method["training"], "-", 0.0, 0.0),
    }
    end = max(float(row["time"]) for row in table)
    for name, (colour, style, place, lift) in looks.items():
        t, e = points(table, "time", "error", schedule=name, draw="uniform")
        final = pick(table, schedule=name, draw="uniform")[-1]["levels"]
        ax.plot([v / end for v in t], e, color=colour, ls=style)
        if place:
            shown = f"N = {final} from the start" if name == "N = s1 + 1" else name
            i = min(range(len(t)), key=lambda i: abs(t[i] / end - place))
            ax.annotate(shown, (place, e[i] + lift), color=colour, fontsize=9)
    most = pick(table, schedule="paper's N(k)")[-1]["levels"]
    note(ax, theme, f"paper: 2 → {most}", (0.3, 0.09), "training")
    note(ax, theme, f"doubling: 11 → {most}", (0.3, 0.38), "heun")
    ax.set(xlabel="part of the updates that are done", ylabel="mean |f − exact| at σ = 80", ylim=(0, 1.1), xlim=(0, 1))
    ax.set_title("What growing N(k) buys")


def through(ax: Axes, theme: Theme, table: Table) -> None:
    """Spread of the output with and without gradient through the target."""
    n, held = points(table, "levels", "held")
    ax.axhline(float(table[0]["std"]), color=theme.method["exact"], lw=1.2, ls="--")
    ax.plot(n, held, color=theme.method["training"], marker="o", ms=4)
    ax.plot(*points(table, "levels", "through"), color=theme.method["other"], marker="s", ms=4)
    ax.set(xscale="log", ylim=(0, 0.58), xlabel="number of noise levels N", ylabel="spread of the samples")
    ax.set_title("Why the target is held fixed")
    ax.minorticks_off()
    note(ax, theme, "the data's", (n[0], float(table[0]["std"]) + 0.012), "exact")
    note(ax, theme, "target held fixed", (n[len(n) // 3], held[0] + 0.04), "training", va="top")
    note(ax, theme, "gradient through the target:\nno N repairs it", (n[len(n) // 3], 0.18), "other")
    counted(ax, n)
