"""Points A.3 and C: what a value looks like is what it is, and no text stands for more than it holds."""

import math
import time

import pytest

from cmdist.system import plain_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1.0e-05", 1e-5),
        ("1E3", 1000.0),
        ("-2.5", -2.5),
        (".5", 0.5),
        ("1_000", 1000),
        ("0", 0),
        ("-7", -7),
        ("0x10", 16),
        ("1:30", "1:30"),
        ("190:20:30", "190:20:30"),
        ("1:30.5", "1:30.5"),
        ("010", "010"),
        ("2001-01-01", "2001-01-01"),
        ("yes", True),
        ("off", False),
        ("'1'", "1"),
        ("~", None),
        ("", None),
        ("[1, 2.0, a]", [1, 2.0, "a"]),
        ("1e", "1e"),
        ("e5", "e5"),
        ("s3://bucket/key", "s3://bucket/key"),
    ],
)
def test_a3_a_value_is_what_it_looks_like(text, value):
    found = plain_yaml.load(text)
    assert found == value and type(found) is type(value)
    assert plain_yaml.load(plain_yaml.dump({"key": value})) == {"key": value}


def test_a3_infinities_and_nan_are_read_so_that_they_can_be_refused_by_name():
    assert plain_yaml.load("-.inf") == -math.inf and math.isnan(plain_yaml.load(".nan"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: 1\nb: 2\na: 3\n", r"the key 'a' stands twice, again in line 3"),
        ("x: {b: 1, b: 1}", r"the key 'b' stands twice"),
        ("a: &x [1]\nb: *x\n", r"an alias \(\*name\) stands for another value"),
        ("a: [" * 30 + "]" * 30, r"more than 20 levels"),
        ("[" * 100_000, r"more than 20 levels"),
        ("a: [secret", r"^it is not YAML in line 1, column \d+$"),
        ("!!python/object/apply:os.system [id]", r"^it is not YAML in line 1, column 1$"),
        ("a: \x07", r"^it is not YAML \(ReaderError\)$"),
        ("0x_", r"^it is not YAML"),
    ],
)
def test_a3_what_cannot_be_meant_is_refused_without_its_value(text, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        plain_yaml.load(text)
    assert "secret" not in str(caught.value)


def test_c_nested_anchors_are_refused_at_once():
    text = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 30))
    begin = time.monotonic()
    with pytest.raises(ValueError, match="an alias"):
        plain_yaml.load(text)
    assert time.monotonic() - begin < 1


def test_what_is_dumped_twice_is_written_out():
    shared = [1, 2]
    assert plain_yaml.load(plain_yaml.dump({"a": shared, "b": shared})) == {"a": [1, 2], "b": [1, 2]}
