"""The formats of a run's files: an older file is brought up when it is read, a newer one is refused.

A step takes the whole tree of one format and returns that of the next. It must leave alone what is new already: a file
that says no format counts as one of format 1, people write configurations by hand, and a tree may hold some keys only.
To add a step, append it to its kind:

    def _renamed(tree: Tree) -> Tree:       # format 3 -> 4
        ...
    CONFIG = Kind("configuration", (_first_with_a_format, _objective_as_a_section, _renamed))
"""

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cmdist.errors import FormatError, Malformed

Tree = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """A kind of file; `steps[i]` makes a tree of format i + 2 from one of i + 1, both without the key `format`."""

    name: str
    steps: tuple[Callable[[Tree], Tree], ...] = ()

    @property
    def _article(self) -> str:
        return "an" if self.name[0] in "aeiou" else "a"

    @property
    def format(self) -> int:
        """What is written today."""
        return len(self.steps) + 1

    def stamp(self, tree: Tree) -> Tree:
        """The tree as it is written: `format` first."""
        return {"format": self.format} | tree

    def migrate(self, tree: Tree, where: str) -> Tree:
        """A copy as today's code writes it, without `format`. Raises FormatError for a newer one, naming `where`."""
        tree = copy.deepcopy(tree)
        version = tree.pop("format", 1)
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise FormatError(f"{where}: format {version!r} is none; that of a {self.name} is 1 to {self.format}")
        if version > self.format:
            raise FormatError(
                f"{where} is {self._article} {self.name} of format {version}; this version of cmdist reads "
                f"up to {self.format}, use a newer one"
            )
        try:
            for step in self.steps[version - 1 :]:
                tree = step(tree)
        except (AttributeError, LookupError, TypeError, ValueError) as error:  # a section is a value, or the reverse
            raise Malformed(
                f"{where} is damaged: it is no {self.name} of format {version}: {type(error).__name__}: {error}"
            ) from error
        return tree


def _first_with_a_format(tree: Tree) -> Tree:
    return tree


def _state_knows_its_configuration(tree: Tree) -> Tree:
    """Format 1 listed some keys of the configuration as the run's identity, and measured files among them."""
    old = tree.pop("identity", {})
    known: Tree = {}
    for name in ("run.seed", "objective", "optimizer.kind", "network"):
        _put(known, name, old)
    for name in ("flip", "block_shards", "classes"):
        _put(known, f"data.{name}", old)
    for name in ("global_batch", "micro_batch", "ema"):
        _put(known, f"train.{name}", old)
    measured = {"data.url": old.get("data (index hash)"), "loss.lpips_weights": old.get("loss.lpips_weights")}
    # `config` is missing: the run's config.yaml was the only one; what is known of it for certain goes over that
    return tree | {"known": known, "measured": {key: value for key, value in measured.items() if value is not None}}


def _objective_as_a_section(tree: Tree) -> Tree:
    """Format 2 had all keys of all objectives side by side: loss, curriculum and teacher become the objective's own."""
    if isinstance(tree.get("network"), dict):
        tree["network"] = {"kind": "adm"} | tree["network"]
    kind = tree.get("objective")
    if not isinstance(kind, str):
        return tree
    loss, curriculum, teacher = tree.pop("loss", {}), tree.pop("curriculum", {}), tree.pop("teacher", None)
    if tree.get("init") == "teacher" and kind != "consistency_distillation":
        tree["init"] = teacher
    own: Tree = {"kind": kind}
    if kind == "denoising":
        own |= {name: loss[name] for name in ("sigma_mean", "sigma_std") if name in loss}
    else:
        own |= _consistency(loss, curriculum)
    if kind == "consistency_distillation":
        own |= {"teacher": teacher} if teacher is not None else {}
        own |= {"solver": loss["solver"]} if "solver" in loss else {}
    return tree | {"objective": own}


_DISTANCES = {
    "pseudo_huber": {"huber_c": "c"},
    "lpips": {"lpips_weights": "weights", "lpips_pooling": "pooling", "lpips_precision": "precision"},
}
_INDICES = {"lognormal": {"index_mean": "mean", "index_std": "std"}}
_CURRICULA = {
    "constant": ("n_timesteps", "mu"),
    "paper": ("s0", "s1", "mu0", "mu_form", "total_steps"),
    "doubling": ("s0", "s1", "total_steps"),
}


def _consistency(loss: Tree, curriculum: Tree) -> Tree:
    own: Tree = {}
    for key, tables in (("distance", _DISTANCES), ("index", _INDICES)):
        if key in loss:
            names = tables.get(loss[key], {})
            own[key] = {"kind": loss[key]} | {new: loss[old] for old, new in names.items() if old in loss}
    if "weighting" in loss:
        own["weighting"] = loss["weighting"]
    if curriculum:
        kind = curriculum.get("kind", "constant")
        kept = {name: curriculum[name] for name in _CURRICULA.get(kind, curriculum) if name in curriculum}
        own["curriculum"] = {"kind": kind} | kept
    return own


def _measured_by_new_names(tree: Tree) -> Tree:
    measured = tree.get("measured", {})
    for old, new in (("loss.lpips_weights", "objective.distance.weights"), ("teacher", "objective.teacher")):
        if old in measured:
            measured[new] = measured.pop(old)
    return tree


def _put(tree: Tree, name: str, old: Tree) -> None:
    if name in old:
        *sections, leaf = name.split(".")
        for section in sections:
            tree = tree.setdefault(section, {})
        tree[leaf] = old[name]


def _figures_know_their_arithmetic(tree: Tree) -> Tree:
    """A CPU has always computed figures in float32; of a GPU's, in TF32 or not, nobody knows, and they are made again.

    The file keeps its name, and MLflow the figures under `identity`.
    """
    parts = ("title", "step", "protocol", "protocol_id", "sampling", "checkpoint")
    if tree.get("device") == "cpu" and tree.keys() >= {*parts}:
        tree["protocol"].setdefault("arithmetic", "float32 without TF32")
        tree["protocol_id"] = _name(tree["protocol"])
        tree["measured"] = _name({k: tree[k] for k in parts} | {"checkpoint": tree["checkpoint"]["weights"]})
    return tree


def _name(content: Tree) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


CONFIG = Kind("configuration", (_first_with_a_format, _objective_as_a_section))
STATE = Kind("state.json", (_state_knows_its_configuration, _measured_by_new_names))
RUN = Kind("run.json", (_first_with_a_format,))
EVALUATION = Kind("record of an evaluation", (_figures_know_their_arithmetic,))
INDEX = Kind("index of a data set")
