"""Whether the tests of an objective see it broken: each of its mutations, applied to the source, must fail a test.

    python tests/mutations.py [KIND ...]       all kinds without one; exit code 1 if a mutation survives

A mutation is one textual change of a file of cmdist/: a sign, sigma_data, a factor, swapped times, a missing
stop-gradient. An objective has at least five (tests/core/test_mutations.py), and its own file of tests must see each.
"""

import contextlib
import importlib.abc
import importlib.machinery
import io
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
CONSISTENCY, ECT = "core/objectives/consistency.py", "core/objectives/ect.py"
TCM, CMT, SOLVERS = "core/objectives/tcm.py", "core/objectives/cmt.py", "core/solvers.py"
NOISE, PROGRESSIVE = "core/noise.py", "core/objectives/progressive.py"
ALPHA_FLOW, FLOW = "core/objectives/alpha_flow.py", "core/flow.py"
MEAN_FLOW, LAGRANGIAN = "core/objectives/mean_flow.py", "core/objectives/lagrangian.py"
SCM, CONTINUOUS, TANGENTS = "core/objectives/scm.py", "core/objectives/continuous.py", "core/tangents.py"


@dataclass(frozen=True)
class Mutated:
    """The mutations of a kind: (file below cmdist/, text that it has once, text instead), and the tests to see them."""

    tests: str
    changes: tuple[tuple[str, str, str], ...]


_SCM = Mutated(
    "tests/core/test_scm.py",
    (
        (SCM, "-first - draw.warm_up * second", "-first + draw.warm_up * second"),
        (SCM, "x - self.sigma_data * raw.slope", "x - raw.slope"),
        (SCM, "return Losses(weight.exp() * error", "return Losses(2 * weight.exp() * error"),
        (SCM, "output = -networks", "output = networks"),
        (SCM, "cos**2 * sin * x", "cos * sin * x"),
        (SCM, "(cos**2 * x - denoised)", "(denoised - cos**2 * x)"),
        (SCM, "goal = output.detach()", "goal = output"),
    ),
)
_CONTINUOUS = Mutated(
    "tests/core/test_continuous.py",
    (
        (CONTINUOUS, "(output - output.detach() + tangent / 2)", "(output - output.detach() - tangent / 2)"),
        (CONTINUOUS, "weight * growth * pseudo", "weight * growth**2 * pseudo"),
        (CONTINUOUS, "along.slope / expand(draw.sigma, x)", "along.slope"),
        (CONTINUOUS, "weight * growth**2 * tangent", "weight * growth * tangent"),
        (CONTINUOUS, "through = self.curvature is None", "through = False"),
        (CONTINUOUS, "output - output.detach()", "output.detach() - output"),
        (CONTINUOUS, "denoised = images", "denoised = x"),
        (TANGENTS, "now.c_skip + slope.c_skip", "now.c_skip - slope.c_skip"),
    ),
)
_MEAN_FLOW = Mutated(
    "tests/core/test_mean_flow.py",
    (
        (MEAN_FLOW, "denoised) + bend - v", "denoised) - bend - v"),
        (MEAN_FLOW, "expand(a * (1 - a), x)", "expand(a, x)"),
        (MEAN_FLOW, "error / (error.detach() + c)", "error / (error + c)"),
        (MEAN_FLOW, "velocity(x, sigma, toward) - velocity", "velocity(x, sigma, images) - velocity"),
        (MEAN_FLOW, "labels, draw.dropout_seed, sigma_next)", "labels, draw.dropout_seed, sigma)"),
        (MEAN_FLOW, "expand(1 - r / a, x)", "expand(1 + r / a, x)"),
        (MEAN_FLOW, "torch.minimum(sigma, sigma_next))", "sigma_next)"),
        (MEAN_FLOW, "weighted(error.sum(1), ", "weighted(error.mean(1), "),
    ),
)
MUTATIONS: dict[str, Mutated] = {
    "mean_flow": _MEAN_FLOW,
    "improved_mean_flow": _MEAN_FLOW,
    "lagrangian": Mutated(
        "tests/core/test_mean_flow.py",
        (
            (LAGRANGIAN, "bend = -expand", "bend = expand"),
            (LAGRANGIAN, "(a * r * (1 - r))", "(a * r)"),
            (LAGRANGIAN, "expand((a - r)", "expand((a + r)"),
            (LAGRANGIAN, "bare(there, sigma_next, labels, sigma_next)", "bare(there, sigma_next, labels, sigma)"),
            (LAGRANGIAN, "velocity(there, sigma_next,", "velocity(x, sigma_next,"),
            (LAGRANGIAN, "draw.noise - images, own", "images - draw.noise, own"),
            (LAGRANGIAN, "with torch.no_grad()", "with torch.enable_grad()"),
            (LAGRANGIAN, "sigma_next, gradient=True)", "sigma_next)"),
        ),
    ),
    "continuous_distillation": _CONTINUOUS,
    "continuous_training": _CONTINUOUS,
    "scm_distillation": _SCM,
    "scm_training": _SCM,
    "easy_consistency_tuning": Mutated(
        "tests/core/test_ect.py",
        (
            (ECT, "torch.sigmoid(-self.b * sigma)", "torch.sigmoid(self.b * sigma)"),
            (ECT, "(1 + self.k *", "(1 + 0.5 * self.k *"),
            (ECT, "self.q ** -(stage + 1.0)", "self.q ** -(stage + 2.0)"),
            (ECT, "for sigma in (draw.sigma, draw.sigma_next))", "for sigma in (draw.sigma_next, draw.sigma))"),
            (ECT, ".clamp_min(self.sigma_min)", ".clamp_min(0.0)"),
            (CONSISTENCY, "with torch.no_grad(), same_dropout(draw", "with same_dropout(draw"),
        ),
    ),
    "truncated_consistency_training": Mutated(
        "tests/core/test_tcm.py",
        (
            (TCM, "draw.sigma_next < self.boundary", "draw.sigma_next <= draw.sigma"),
            (TCM, "goals[0], goals[1])", "goals[1], goals[0])"),
            (TCM, "self.boundary_weight * n / max(some, 1), n / max(n - some, 1)", "self.boundary_weight, 1.0"),
            (TCM, "with torch.no_grad(), same_dropout(draw", "with same_dropout(draw"),
            (TCM, "for sigma in (draw.sigma, draw.sigma_next))", "for sigma in (draw.sigma_next, draw.sigma))"),
            (NOISE, "density = s.cosh() ** -df", "density = s.cosh() ** -(df + 1)"),
            (NOISE, "t = sqrt(df) * (s[i - 1]", "t = (s[i - 1]"),
        ),
    ),
    "consistency_mid_training": Mutated(
        "tests/core/test_cmt.py",
        (
            (CMT, "path[-1], labels, draw)", "path[0], labels, draw)"),
            (
                CMT,
                "        with torch.no_grad():\n            path",
                "        with torch.enable_grad():\n            path",
            ),
            (CMT, "path[:-1][some], sigmas[:-1][some]", "path[:-1][some], sigmas[1:][some]"),
            (CMT, "torch.cat(distances).mean(0)", "torch.cat(distances).sum(0)"),
            (SOLVERS, "denoised + (denoised - before)", "denoised - (denoised - before)"),
            (SOLVERS, "(2 * log(sigmas[i - 1] / sigma))", "log(sigmas[i - 1] / sigma)"),
            (
                CMT,
                "torch.cat([draw.sigma.new_full((b,), value) for value in sigmas])",
                "torch.cat([draw.sigma.new_full((b,), value) for value in sigmas[::-1]])",
            ),
        ),
    ),
    "alpha_flow": Mutated(
        "tests/core/test_alpha_flow.py",
        (
            (FLOW, "return (x - (1 + s) * denoised) / s", "return (x + (1 + s) * denoised) / s"),
            (ALPHA_FLOW, "v = draw.noise - images", "v = images - draw.noise"),
            (ALPHA_FLOW, "return alpha * v + (1 - alpha) * rest", "return v + (1 - alpha) * rest"),
            (ALPHA_FLOW, "sigma_of(a - draw.alpha * (a - r))", "sigma_of(r + draw.alpha * (a - r))"),
            (
                ALPHA_FLOW,
                "bare_student(x_between, between, labels, sigma_next)",
                "bare_student(x_between, sigma, labels, sigma_next)",
            ),
            (ALPHA_FLOW, "error / (error.detach() + self.eps)", "error / (error + self.eps)"),
            (
                ALPHA_FLOW,
                "        with torch.no_grad():\n            goal",
                "        with torch.enable_grad():\n            goal",
            ),
            (ALPHA_FLOW, "bare_student(x, sigma, labels, sigma)", "bare_student(x, sigma, labels, sigma_next)"),
        ),
    ),
    "progressive_distillation": Mutated(
        "tests/core/test_progressive.py",
        (
            (PROGRESSIVE, "return (1 - part) * first + part * second", "return part * first + (1 - part) * second"),
            (PROGRESSIVE, "(1 - end / half) / (1 - end / sigma)", "(1 - end / half) / (1 - half / sigma)"),
            (PROGRESSIVE, "self.steps if n > 2 else 2 * self.steps", "self.steps if n > 1 else 2 * self.steps"),
            (PROGRESSIVE, "step >= begin + self._length(n)", "step > begin + self._length(n)"),
            (PROGRESSIVE, "self.grid(2 * n + 1)", "self.grid(2 * n)"),
            (
                PROGRESSIVE,
                "        with torch.no_grad():\n            goal",
                "        with torch.enable_grad():\n            goal",
            ),
            (PROGRESSIVE, "boundary = step > 0 and", "boundary ="),
            (NOISE, "(sigma**-2).clamp_min(1.0)", "(sigma**-2).clamp_max(1.0)"),
        ),
    ),
}


class Loader(importlib.abc.SourceLoader):
    """A module whose source has been changed."""

    def __init__(self, path: Path, old: str, new: str) -> None:
        self._path, self._source = path, path.read_text().replace(old, new)

    def get_filename(self, fullname: str) -> str:
        return str(self._path)

    def get_data(self, path: str | bytes) -> bytes:
        return self._source.encode()

    def path_stats(self, path: str | bytes) -> dict[str, float]:
        raise OSError("no cache")


class Finder(importlib.abc.MetaPathFinder):
    """Finds one module, changed."""

    def __init__(self, name: str, loader: Loader) -> None:
        self._name, self._loader = name, loader

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name:
            return None
        return importlib.machinery.ModuleSpec(fullname, self._loader, origin=str(self._loader.get_filename(fullname)))


def killed(tests: str, change: tuple[str, str, str] | None) -> bool:
    """Whether a test of a file fails with a change (None: without any), in a process of its own."""
    child = os.fork()
    if not child:
        if change is not None:
            file, old, new = change
            name = "cmdist." + file.removesuffix(".py").replace("/", ".")
            sys.meta_path.insert(0, Finder(name, Loader(REPOSITORY / "cmdist" / file, old, new)))
        os.chdir(REPOSITORY)
        with contextlib.redirect_stdout(io.StringIO()):
            code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-o", "addopts=", tests])
        os._exit(int(code))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, 1):  # neither passed nor failed: pytest could not run
        raise RuntimeError(f"{tests} with {change}: exit code {code}")
    return code == 1


def main(kinds: Sequence[str]) -> int:
    """Try all mutations of the kinds; how many survive."""
    import torch  # once, for all processes that are forked

    torch.set_num_threads(1)
    survivors = 0
    for kind in kinds or MUTATIONS:
        each = MUTATIONS[kind]
        if killed(each.tests, None):
            raise RuntimeError(f"{each.tests} fails without a mutation")
        for change in each.changes:
            dead = killed(each.tests, change)
            survivors += not dead
            print(f"{'killed  ' if dead else 'SURVIVED'} {kind}: {change[0]}: {change[1]}  ->  {change[2]}", flush=True)
    return survivors


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:]) else 0)
