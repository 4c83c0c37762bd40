"""Classes and labels of one's own images: by folders, by EDM's dataset.json, in the order of a file."""

import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cmdist.data.preparing.sources.base import MOST_CLASSES, refuse_irregular
from cmdist.errors import DataError

DATASET_JSON = "dataset.json"
_SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"}
_HEXADECIMAL = re.compile(r"(?=.*[0-9])[0-9a-f]{2,}")


class Labelled(NamedTuple):
    """Classes by label, the label of each image (None: no labels), and sentences for who prepares them."""

    classes: tuple[str, ...] = ()
    labels: NDArray[np.int64] | None = None
    notes: tuple[str, ...] = ()


def parts_of(name: str) -> list[str]:
    """The folders and the name of a relative path; a backslash counts as '/', and './' as nothing."""
    return [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]


def natural(name: str) -> list[tuple[int, int, str]]:
    """A key for sorting: numbers by their value, so that 2 comes before 10."""
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def by_folder(
    names: Sequence[str], where: object, folders: Collection[str] = (), order: tuple[str, ...] | None = None
) -> Labelled:
    """Classes and labels of relative paths: the first folder is the class, in natural order or in that of `order`;
    no folders, no labels.

    Folders that hold all images, each of them in a deeper folder, are passed over: of pics/cat/0.png and pics/dog/1.png
    the classes are cat and dog. `folders` are those that are there, with images or without. Raises DataError if only
    some images lie in folders, for a folder that `order` does not name, and, without `order`, for one without images.
    """
    paths = [name.replace("\\", "/").rpartition("/")[0] for name in names]
    above = {path: parts_of(path) for path in set(paths)}
    depth = 0
    while all(len(parts) > depth + 1 for parts in above.values()) and len({p[depth] for p in above.values()}) == 1:
        depth += 1
    firsts = {path: parts[depth] if parts else "" for path, parts in above.items()}
    named = set(firsts.values()) - {""}
    if not named:
        return Labelled()
    if "" in firsts.values():
        bare = next(name for name, path in zip(names, paths, strict=True) if not firsts[path])
        raise DataError(
            f"{where}/{bare} has no label: either all images of {where} lie in sub-folders, which name their classes, "
            "or none does; --unlabelled passes over all of them"
        )
    filled = {tuple(parts[:n]) for parts in above.values() for n in range(1, depth + 2)}
    empty = sorted("/".join(p) for p in map(parts_of, folders) if len(p) <= depth + 1 and tuple(p) not in filled)
    if order is None and empty:
        raise DataError(
            f"{where}/{empty[0]} holds no images, so the labels of the classes after it would be others than expected: "
            "remove it, or name all classes in a file for --classes"
        )
    classes, notes = order or tuple(sorted(named, key=natural)), list[str]()
    if order is None and list(classes) != sorted(classes):
        notes.append("classes are in natural order: 2 comes before 10 (--classes FILE gives another)")
    if strange := sorted(named - set(classes)):
        raise DataError(f"{where}: the folder '{strange[0]}' is not among the classes of the file given by --classes")
    if order is None:
        notes += _suspicions(classes)
    number = {name: label for label, name in enumerate(classes)}
    return Labelled(classes, np.array([number[firsts[path]] for path in paths], np.int64), tuple(notes))


def _suspicions(classes: Sequence[str]) -> list[str]:
    lower = [name.lower() for name in classes]
    if splits := sorted(_SPLITS & set(lower)):
        kind = f"the folders {', '.join(splits)} look like splits of a data set"
    elif all(name.isdecimal() for name in lower) and (len({*map(len, lower)}) == 1 and len(lower[0]) > 2):
        kind = "the folders look like counters"
    elif len({*map(len, lower)}) == 1 and len(lower) > 1 and all(_HEXADECIMAL.fullmatch(name) for name in lower):
        if all(name.isdecimal() for name in lower):
            return []
        kind = "the folders look like hashes"
    else:
        return []
    return [f"warning: {kind}, not like classes; give the folder of one of them, or --unlabelled"]


def by_dataset_json(
    content: bytes, names: Sequence[str], where: str, order: tuple[str, ...] | None = None
) -> Labelled | None:
    """Labels as EDM's tools write them: {"labels": [["00000/img00000000.png", 5], ...]}, with null for none.

    `names` are relative to the folder of the file. None for a file of this name that is something else. Raises
    DataError if images are missing in it, if a label is no class number, and for classes without images that `order`
    does not name.
    """
    try:
        file = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is no JSON: {error}; remove it, or give --unlabelled") from error
    if not isinstance(file, dict) or "labels" not in file:
        return None
    rows = file["labels"]
    if rows is None:
        return Labelled()
    label: dict[str, int] = {}
    for row in rows if isinstance(rows, list) else [rows]:
        name, number = row if isinstance(row, list) and len(row) == 2 else (None, None)
        if not isinstance(name, str) or type(number) is not int or not 0 <= number < MOST_CLASSES:
            raise DataError(
                f"{where}: labels must be a list of [name, class number from 0 to {MOST_CLASSES - 1}], not "
                f"{json.dumps(row)[:80]}"
            )
        label["/".join(parts_of(name))] = number
    plain = ["/".join(parts_of(name)) for name in names]
    if missing := [name for name in plain if name not in label]:
        raise DataError(f"{where} gives no label for {missing[0]} ({len(missing)} of {len(plain)} images have none)")
    labels = np.array([label[name] for name in plain], np.int64)
    count = int(labels.max()) + 1
    if order is not None and len(order) < count:
        raise DataError(f"the file given by --classes names {len(order)} classes, but {where} has a label {count - 1}")
    if order is None and (empty := sorted({*range(count)} - {*labels.tolist()})):
        raise DataError(f"{where}: class {empty[0]} has no images; name all classes in a file for --classes")
    return Labelled(order or tuple(str(n) for n in range(count)), labels, (f"labels are those of {where}",))


def class_names(path: Path) -> tuple[str, ...]:
    """The names in a file, one on each line, in the order of their labels. Raises DataError."""
    refuse_irregular(path)
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--classes {path} cannot be read: {error}") from error
    if not names:
        raise DataError(f"--classes {path} names no class; one on each line is needed")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"--classes {path} names '{twice[0]}' twice")
    return names


def counts(classes: Sequence[str], labels: NDArray[np.int64], most: int = 20) -> str:
    """'cat 12, dog 30', with the rest counted where there are more than `most` classes."""
    each = np.bincount(labels, minlength=len(classes)).tolist()
    text = ", ".join(f"{name} {n}" for name, n in zip(classes[:most], each, strict=False))
    return text + (f" and {len(classes) - most} more of {min(each)} to {max(each)}" if len(classes) > most else "")
