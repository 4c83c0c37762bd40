"""What every command says of arguments that it does not know."""

import sys

import pytest
from tqdm import tqdm

from cmdist.errors import ConfigError
from cmdist.system import cli
from ranks import REPOSITORY, pipeline
from runs import call, make_data, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return make_run(folder, "ct", make_data(folder / "data"))


COMMANDS = sorted(path.stem for path in (REPOSITORY / "pipelines").glob("*.py"))


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("sample", "RUN --out a.png --seeds 1 2 --rows 3", "--rows does nothing with --seeds or --interpolate"),
        ("sample", "RUN --out a.png --interpolate 1 2 --seed 3", "--seed does nothing with --seeds or --interpolate"),
        ("sample", "RUN --out a.png --labels 1 --rows 2", "--rows does nothing with --labels"),
        ("sample", "RUN --out a.png --steps 1 --times 80 1", "--times does nothing with --steps 1"),
        ("edit", "inpaint RUN a.png --out b --mask centre --patch 4", "--patch does nothing for inpaint"),
        ("edit", "stroke RUN a.png --out b --add-noise", "--add-noise does nothing for stroke, only for denoise"),
        ("edit", "colourise RUN a.png --out b --sigma 0.5", "--sigma does nothing for colourise, only for denoise"),
        ("evaluate", "RUN --metrics fd --inception a.pt", "--inception does nothing for fd"),
        ("evaluate", "RUN --dinov2 a.pt", "--dinov2 does nothing for fd"),
        ("evaluate", "RUN --steps heun --times 80 1", "--times does nothing with --steps heun"),
        ("evaluate", "reference a.npz --out b.npz --image-size 8 --n 9", "--n does nothing without fd"),
        ("evaluate", "reference RUN --metrics kid --seed 0", "--seed does nothing without fd"),
    ],
)
def test_a4_an_argument_that_would_do_nothing_is_refused(name, arguments, said, run):
    with pytest.raises(ConfigError, match=said):
        call(pipeline(name).main, *(str(run) if word == "RUN" else word for word in arguments.split()))


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("argument", ["--what=s3://me:hunter2@bucket/x", "--seed=s3://me:hunter2@bucket/x\x1b[2J"])
def test_a4_a_password_in_an_unknown_or_wrong_argument_is_not_shown(name, argument, capsys):
    """argparse repeats what it does not know."""
    with pytest.raises((SystemExit, ValueError)) as failure:
        call(pipeline(name).main, argument, "s3://me:hunter2@bucket/y", argument)
    said = capsys.readouterr()
    shown = said.out + said.err + cli.sentence(failure.value)
    assert "hunter2" not in shown and "\x1b" not in shown
    assert isinstance(failure.value, ValueError) or failure.value.code == 2


def test_a_sentence_is_not_glued_to_a_bar(capsys):
    """The bar is drawn anew below the sentence."""
    with tqdm(total=3, file=sys.stderr) as bar:
        bar.update()
        cli.say("error: the disk is full")
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    assert "error: the disk is full" in [line.strip() for line in lines]
