"""docs/studies/multistep.md: its sentences, and where their numbers come from."""

from cmdist.report.drawing import picture
from cmdist.report.tables import Table, one, pick, read
from cmdist.system import storage

NAME = "multistep"

TEXT = """# Why several steps help

**The question.** A consistency function maps every point of a path to its end. Why should it help to add noise to the
sample and map it again?

**The answer.** *It does not help the exact function; it repairs the one that training finds.* Noise of size τ forgets
what the first step got wrong, and the function's own error from τ is smaller than from 80; the best τ lies near where
the two cross. For training's fixed point on 18 levels one step is W₂ = {one18} from the data and two are {two18} (τ =
{tau18}), on 80 levels {one80} and {two80} (τ = {tau80}); Euler's fixed point gains nothing at any τ, since its error
is a shift along the curve and not an average.

{answer}

*Data with two modes (30 % at -1, 70 % at +1, each with standard deviation 0.2), all laws by quadrature; W₂ to the
data.*

    python pipelines/exact.py multistep     # writes this page, its tables and its figures

## The exact function: nothing changes

Multistep sampling (Song et al. 2023, Algorithm 1) takes a sample, adds noise of variance τ² - σ_min² and maps again.
If the sample has the data's law, the noisy one has p_τ exactly and the function maps it to the data's law: started
from p_T, all numbers of steps give the same law. Usual sampling starts from N(0, T²), which is not p_T; that mismatch
is all that steps can repair here.

| start | steps at | W₁ | W₂ |
|---|---|---|---|
{exactly}

## Training's fixed point: the second step repairs the average

Points between the modes are the mistake of training ([limit.md](limit.md)): means of walks that end on both sides. W₂
takes the square root of misplaced mass and shows a small part of it that travels far; W₁ stands beside it.

| one or two steps | N | τ | W₁, one | W₁, two | W₂, one | W₂, two |
|---|---|---|---|---|---|---|
{two}

The best τ is that of W₂; what a second step repairs of Heun's on 80 levels is the start's mismatch.
Noise above {above} leaves nothing to gain on 18 levels (less than 5 % of W₂), because f
errs from there as it does from 80; below {below} nothing is forgotten.

**What noise forgets.** With W₂ between the laws of two samples, noise leaves at most

    TV(p * N(0, τ²), q * N(0, τ²)) ≤ W₁(p, q) / (τ √(2π)) ≤ W₂(p, q) / (2τ):

two normals of variance τ² whose means are d apart differ by TV = 2 Φ(d/2τ) - 1 ≤ d / (τ √(2π)), averaged over the
best coupling. This is the step that proofs of multistep sampling rest on (Chen et al. 2025; Lyu et al. 2023).
Measured for training on 80 levels:

| τ | TV measured | ≤ W₁/(τ√2π) | ≤ W₂/2τ | W₂ left of the first step's error | f's own from τ | two steps |
|---|---|---|---|---|---|---|
{forget}

The two columns cross between τ = {cross_low} and {cross_high}; the best τ of the grid is {tau80}. The sum of both
bounds the two steps by the triangle inequality.

**More steps.** At each number of steps one more time is put among those before, the best one for W₂ out of a dozen (N
= 18):

| steps | training: times | W₁ | W₂ | Euler: W₁ | W₂ | Heun: W₁ | W₂ |
|---|---|---|---|---|---|---|---|
{many}

Every step after the last useful one only adds the function's own error again.
{trained}
## Sources

* Song, Dhariwal, Chen, Sutskever 2023, [arXiv:2303.01469](https://arxiv.org/abs/2303.01469): Algorithm 1.
* Chen, Zhang, Oertell, Sun 2025, [arXiv:2505.03194](https://arxiv.org/abs/2505.03194):
  convergence of multistep sampling in W₂ and TV.
* Lyu, Chen, Feng 2023, [arXiv:2308.11449](https://arxiv.org/abs/2308.11449):
  a guarantee for consistency models, and fewer errors with more steps.

Every number above is read from the tables in `multistep/` by the command that writes them. The functions are in
`cmdist/core/studies/`, their tests in `tests/core/test_studies.py`."""

TRAINED = """
## Trained networks

{picture}

    make demo                                           # the data, a teacher and cd
    python pipelines/train.py configs/digits/ct.yaml    # and ict
    python pipelines/exact.py multistep --runs {runs}

Left: the error of a trained network against the exact consistency function of the digits (their closed-form denoiser,
its ODE solved), at noisy digits. Right: Fréchet distance of 1,000 images to the 1,797 digits after two steps, in the
features of the classifier that `make demo` uses. *exact* is the exact function of the digits, *fixed point* what
training on {levels} levels converges to (means of 32 walks). The others are runs of configs/digits, minutes of training
each: {trained}.

| | one step | two steps, best | at τ | two steps at the largest τ | at the smallest τ |
|---|---|---|---|---|---|
{table}

The exact function gains next to nothing, and the fixed point only where noise does not mix the digits up again: data
without width forgive every small error, as a point near a digit is mapped to that digit, so its best τ is small
({fixed_tau}). A network cannot snap points to 1,797 digits: below σ = 1 it is further from the exact function than the
blurred mean is (left), so its best τ is larger, where its own error meets what noise leaves of the first step's. At
large τ a network gains as well, unlike the fixed point: its error from 80 is not the walks' average alone.
"""


def values(folder: str) -> dict[str, str]:
    """What stands in the braces, from the tables of `folder`."""
    two, forget, many = read(folder, "two_steps"), read(folder, "forgetting"), read(folder, "many_steps")
    told: dict[str, str] = {}
    lines = []
    for levels in (18, 80):
        for method in ("training", "euler", "heun"):
            rows = pick(two, levels=levels, method=method)
            first, best = rows[0], min(rows[1:], key=lambda row: float(row["w2"]))
            lines.append(
                f"| {method} | {levels} | {best['tau']} | {first['w1']} | {best['w1']} | {first['w2']} | {best['w2']} |"
            )
            if method == "training":
                told |= {f"one{levels}": first["w2"], f"two{levels}": best["w2"], f"tau{levels}": best["tau"]}
    told["two"] = "\n".join(lines)
    rows = pick(two, levels=18, method="training")
    gains = [r["tau"] for r in rows[1:] if float(r["w2"]) < 0.95 * float(rows[0]["w2"])]
    told |= {"above": gains[0], "below": gains[-1]}
    told["exactly"] = "\n".join(
        f"| {r['start']} | {r['times'].replace(' ', ', ')} | {r['w1']} | {r['w2']} |" for r in read(folder, "exactly")
    )
    told |= crossing(pick(forget, levels=80))
    told["many"] = "\n".join(more(many, str(n)) for n in sorted({int(r["steps"]) for r in many}))
    told["answer"] = picture(NAME, "answer", "Two steps over tau; what noise forgets; more steps")
    told["trained"] = trained(folder) if storage.exists(storage.join(folder, "trained_tau.csv")) else ""
    return told


def crossing(rows: Table) -> dict[str, str]:
    """A few lines of the table of forgetting, and between which times the two errors cross."""
    above = [r for r in rows if float(r["left"]) < float(r["error"])]
    below = [r for r in rows if float(r["left"]) >= float(r["error"])]
    shown = rows[len(rows) % 5 :: 5]
    lines = [
        f"| {r['tau']} | {r['tv']} | {r['bound_w1']} | {r['bound_w2']} | {r['left']} | {r['error']} | {r['two']} |"
        for r in shown
    ]
    return {"forget": "\n".join(lines), "cross_low": below[0]["tau"], "cross_high": above[-1]["tau"]}


def more(table: Table, steps: str) -> str:
    """A line of the table of more steps."""
    rows = {r["method"]: r for r in pick(table, levels=18, steps=steps)}
    cells = [f"{rows[m]['w1']} | {rows[m]['w2']}" for m in ("training", "euler", "heun")]
    return f"| {steps} | {rows['training']['times'].replace(' ', ', ')} | {' | '.join(cells)} |"


def trained(folder: str) -> str:
    """The part about trained runs."""
    runs, tau = read(folder, "trained_runs"), read(folder, "trained_tau")
    lines = []
    for name in dict.fromkeys(row["run"] for row in tau):
        rows = pick(tau, run=name)
        best = min(rows[1:], key=lambda row: float(row["fd"]))
        lines.append(
            f"| {name} | {rows[0]['fd']} | {best['fd']} | {best['tau']} | {rows[1]['fd']} | {rows[-1]['fd']} |"
        )
    told = [f"{r['run']} ({r['objective'].replace('_', ' ')}, {r['steps']} steps, N = {r['levels']})" for r in runs]
    return TRAINED.format(
        picture=picture(NAME, "trained", "Errors of trained networks over the noise level; distance over tau"),
        runs=" ".join(f"runs/digits/{r['run']}" for r in runs),
        trained=", ".join(told),
        levels=one(read(folder, "trained_grid"), "levels"),
        table="\n".join(lines),
        fixed_tau=min(pick(tau, run="fixed point")[1:], key=lambda row: float(row["fd"]))["tau"],
    )
