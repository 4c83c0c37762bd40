"""A study of small runs on digits, for tests that train it."""

from pathlib import Path

STUDY = """
title: A small study
question: Is it there?
data: data/digits
prepare: [digits]
seeds: [1, 2]
keys: {train.glance_every: 0, train.self_check: false}
groups:
  teacher: {config: configs/digits/edm.yaml, keys: {train.steps: 4}, measure: {n: 128}}
  cd:
    config: configs/digits/cd.yaml
    keys: {train.steps: 4}
    after: {objective.teacher: teacher}
    axes:
      distance: {l1: {objective.distance: {kind: l1}}, l2: {objective.distance: {kind: l2}}}
    measure: {n: 128, at: [2], times: {'3': [80.0, 2.0, 0.5]}}
panels:
  - {title: images, x: images, by: distance, groups: [cd], steps: ['1']}
  - {title: steps, x: steps, by: distance, groups: [cd]}
  - {title: distances, x: distance, kind: bars, groups: [cd], steps: ['2']}
text: "One step with l1 {{median: cd distance=l1 1}}, at first {{low: cd distance=l1 step=2 1}}."
"""


def write(folder: Path, text: str = STUDY, name: str = "small") -> str:
    """The study's file."""
    (folder / f"{name}.yaml").write_text(text)
    return str(folder / f"{name}.yaml")
