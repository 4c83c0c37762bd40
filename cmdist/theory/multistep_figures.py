"""The figures of docs/studies/multistep.md, from its tables."""

from matplotlib.axes import Axes

from cmdist.report.drawing import Theme, note, save
from cmdist.report.tables import Table, one, points, read
from cmdist.system import storage

LEVELS = (18, 80)


def draw(folder: str) -> None:
    """All figures, into the folder of the tables."""
    two, forget, many = read(folder, "two_steps"), read(folder, "forgetting"), read(folder, "many_steps")
    save(
        folder,
        "answer",
        [
            lambda ax, theme: second_step(ax, theme, two),
            lambda ax, theme: crossing(ax, theme, forget, LEVELS[1]),
            lambda ax, theme: steps(ax, theme, many, LEVELS[0]),
        ],
    )
    if storage.exists(storage.join(folder, "trained_tau.csv")):
        error, tau = read(folder, "trained_error"), read(folder, "trained_tau")
        save(
            folder,
            "trained",
            [lambda ax, theme: over_sigma(ax, theme, error), lambda ax, theme: over_tau(ax, theme, tau)],
            width=5.4,
        )


def second_step(ax: Axes, theme: Theme, table: Table) -> None:
    """W2 after two steps over the second one's noise, one step as a line."""
    for levels, width in zip(LEVELS, (2.2, 1.4), strict=True):
        for method, style in (("training", "-"), ("euler", "--")):
            tau, w2 = points(table, "tau", "w2", method=method, levels=levels)
            ax.plot(tau[1:], w2[1:], color=theme.method[method], ls=style, lw=width)
            if method == "training":
                best = min(range(1, len(tau)), key=lambda i: w2[i])
                ax.plot(tau[best], w2[best], "o", color=theme.method[method], ms=7, mec=theme.paper)
                ax.plot([0.01, 60], [w2[0]] * 2, color=theme.method[method], lw=0.8, ls=":")
                note(ax, theme, f"training, N = {levels}: one step", (55, w2[0] + 0.006), method, ha="right")
                note(ax, theme, f"{w2[best]:.2g}", (tau[best], w2[best] - 0.012), method, ha="center", va="top")
            else:
                note(ax, theme, f"Euler, N = {levels}", (0.011, w2[0] + (0.006 if levels < 50 else -0.022)), method)
    ax.axhline(0, color=theme.method["exact"], lw=2)
    note(ax, theme, "exact function: 0 after any steps", (60, 0.007), "exact", ha="right")
    ax.set(
        xscale="log", xlim=(0.01, 60), ylim=(-0.004, 0.36), xlabel="noise τ of the second step", ylabel="W₂ to the data"
    )
    ax.set_title("Two steps")


def crossing(ax: Axes, theme: Theme, table: Table, levels: int) -> None:
    """What noise leaves of the first step's error, and the function's own error from there."""
    tau, bound = points(table, "tau", "bound_w2", levels=levels)
    ax.plot(tau, bound, color=theme.soft, lw=1)
    ax.plot(*points(table, "tau", "tv", levels=levels), color=theme.soft, ls=":")
    for column, method in (("left", "euler"), ("error", "other"), ("two", "training")):
        ax.plot(*points(table, "tau", column, levels=levels), color=theme.method[method], lw=2.2)
    ax.set(xscale="log", yscale="log", xlim=(0.02, 60), ylim=(1e-3, 2), xlabel="noise τ of the second step")
    ax.set(ylabel="distance")
    ax.set_title(f"Noise forgets, the function errs (N = {levels})")
    note(ax, theme, "two steps: both", (2.2, 0.22), "training")
    note(ax, theme, "what is left of the\nfirst step's error", (2.6, 0.0055), "euler")
    note(ax, theme, "the function's\nown error from τ", (0.022, 0.007), "other")
    note(ax, theme, "TV left (dotted)\nand its bound W₂/2τ", (0.45, 0.75), None)


def steps(ax: Axes, theme: Theme, table: Table, levels: int) -> None:
    """W1 and W2 over the number of steps."""
    for method in ("training", "euler", "heun"):
        n, w2 = points(table, "steps", "w2", method=method, levels=levels)
        _, w1 = points(table, "steps", "w1", method=method, levels=levels)
        ax.plot(n, w2, color=theme.method[method], marker="o", ms=4)
        ax.plot(n, w1, color=theme.method[method], ls=":", marker="o", ms=2.5)
        note(
            ax,
            theme,
            {"training": "training"}.get(method, method.capitalize()),
            (n[-1] + 0.15, w2[-1]),
            method,
            va="center",
        )
    first = float(one(table, "w2", method="training", levels=levels, steps=1))
    ax.set(xlabel="steps, at the best times", ylabel="distance to the data", ylim=(0, first * 1.12), xlim=(0.8, 9.6))
    ax.set_title(f"More steps stop helping (N = {levels})")
    note(ax, theme, "solid W₂, dotted W₁", (4.2, first * 1.02))


def over_sigma(ax: Axes, theme: Theme, table: Table) -> None:
    """Errors of trained networks over the noise level."""
    looks = run_looks(table, theme)
    for name, (colour, style) in looks.items():
        ax.plot(*points(table, "sigma", "rms", run=name), color=colour, ls=style, label=name, marker="o", ms=3)
    first = next(iter(looks))
    ax.plot(
        *points(table, "sigma", "rms_of_mean", run=first), color=theme.soft, ls=":", label="blurred: the mean E[x₀ | x]"
    )
    ax.set(xscale="log", xlabel="noise level σ", ylabel="RMS difference of a pixel", ylim=(0, None))
    ax.set_title("Digits: error against the exact function")
    ax.legend()


def over_tau(ax: Axes, theme: Theme, table: Table) -> None:
    """Frechet distance over the second step's noise."""
    for name, (colour, style) in run_looks(table, theme).items():
        tau, fd = points(table, "tau", "fd", run=name)
        ax.plot(tau[1:], fd[1:], color=colour, ls=style, label=name, marker="o", ms=3)
        ax.plot([tau[-1], tau[1]], [fd[0]] * 2, color=colour, lw=0.8, ls=":")
    ax.set(
        xscale="log", yscale="log", xlabel="noise τ of the second step (dotted: one step)", ylabel="Fréchet distance"
    )
    ax.set_title("Digits: two steps")
    ax.set_ylim(None, 4 * ax.get_ylim()[1])
    ax.legend(loc="upper center", ncols=3)


def run_looks(table: Table, theme: Theme) -> dict[str, tuple[str, str]]:
    """Colour and line of each run of a table: the exact function and the fixed point as in the other figures."""
    known = {"exact": (theme.method["exact"], "-"), "fixed point": (theme.method["training"], "--")}
    others = [theme.method["euler"], theme.method["other"], theme.method["heun"], theme.soft]
    names = list(dict.fromkeys(row["run"] for row in table))
    rest = [name for name in names if name not in known]
    return {name: known.get(name) or (others[rest.index(name) % len(others)], "-") for name in names}
