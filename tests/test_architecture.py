"""The shape of the code, read from its syntax trees: one door for each foreign package, imports in one direction, small
files.
"""

import ast
import functools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LONGEST = 350  # lines
WIDEST = 120  # columns

DOORS = {
    "deepspeed": "cmdist/train/engine.py",
    "webdataset": "cmdist/data/preparing/shards.py",
    "lpips": "cmdist/nets/lpips.py",
    "cleanfid": "cmdist/nets/inception.py",
    "mlflow": "cmdist/tracking/mlflow.py",
    "fsspec": "cmdist/system/storage.py",
    "lmdb": "cmdist/data/preparing/sources/lsun.py",
    "fontTools": "cmdist/data/preparing/sources/font.py",
}

# Each part may import from the parts of the layers below it, and from itself; pipelines and cluster may import all of
# them.
LAYERS = [
    {"errors", "seeding"},
    {"system", "gpus", "dataless"},
    {"core", "migrations"},
    {"tracking"},
    {"data", "nets", "checkpoints"},
    {"evaluation"},
    {"train", "report"},
    {"sections"},
    {"kinds"},
    {"schema"},
    {"config"},
    {"identity"},
    {"models"},
    {"pins"},
    {"build"},
    {"teachers"},
    {"guiding"},
    {"communication", "plan", "quality", "train.assembly", "train.beforehand", "theory"},
    {"scale"},
    {"cost", "recipe", "train.start", "tuning", "play"},
    {"train.telling"},
    {"train.running"},
    {"studies"},
]
LAYER = {part: number for number, layer in enumerate(LAYERS) for part in layer}


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports(tree: ast.AST) -> Iterator[str]:
    """The dotted names that a file imports anywhere, in functions too, and by importlib; `from a import b` gives 'a'
    and 'a.b'.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import; write it in full"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                yield str(node.args[0].value)


@functools.cache
def imports_of(path: Path) -> set[str]:
    return set(imports(ast.parse(path.read_text(), str(path))))


def part_of(module: str) -> str:
    """'train' for 'cmdist.train.engine', 'train.assembly' where a layer names it; '' for cmdist itself."""
    if (file := ".".join(module.split(".")[1:3])) in LAYER:
        return file
    part = module.partition(".")[2].partition(".")[0]
    return (
        part if part in LAYER or (ROOT / "cmdist" / part).is_dir() or (ROOT / "cmdist" / f"{part}.py").exists() else ""
    )


def file_of(module: str) -> list[Path]:
    """The files that Python runs for `import module`: those of its packages and its own, as far as they are in this
    repository. A script's own folder is on the path, so pipelines/ is one more root.
    """
    names = module.split(".")
    stems = [root.joinpath(*names[: n + 1]) for root in (ROOT, ROOT / "pipelines") for n in range(len(names))]
    return [path for stem in stems for path in (stem / "__init__.py", stem.with_suffix(".py")) if path.exists()]


def reachable(start: Path) -> set[Path]:
    """`start` and every file of this repository that it imports, directly or not, at once or later."""
    seen: set[Path] = set()
    todo = [start]
    while todo:
        path = todo.pop()
        if path not in seen:
            seen.add(path)
            todo += [file for module in imports_of(path) for file in file_of(module)]
    return seen


def test_the_reader_of_imports_sees_every_form() -> None:
    text = """
import a, b.c as d
from e.f import g as h, i
def late():
    if True:
        import j
    return importlib.import_module("k.l"), __import__("m"), other("n")
"""
    assert set(imports(ast.parse(text))) == {"a", "b.c", "e.f", "e.f.g", "e.f.i", "j", "k.l", "m"}
    with pytest.raises(AssertionError, match="relative"):
        list(imports(ast.parse("from . import x")))


def test_reachable_follows_imports_through_files() -> None:
    found = {path.relative_to(ROOT).as_posix() for path in reachable(ROOT / "pipelines/train.py")}
    assert {
        "cmdist/__init__.py",
        "cmdist/train/__init__.py",
        "cmdist/train/engine.py",
        "cmdist/core/noise.py",
        "cmdist/errors.py",
    } <= found


def test_reachable_follows_imports_between_scripts() -> None:
    scripts = reachable(ROOT / "pipelines/benchmarks/first_hour/steps.py")
    assert {ROOT / "pipelines/benchmarks/_trainer.py", ROOT / "cmdist/train/engine.py"} <= scripts


@pytest.mark.parametrize("package", DOORS)
def test_each_foreign_package_has_one_door(package: str) -> None:
    ours = [
        p for p in sources("cmdist", "pipelines", "cluster") if p.parent.name != "benchmarks"
    ]  # which measure packages beside us
    files = [p for p in ours if package in {name.partition(".")[0] for name in imports_of(p)}]
    assert [p.relative_to(ROOT).as_posix() for p in files] == [DOORS[package]]


def test_core_imports_only_torch_and_the_standard_library() -> None:
    allowed = sys.stdlib_module_names | {"torch"}
    core = sources("cmdist/core")
    assert core
    foreign = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in core
        for name in imports_of(path)
        if name.partition(".")[0] not in allowed and not f"{name}.".startswith("cmdist.core.")
    }
    assert foreign == set()


def test_every_part_has_its_layer() -> None:
    found = {
        path.stem for path in (ROOT / "cmdist").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert found - {"__init__"} - set(LAYER) == set(), "say in LAYERS where this part belongs"


def test_imports_point_down() -> None:
    wrong = set()
    for path in sources("cmdist"):
        part = part_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for name in imports_of(path):
            other = part_of(name) if name.partition(".")[0] == "cmdist" else ""
            if name.partition(".")[0] in ("pipelines", "cluster", "tests") or (
                other and other != part and LAYER[other] >= LAYER[part]
            ):
                wrong.add(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == set()


def test_the_package_itself_imports_nothing() -> None:
    """Else `import cmdist.errors` would load it, and the layers above would mean nothing."""
    packages = [path for path in sources("cmdist") if path.name == "__init__.py"]
    assert {
        f"{p.relative_to(ROOT)}: {name}" for p in packages for name in imports_of(p) if name.startswith("cmdist")
    } == set()


TRAINING = ("pipelines/train.py", "pipelines/benchmark.py")  # a benchmark times training
COMMANDS = [p.relative_to(ROOT).as_posix() for f in ("pipelines", "cluster") for p in sorted((ROOT / f).glob("*.py"))]


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in TRAINING])
def test_only_training_needs_deepspeed(command: str) -> None:
    start = ROOT / command
    door = ROOT / DOORS["deepspeed"]
    assert door not in reachable(start)
    assert not any(name.partition(".")[0] == "deepspeed" for path in reachable(start) for name in imports_of(path))


def test_training_is_seen_to_need_deepspeed() -> None:
    """Else the test above would pass for a walk that finds nothing."""
    assert ROOT / DOORS["deepspeed"] in reachable(ROOT / TRAINING[0])


def test_no_pipeline_imports_another() -> None:
    """What two of them need is the library's; a benchmark may import its own package."""
    wrong = set()
    for path in sources("pipelines"):
        here = path.relative_to(ROOT / "pipelines")
        for name in imports_of(path):
            for other in file_of(name):
                there = other.relative_to(ROOT).parts
                if there[0] == "pipelines" and not (here.parts[0] == there[1] == "benchmarks"):
                    wrong.add(f"{here} imports {name}")
    assert wrong == set()


def names_of(tree: ast.AST) -> set[str]:
    """The names that a file binds by importing from cmdist."""
    return {
        alias.asname or alias.name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
        if f"{getattr(node, 'module', None) or alias.name}.".startswith("cmdist.")
    }


def patches(tree: ast.AST) -> Iterator[str]:
    """Assignments to attributes of what was imported from cmdist, by `=` or `setattr`."""
    ours = names_of(tree)
    for node in ast.walk(tree):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, (ast.AugAssign, ast.AnnAssign)):
            targets = [node.target]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setattr":
            targets = [ast.Attribute(node.args[0], "")]
        for target in targets:
            owner = target.value if isinstance(target, ast.Attribute) else None
            while isinstance(owner, ast.Attribute):
                owner = owner.value
            if isinstance(owner, ast.Name) and owner.id in ours:
                yield f"line {node.lineno}: {ast.unparse(node)}"  # type: ignore[attr-defined]


def test_production_code_patches_nothing_in_the_library() -> None:
    text = """
from cmdist.evaluation import measurement as m
from cmdist.train.trainer import Trainer
import torch
torch.backends.x = 1
m.frechet.frechet_distance = later
setattr(Trainer, "fit", later)
"""
    assert [found.partition(":")[0] for found in patches(ast.parse(text))] == ["line 6", "line 7"]
    found = {path: list(patches(ast.parse(path.read_text()))) for path in sources("cmdist", "pipelines", "cluster")}
    assert {str(path.relative_to(ROOT)): lines for path, lines in found.items() if lines} == {}


def trusted(tree: ast.AST) -> Iterator[str]:
    """Texts that a file takes for markup though they are not written out in it, and HTML outside of Markup("...")."""
    inside = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Markup":
            inside |= {id(argument) for argument in node.args if isinstance(argument, ast.Constant)}
            if not all(isinstance(a, ast.Constant) or getattr(a, "id", "").isupper() for a in node.args):
                yield f"line {node.lineno}: Markup of what is no constant"
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) and id(node) not in inside else None
        if isinstance(text, str) and re.search(r"</?[a-z]+[ >]|&[a-z]+;", text):
            yield f"line {node.lineno}: HTML in a string"


def test_html_is_made_by_what_escapes() -> None:
    text = 'a = Markup("<b>{}</b>").format(x)\nb = f"<b>{x}</b>"\nc = Markup(x)\nd = Markup(CSS)\ne = "<p class=1>"\n'
    assert sorted({line.partition(":")[0] for line in trusted(ast.parse(text))}) == ["line 2", "line 3", "line 5"]
    found = {path: list(trusted(ast.parse(path.read_text()))) for path in sources("cmdist/report", "cmdist/studies")}
    assert {path.name: lines for path, lines in found.items() if lines} == {}


def waits(tree: ast.AST) -> Iterator[str]:
    """Calls that may wait for ever: a program without a limit, a lock that another process may keep."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name, given = ast.unparse(node.func), {keyword.arg for keyword in node.keywords}
        runs = name in ("subprocess.run", "subprocess.check_output", "subprocess.check_call")
        if runs and "timeout" not in given:
            yield f"line {node.lineno}: {name} without a timeout"
        if name == "fcntl.flock" and not re.search("LOCK_NB|LOCK_SH|LOCK_UN", ast.unparse(node)):
            yield f"line {node.lineno}: a lock without a limit"


def test_what_waits_for_another_process_has_a_limit() -> None:
    text = "subprocess.run(a)\nsubprocess.run(a, timeout=1)\nfcntl.flock(f, LOCK_EX)\nfcntl.flock(f, A | LOCK_NB)"
    assert [line.partition(":")[0] for line in waits(ast.parse(text))] == ["line 1", "line 3"]
    files = [path for path in sources("cmdist", "pipelines", "cluster") if "benchmarks" not in path.parts]
    found = {str(path.relative_to(ROOT)): list(waits(ast.parse(path.read_text()))) for path in files}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_no_two_files_of_tests_have_one_name() -> None:
    """pytest imports them by their names alone."""
    names = [path.name for path in sources("tests") if path.name.startswith("test_")]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []


def test_lines_are_not_too_long() -> None:
    scripts = [p for kind in ("*.sh", "*.bash", "*.sbatch") for p in (ROOT / "cluster").rglob(kind)]
    assert scripts
    wide = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in [*sources("cmdist", "pipelines", "cluster", "tests"), *scripts]
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(re.sub(r"  # (type: ignore|noqa)\b.*", "", line)) > WIDEST  # as ruff counts them
    ]
    assert wide == []


def test_files_stay_small() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for path in sources("cmdist", "pipelines", "cluster")
    }
    assert {name: n for name, n in lengths.items() if n > LONGEST} == {}
