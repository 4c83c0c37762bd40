"""Points B.3 and B.7: what is printed holds no secret of a URL, and nothing that moves a terminal's cursor."""

import subprocess
import sys

import pytest

from cmdist.errors import CmdistError
from cmdist.system import cli, texts, urls
from ranks import REPOSITORY

SECRET = "hunter2"


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:hunter2@bucket/x",
        "s3://hunter2@bucket/x",
        "S3://hunter2@bucket/x",
        "hf://hunter2@datasets/x",
        "https://me:hunter2@host/x",
        "https://host/x?X-Amz-Signature=hunter2",
        "https://host#hunter2",
        "https://host?hunter2",
        "postgresql://me:hunter2@host/db",
        "mysql+pymysql://me:hunter2@host/db",
        "ftp://me:hunter2@host/x",
        "https://me:hunter2@[::1/x",
        "pipe:curl https://me:hunter2@host",
    ],
)
def test_b3_a_url_with_a_secret_is_refused_without_it(url):
    with pytest.raises(CmdistError) as error:
        urls.refuse_secrets(url)
    assert SECRET not in str(error.value) and SECRET not in urls.masked(f"got '{url}', no luck")


def test_b3_masking_leaves_the_rest_of_a_text():
    text = "FAILED s3://key:hunter2@bucket/a b, then (https://h/x?y=hunter2) and /home/me/a?b#c@d"
    assert urls.masked(text) == "FAILED s3://***@bucket/a b, then (https://h/x?***) and /home/me/a?b#c@d"


def test_b3_an_error_of_a_library_is_masked_too():
    assert SECRET not in cli.sentence(RuntimeError("could not connect to postgresql://me:hunter2@host/db"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["prepare_data.py", "shards", "s3://key:hunter2@bucket/x"],
        ["prepare_data.py", "folder", ".", "--out", "s3://key:hunter2@bucket/x"],
        ["compare.py", "--experiment", "x", "--uri", "postgresql://me:hunter2@host/db"],
        ["compare.py", "https://me:hunter2@host/run"],
        ["checkpoints.py", "--debug", "list", "s3://key:hunter2@bucket/x"],
    ],
)
def test_b3_no_command_prints_a_secret(arguments):
    command = [sys.executable, str(REPOSITORY / "pipelines" / arguments[0]), *arguments[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode and SECRET not in done.stdout + done.stderr and "error: " in done.stderr


def test_b7_control_characters_are_shown_not_sent():
    assert texts.printable("a\x1b[2Jb\r\x9bc\u202ed\ne\tf") == "a\\x1b[2Jb\\r\\x9bc\\u202ed\ne\tf"
    assert "\x1b" not in cli.sentence(CmdistError("set aside: \x1b]0;title\x07"))


def test_numbers_agree_with_what_they_count() -> None:
    assert [texts.counted(n, "shard") for n in (0, 1, 2, 2048)] == ["0 shards", "1 shard", "2 shards", "2,048 shards"]
    assert texts.counted(1, "class", "classes") == "1 class" and texts.counted(3, "class", "classes") == "3 classes"
