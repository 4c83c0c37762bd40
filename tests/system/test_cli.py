"""What every command says of arguments that it does not know."""

import pytest

from cmdist.system import cli
from ranks import REPOSITORY, pipeline
from runs import call

COMMANDS = sorted(path.stem for path in (REPOSITORY / "pipelines").glob("*.py"))


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("argument", ["--what=s3://me:hunter2@bucket/x", "--seed=s3://me:hunter2@bucket/x\x1b[2J"])
def test_a_password_in_an_unknown_or_wrong_argument_is_not_shown(name, argument, capsys):
    """argparse repeats what it does not know."""
    with pytest.raises((SystemExit, ValueError)) as failure:
        call(pipeline(name).main, argument, "s3://me:hunter2@bucket/y", argument)
    said = capsys.readouterr()
    shown = said.out + said.err + cli.sentence(failure.value)
    assert "hunter2" not in shown and "\x1b" not in shown
    assert isinstance(failure.value, ValueError) or failure.value.code == 2
