"""EDM's files: read without running anything of them, and the same numbers in this project's layout."""

import io
import os
import pickle
import pickletools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cmdist.errors import CheckpointError
from cmdist.nets import edm_files, inert
from cmdist.nets.songunet import DDPMPP, SongUNet
from cmdist.nets.unet import UNet
from nets.persistence import Persistent, file, weights

HERE = Path(__file__).parent
ADM, SONG = (np.load(HERE / f"edm_{name}_tiny.npz") for name in ("adm", "ddpmpp"))


def agrees(net: torch.nn.Module, archive: Any) -> None:
    x, sigma = torch.from_numpy(archive["x"]), torch.from_numpy(archive["sigma"])
    labels = torch.from_numpy(archive["labels"]) if archive is ADM else None
    with torch.inference_mode():
        raw = net.eval()(x, sigma.log() / 4, labels)
    torch.testing.assert_close(raw, torch.from_numpy(archive["raw_at_x_and_lnsigma_over_4"]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_adm_becomes_the_unet_that_says_the_same(protocol: int) -> None:
    content = inert.read(file("DhariwalUNet", weights(ADM), protocol=protocol), "edm.pkl")
    made = edm_files.conversion(content, "edm.pkl")
    assert made.keys == {
        "data": {"image_size": 16, "channels": 3, "classes": 5},
        "network": {
            "kind": "adm",
            "model_channels": 64,
            "channel_mult": [1, 1],
            "num_res_blocks": 1,
            "attention_resolutions": [8],
            "head_channels": 64,
            "time_factor": 1.0,
            "norm_groups": "by_width",
        },
        "noise": {"sigma_data": 0.5},
    }
    shape = {"channel_mult": (1, 1), "num_res_blocks": 1, "attention_resolutions": (8,), "head_channels": 64}
    net = UNet(image_size=16, model_channels=64, num_classes=5, time_factor=1.0, **shape)  # type: ignore[arg-type]
    net.load_state_dict(made.weights)
    agrees(net, ADM)


def test_ddpmpp_keeps_its_names() -> None:
    made = edm_files.conversion(inert.read(file("SongUNet", weights(SONG)), "edm.pkl"), "edm.pkl")
    network = made.keys["network"]
    assert network == {
        "kind": "ddpmpp",
        "model_channels": 32,
        "channel_mult": [1, 2],
        "num_blocks": 1,
        "attention_resolutions": [8],
        "augment_dim": 9,
    }
    shape = {key: network[key] for key in ("model_channels", "num_blocks", "augment_dim")}
    shape |= {"channel_mult": (1, 2), "attention_resolutions": (8,)}
    net = SongUNet(image_size=16, in_channels=3, **shape, **DDPMPP)
    net.load_state_dict(made.weights)
    agrees(net, SONG)


def published_names() -> dict[str, Tensor]:
    names = {}
    for line in (HERE / "edm_imagenet64_adm_keys.txt").read_text().splitlines():
        if found := re.match(r"model\.(\S+) \[(.*?)\]", line):
            names[found[1]] = torch.empty([int(n) for n in found[2].split(",")], device="meta")
    return names


def test_each_tensor_of_the_published_teacher_has_its_place() -> None:
    made = {name: str(tuple(value.shape)) for name, value in edm_files.adm(published_names(), "edm.pkl").items()}
    released = dict(line.split(" ", 1) for line in (HERE / "imagenet64_keys.txt").read_text().splitlines())
    assert made == released


class Planted:
    """Runs a command where it is unpickled by Python's own reader."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def plants(mark: Path) -> list[Any]:
    """Each would make the file `mark`."""
    touch = f"touch {mark}"
    nested = io.BytesIO()
    torch.save(Planted(os.system, touch), nested, _use_new_zipfile_serialization=False)
    return [
        Planted(os.system, touch),
        Planted(eval, f"open({str(mark)!r}, 'w')"),
        Planted(exec, f"open({str(mark)!r}, 'w')"),
        Planted(getattr, Planted(__import__, "os"), "system"),
        Planted(torch.storage._load_from_bytes, nested.getvalue()),  # type: ignore[attr-defined]
        Planted(pickle.loads, pickle.dumps(Planted(os.system, touch))),
        Persistent("X", state=Planted(os.system, touch)),
    ]


@pytest.mark.parametrize("kind", range(7))
def test_nothing_of_a_file_is_run(tmp_path: Path, kind: int) -> None:
    mark = tmp_path / "run"
    planted = plants(mark)[kind]
    for content in (pickle.dumps(planted), file("DhariwalUNet", weights(ADM), extra=planted)):
        try:
            found = inert.read(content, "edm.pkl")
            edm_files.conversion(found, "edm.pkl")
        except CheckpointError as error:
            assert "\n" not in str(error)
        assert not mark.exists()
    if kind < 3:  # the plant works where somebody runs it
        pickle.loads(pickle.dumps(planted))
        assert mark.exists()


def test_what_is_damaged_is_one_sentence() -> None:
    content = file("DhariwalUNet", weights(ADM))
    for length in [*range(40), *range(40, len(content), len(content) // 60)]:
        with pytest.raises(CheckpointError, match="nothing of it was run"):
            inert.read(content[:length], "edm.pkl")
    draw = np.random.default_rng(0)
    for _ in range(60):
        changed = bytearray(content)
        for place in draw.integers(0, 4000, 3):
            changed[place] = draw.integers(256)
        try:
            edm_files.conversion(inert.read(bytes(changed), "edm.pkl"), "edm.pkl")
        except CheckpointError as error:
            assert "\n" not in str(error)


STAND_IN = b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n"


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def persistent(name: bytes, state: bytes) -> bytes:
    """Operations of a pickle for an object of the class that `name` leaves on the stack."""
    return STAND_IN + b"}(" + text("class_name") + name + text("state") + state + b"u\x85R"


def of_ema(ema: bytes) -> bytes:
    return b"\x80\x02}" + text("ema") + ema + b"s."


def with_sigma_data(value: bytes) -> bytes:
    modules = text("_modules") + b"}" + text("model") + persistent(text("DhariwalUNet"), b"}") + b"s"
    return of_ema(persistent(text("EDMPrecond"), b"}(" + modules + text("sigma_data") + value + b"u"))


def nested(content: bytes) -> bytes:
    return b"ctorch.storage\n_load_from_bytes\nB" + len(content).to_bytes(4, "little") + content + b"\x85R"


DOUBLED = b"K\x00" + b"2\x86" * 40  # a pair of the same pair, 40 times: 2**40 leaves
LISTS = b"]" * 100_000 + b"a" * 99_999
TUPLES = b"K\x00" + b"\x85" * 300_000
WHOLE = pickle.dumps(torch.zeros(7), 2)


@pytest.mark.parametrize(
    "content",
    [
        of_ema(persistent(DOUBLED, b"}")),
        of_ema(persistent(LISTS, b"}")),
        with_sigma_data(DOUBLED),
        with_sigma_data(LISTS),
        with_sigma_data(b"\x8b" + (9000).to_bytes(4, "little") + b"\x7f" * 9000),  # an int of 21,000 digits
        b"\x80\x02}" + DOUBLED + b"K\x01s.",
        b"\x80\x02}" + TUPLES + b"K\x01s.",
        b"\x80\x02}(" + TUPLES + b"K\x01u.",
        b"\x80\x04\x8f(" + TUPLES + b"\x90.",
        b"\x80\x04(" + TUPLES + b"\x91.",
        b"\x80\x02(" + TUPLES + b"K\x01d.",
        b"\x80\x02ccollections\nOrderedDict\n](" + TUPLES + b"K\x01\x86e\x85R.",
        b"\x80\x02"
        + nested(b"\x80\x02c__builtin__\nbytearray\n\x8a\x05" + (10**10).to_bytes(5, "little") + b"\x85R.")
        + b".",
        WHOLE.replace(b"K\x07\x85", b"J\xff\xff\xff\x7f\x85").replace(b"K\x01\x85", text("x") + b"\x85"),
    ],
)
def test_no_file_takes_any_time_or_memory(content: bytes) -> None:
    with pytest.raises(CheckpointError) as error:
        edm_files.conversion(inert.read(content, "edm.pkl"), "edm.pkl")
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.bool]
)
def test_numbers_of_each_type_are_read(dtype: torch.dtype) -> None:
    value = torch.arange(12).view(3, 4).T.to(dtype)
    for each in (value, value[:0]):
        read = inert.read(pickle.dumps({"a": each}), "edm.pkl")["a"]
        assert torch.equal(read, each) and read.dtype == dtype


@pytest.mark.parametrize("count", [1, 6, 8, 2**31 - 1])
def test_numbers_are_as_many_as_stated(count: int) -> None:
    operations = pickletools.genops(pickle.dumps(torch.zeros(7), 4))
    whole = next(value for _, value, _ in operations if isinstance(value, bytes))
    assert torch.equal(inert.read(b"\x80\x02" + nested(whole) + b".", "edm.pkl"), torch.zeros(7))
    stated = whole.replace(b"K\x07", b"J" + count.to_bytes(4, "little"), 1)
    with pytest.raises(CheckpointError):
        inert.read(b"\x80\x02" + nested(stated) + b".", "edm.pkl")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"enc.16x16_conv.weight": None}, "lacks tensors of a DhariwalUNet"),
        ({"map_layer0.weight": torch.zeros(4, 0)}, "lacks tensors of a DhariwalUNet"),
        ({"enc.8x8_block0.qkv.weight": torch.tensor(1.0)}, "lacks tensors of a DhariwalUNet"),
        ({"other": torch.zeros(2)}, "lacks tensors of a DhariwalUNet"),
        ({"out_norm.weight": torch.zeros(64, dtype=torch.complex64)}, "nothing of it was run"),
        ({".".join(["part"] * 50): torch.zeros(2)}, "names of more than 200 characters"),
    ],
)
def test_a_foreign_network_is_one_sentence(changes: dict[str, Tensor | None], sentence: str) -> None:
    tensors = {name: value for name, value in (weights(ADM) | changes).items() if value is not None}
    with pytest.raises(CheckpointError, match=sentence):
        edm_files.conversion(inert.read(file("DhariwalUNet", tensors), "edm.pkl"), "edm.pkl")


def test_a_tensor_stands_once() -> None:
    tensors = weights(ADM)
    tensors["out_norm.bias"] = tensors["out_norm.weight"] = torch.ones(64)
    content = inert.read(file("DhariwalUNet", tensors), "edm.pkl")
    top = content["ema"].arguments[0]["state"]["_modules"]["model"].arguments[0]["state"]["_modules"]["out_norm"]
    parameters = top.arguments[0]["state"]["_parameters"]
    parameters["bias"] = parameters["weight"]
    with pytest.raises(CheckpointError, match="more tensors than numbers"):
        edm_files.conversion(content, "edm.pkl")


def test_no_file_changes_the_reader() -> None:
    state = pickle.dumps((None, {"__defaults__": (1, 2, 3, 4)}), 2)[2:-1]
    with pytest.raises(CheckpointError, match="nothing of it was run"):
        inert.read(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + state + b"b.", "edm.pkl")
    assert inert._tensor.__defaults__ is None


def memo(index: int) -> bytes:
    return b"\x80\x04Nr" + index.to_bytes(4, "little") + b"."


@pytest.mark.parametrize(
    "content",
    [
        memo(2**32 - 1) + b"",
        b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b".",  # a bytearray of a terabyte
        b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b".",
        b"\x80\x02cposix\nsystem\nP1\n.",
        b"\x80\x02\x82\x01.",
    ],
)
def test_bombs_take_no_memory(content: bytes) -> None:
    try:
        assert inert.read(content, "edm.pkl") is None
    except CheckpointError as error:
        assert "nothing of it was run" in str(error)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"ema": 3}, "holds no network where an EDMPrecond named ema is needed"),
        ([1], "holds no network where an EDMPrecond"),
        ({"ema": Persistent("VPPrecond")}, "holds VPPrecond where an EDMPrecond"),
        ({"ema": Persistent("EDMPrecond", sigma_data=0.5)}, "holds no network where SongUNet or DhariwalUNet is read"),
    ],
)
def test_another_content_is_one_sentence(content: Any, sentence: str) -> None:
    file("DhariwalUNet", {})
    with pytest.raises(CheckpointError) as error:
        edm_files.conversion(inert.read(pickle.dumps(content), "edm.pkl"), "edm.pkl")
    assert sentence in str(error.value)


def test_tensors_beyond_their_numbers_are_refused() -> None:
    tensors = weights(ADM)
    tensors["out_norm.weight"] = torch.zeros(1).expand(2**40)
    with pytest.raises(CheckpointError):
        inert.read(file("DhariwalUNet", tensors), "edm.pkl")
    del tensors["out_norm.weight"], tensors["map_layer0.weight"]
    with pytest.raises(CheckpointError, match="lacks tensors of a DhariwalUNet"):
        edm_files.conversion(inert.read(file("DhariwalUNet", tensors), "edm.pkl"), "edm.pkl")
