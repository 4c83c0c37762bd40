"""docs/studies/limit.md: its sentences, and where their numbers come from."""

from cmdist.report.drawing import picture
from cmdist.report.tables import Table, one, pick, read

NAME = "limit"

TEXT = """# Why the number of steps must go to infinity

**The question.** Consistency training needs no teacher. Why does it need more and more noise levels N, when
distillation is content with 18?

**The answer.** *Distillation follows a curve, training averages over random walks.* A training pair is one step of a
random walk from noise to data, and on N levels training converges to the mean of the data points where the walks from
x end, which is no data point if they end in different modes. Only N → ∞ makes the walk the curve, and slowly: across a
gap between modes the mean absolute error falls like N^-{slope} (at N = {most}), where that of distillation falls like
N^-{euler_slope} (Euler) and N^-{heun_slope} (Heun).

{answer}

*Data with two modes (30 % at -1, 70 % at +1, each with standard deviation 0.2), Karras' noise levels from 80 to
0.002. Nothing is trained and nothing is sampled: left, 30 of the random walks; middle and right, quadrature.*

    python pipelines/exact.py limit         # writes this page, its tables and its figures

## What training converges to

The pair of consistency training is x = x₀ + σ z and x' = x₀ + σ' z with the same image and noise (Song et al. 2023,
Algorithm 3). The network sees x only. Given x, the image is a draw x₀' ~ p(x₀ | x), so

    x' = r x + (1 - r) x₀',   r = σ'/σ,

one step of a Markov chain. It keeps every marginal: x ~ p_σ gives x' ~ p_σ' exactly, because (x₀', x) has the joint
law of (x₀, x). Under the squared distance with a target that is held fixed, the best function is the conditional
mean, so the only fixed point on the grid is

    f_n(x) = E[f_(n-1)(X_(n-1)) | X_n = x] = E[X_1 | X_n = x].

Its mean is the data's, and its variance is what is left of the data's by the law of total variance, Var f_N(X_N) =
Var(X_1) - E Var(X_1 | X_N):

| N | variance of f_N | + lost, E Var(X_1 given X_N) | = | data |
|---|---|---|---|---|
| 18 | {var18} | {lost18} | {sum18} | {data18} |
| 80 | {var80} | {lost80} | {sum80} | {data80} |
| {most} | {varmost} | {lostmost} | {summost} | {datamost} |

Distillation's x' is a solver's step from x, so its fixed point is the end of the solver's path (Theorem 1: an error
of the solver's order). For Gaussian data f is linear, the mean of f over the walk is f of the mean, and training *is*
distillation by Euler, digit for digit (slope {gauss_slope}): a Gaussian cannot show the difference.

| mean absolute error at σ = 80 | N = 18 | 80 | {most} | slope at {most} |
|---|---|---|---|---|
| two modes: training | {training18} | {training80} | {trainingmost} | {slope} |
| two modes: Euler | {euler18} | {euler80} | {eulermost} | {euler_slope} |
| two modes: Heun | {heun18} | {heun80} | {heunmost} | {heun_slope} |
| broad modes (0.6), where f is smooth: training | {smooth18} | {smooth80} | {smoothmost} | {smooth_slope} |
| the same: Euler | {smootheuler18} | {smootheuler80} | {smootheulermost} | {smootheuler_slope} |
| Gaussian: training | {gauss18} | {gauss80} | {gaussmost} | {gauss_slope} |
| Gaussian: Euler | {gausseuler18} | {gausseuler80} | {gausseulermost} | {gausseuler_slope} |

The spread of the walks around the curve is of the size 1/√N. Where f is smooth its mean over that spread is off by
the square, 1/N. Where f has a step (the boundary between the modes), all points within 1/√N of it are off by the size
of the step: 1/√N, until the spread is narrower than the step itself. Li, Huang and Wei (2024) prove an upper bound of
the order d^(5/2) L³ / N in W₁, up to logarithms, for f with a Lipschitz constant L (their T is our N); here L is
large, and that order is not reached at any N in use.

Root mean square errors: training {rms_training18}, {rms_training80}, {rms_trainingmost} and Euler {rms_euler18},
{rms_euler80}, {rms_eulermost} at N = 18, 80, {most}.

The same on the 1,797 digits (8x8, {starts} points of noise, {walks} walks from each; error of a pixel against the
ODE's end): nothing hangs on one dimension.

| N | error, root mean square | variance of f_N | lost | sum | data |
|---|---|---|---|---|---|
{digits}

## Where it happens, what the schedules buy, why the target is held fixed

{where}

**Where.** f_n(X_n) is a martingale along the walk, so the lost variance adds up over the levels. {inside} of it is
lost between σ = 0.3 and 3 (N = 80), where walks choose their mode. A uniform choice of pairs on Karras' grid spends
{uniform} of the draws there, improved CT's log-normal draw {lognormal}: that is what it buys.

**N(k).** A learner with a table for each level moves it towards the mean of its target; expected updates, the same
number for all. What is known near the data must wander up the levels one after the other, which takes about N²
updates: a large N from the start knows nothing for most of the time, a small one is soon done and stays wrong. The
published schedules follow the lower edge of both. Errors after all updates, at σ = 80 and at the level nearest 1:

| N | uniform draw: σ = 80 | σ = 1 | log-normal draw: σ = 80 | σ = 1 |
|---|---|---|---|---|
{schedules}

The log-normal draw takes so few pairs at high noise that a table's knowledge does not get up there in this time. A
network shares its weights among the levels and is not held up like that; the table shows what the draw costs where
nothing is shared.

**The target.** With gradient through the target as well, the minimiser averages f over the level above and below
(weight 1). For
Gaussian data with standard deviation {std} its samples have {through18} at N = 18 and {throughmost} at N =
{throughlast}, with the target held fixed {held18} and {heldmost}: gradient through the target buys agreement of
neighbours by shrinking, and no N repairs that. *The boundary condition* f(x, σ_min) = x is what everything hangs on:
without it every f_n(x) = E[g(X_1) | X_n = x] is a fixed point too, g = 0 among them. *Heun at N = 18* has an error of
{heun18}, where Euler needs {euler_needs} levels.

## Theorems 2 and 6, measured

Theorem 2 says that the losses of distillation and training differ by o(Δσ); Theorem 6 says that their gradients have
one limit. For a small student f on the two modes, all expectations by quadrature:

| N | L_CT - L_CD, another target | L_CT / L_CD, own target | (N - 1) gradient: Euler | Heun | training |
|---|---|---|---|---|---|
{theorems}

The difference falls like 1/N², faster than the gap. With the student as its own target both losses are themselves of
that size, so their ratio does not go to 1: Issenhuth et al. (2024) find this discrepancy between distillation and
training in the continuous-time limit. The excess is the variance of the target given x,
which does not depend on the student that is trained: it has no gradient, and the gradients meet.

## Sources

* Song, Dhariwal, Chen, Sutskever 2023, [arXiv:2303.01469](https://arxiv.org/abs/2303.01469):
  Algorithms 2 and 3, Theorems 1, 2, 6.
* Song, Dhariwal 2023, [arXiv:2310.14189](https://arxiv.org/abs/2310.14189): the doubling N(k), the log-normal draw.
* Li, Huang, Wei 2024, [arXiv:2402.07802](https://arxiv.org/abs/2402.07802):
  how many steps training needs, a bound in W₁.
* Issenhuth et al. 2024, [arXiv:2406.09570](https://arxiv.org/abs/2406.09570):
  training and distillation differ in the limit.
* Wang, Geng, Li 2024, [arXiv:2410.18958](https://arxiv.org/abs/2410.18958):
  consistency training as temporal-difference learning.

Every number above is read from the tables in `limit/` by the command that writes them. The functions are in
`cmdist/core/studies/`, their tests in `tests/core/test_studies.py`."""


def values(folder: str) -> dict[str, str]:
    """What stands in the braces, from the tables of `folder`."""
    fixed, lost = read(folder, "fixed_points"), read(folder, "variance")
    most = max((row["levels"] for row in fixed), key=int)
    told = {"most": most, "std": read(folder, "through")[0]["std"]}
    names = {"training": "two modes", "euler": "two modes", "heun": "two modes"}
    for method, data in names.items():
        for n in ("18", "80", most):
            where = "most" if n == most else n
            told[f"{method}{where}"] = one(fixed, "mean_abs", data=data, method=method, levels=n)
            told[f"rms_{method}{where}"] = one(fixed, "rms", data=data, method=method, levels=n)
    told["slope"] = one(fixed, "mean_abs_slope", data="two modes", method="training", levels=most)
    for method in ("euler", "heun"):
        told[f"{method}_slope"] = one(fixed, "mean_abs_slope", data="two modes", method=method, levels=most)
    for name, data, method, column in (
        ("smooth", "broad", "training", "smooth"),
        ("smootheuler", "broad", "euler", "smooth"),
        ("gauss", "gaussian", "training", "mean_abs"),
        ("gausseuler", "gaussian", "euler", "mean_abs"),
    ):
        for n in ("18", "80", most):
            told[f"{name}{'most' if n == most else n}"] = one(fixed, column, data=data, method=method, levels=n)
        told[f"{name}_slope"] = one(fixed, f"{column}_slope", data=data, method=method, levels=most)
    for n in ("18", "80", most):
        row = pick(fixed, data="two modes", method="training", levels=n)[0]
        where = "most" if n == most else n
        told |= {
            f"var{where}": row["variance"],
            f"lost{where}": row["variance_lost"],
            f"data{where}": row["data_variance"],
        }
        told[f"sum{where}"] = f"{float(row['variance']) + float(row['variance_lost']):.4g}"
    at_80 = [row for row in pick(lost, levels=80) if 0.3 < float(row["sigma"]) < 3]
    for name, column in (("inside", "share"), ("uniform", "uniform"), ("lognormal", "lognormal")):
        told[name] = f"{100 * sum(float(row[column]) for row in at_80):.0f} %"
    heun = float(told["heun18"])
    enough = [r["levels"] for r in pick(fixed, data="two modes", method="euler") if float(r["mean_abs"]) <= heun]
    few = [r["levels"] for r in pick(fixed, data="two modes", method="euler") if float(r["mean_abs"]) > heun]
    told["euler_needs"] = f"between {few[-1]} and {enough[0]}"
    through = read(folder, "through")
    told |= {"through18": one(through, "through", levels=18), "held18": one(through, "held", levels=18)}
    told |= {
        "throughmost": through[-1]["through"],
        "heldmost": through[-1]["held"],
        "throughlast": through[-1]["levels"],
    }
    digits = read(folder, "digits")
    told |= {"starts": digits[0]["starts"], "walks": digits[0]["walks"]}
    told["digits"] = "\n".join(
        f"| {r['levels']} | {r['rms']} | {r['variance_f']} | {r['variance_lost']} | "
        f"{float(r['variance_f']) + float(r['variance_lost']):.3g} | {r['data']} |"
        for r in digits
    )
    told["schedules"] = schedules(read(folder, "schedules"))
    told["theorems"] = "\n".join(
        f"| {r['levels']} | {r['difference']} | {r['own_ratio']} | {r['gradient_euler']} | {r['gradient_heun']} | "
        f"{r['gradient_ct']} |"
        for r in read(folder, "theorems")
    )
    told |= {key: f"{float(value):.2f}" for key, value in told.items() if key.endswith("slope")}
    told["answer"] = picture(NAME, "answer", "Random walks against a curve; what is learnt; the error over N")
    told["where"] = picture(NAME, "where", "Where variance is lost; N(k); why the target is held fixed")
    return told


def schedules(table: Table) -> str:
    """The rows of the last moment."""
    lines = []
    for name in dict.fromkeys(row["schedule"] for row in table):
        last = {draw: pick(table, schedule=name, draw=draw)[-1] for draw in ("uniform", "log-normal")}
        levels = last["uniform"]["levels"]
        shown = f"{levels} from the start" if name == "N = s1 + 1" else name
        shown = f"{shown}, up to {levels}" if "(k)" in name else shown.removeprefix("N = ")
        cells = [last[draw][column] for draw in last for column in ("error", "error_at_1")]
        lines.append(f"| {shown} | {' | '.join(cells)} |")
    return "\n".join(lines)
