"""The plan's figures against counts by hand and against what a real pass needs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cmdist import build, communication, config, gpus, scale
from cmdist.core.objectives.base import Networks
from cmdist.core.objectives.consistency import Pairs
from cmdist.errors import ConfigError
from cmdist.plan import Counter, plan
from ranks import pipeline

ROOT = Path(__file__).parent.parent
NARROW = """
objective: consistency_training
run: {name: narrow}
data: {url: x, image_size: 16, channels: 3}
network: {model_channels: 32, channel_mult: [1, 2], num_res_blocks: 1, attention_resolutions: [8], head_channels: 32}
curriculum: {kind: paper}
optimizer: {lr: 1.0e-4}
train: {steps: 10, global_batch: 8, micro_batch: 2, precision: fp32}
"""


def flops(*overrides: str) -> float:
    return plan(config.parse(NARROW, overrides), 1).flops


def test_training_costs_its_passes() -> None:
    """CT: student forward, its backward of about twice that, target forward. Distillation adds the teacher's forward
    passes.
    """
    found = plan(config.parse(NARROW), 1)
    one = found.forward_flops
    assert (
        3.95 < found.flops / one < 4.05
    )  # not 4: the images need no gradient, and attention's backward computes its scores again
    distil = ["objective.kind=consistency_distillation", "objective.teacher=runs/t"]
    assert flops(*distil, "objective.solver=euler") - found.flops == one
    assert flops(*distil, "objective.solver=heun") - found.flops == 2 * one
    guided = [*distil, "data.classes=10", "objective.guidance=2.0"]
    assert flops(*guided, "objective.solver=euler") - found.flops == 2 * one
    assert flops(*guided, "objective.solver=heun") - found.flops == 4 * one
    assert flops("objective.kind=denoising") == found.flops - one
    assert flops("train.micro_batch=4") == found.flops


def test_a_derivative_along_a_path_costs_two_passes() -> None:
    """sCM: the student's forward pass and its backward of twice that, and the value and its tangent without gradient;
    attention's tangent is of three factors. Nothing of it is kept for a backward pass.
    """
    training = ["objective.kind=scm_training", "noise.c_noise=angle", "network.time_factor=1"]
    found = plan(config.parse(NARROW, training), 1)
    assert 4.95 < found.flops / found.forward_flops < 5.1
    distil = ["objective.kind=scm_distillation", "objective.teacher=runs/t"]
    assert flops(*distil) - found.flops == found.forward_flops
    plain = plan(config.parse(NARROW, ["objective.kind=denoising"]), 1)
    assert found.memory["activations"] < 1.3 * plain.memory["activations"]


def test_a_gradient_through_the_derivative_costs_its_backward_pass_too() -> None:
    """Theorem 3: the value and the tangent are two passes, and their backward pass is of four."""
    keys = ["objective.kind=continuous_distillation", "objective.teacher=runs/t", "objective.gradient=through"]
    found = plan(config.parse(NARROW, keys), 1)
    assert 6.9 < found.flops / found.forward_flops < 7.2  # with the teacher's
    stopped = plan(config.parse(NARROW, keys[:2]), 1)
    assert 5.9 < stopped.flops / stopped.forward_flops < 6.1
    assert found.memory["activations"] > 1.5 * stopped.memory["activations"]


def test_a_convolution_is_counted_as_two_operations_for_each_product() -> None:
    """Beyond the network's stem and head, by hand: doubling the images doubles, and the stem alone is 2 * 9 * 3 * 32 *
    16 * 16.
    """
    with torch.device("meta"):
        stem = build.network(config.parse(NARROW)).input_blocks[0][0]
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        stem(torch.empty(1, 3, 16, 16, device="meta"))
    assert counter.get_total_flops() == 2 * 9 * 3 * 32 * 16 * 16


def test_memory_is_parameters_times_copies() -> None:
    made = config.parse(
        NARROW, ["objective.kind=consistency_distillation", "objective.teacher=runs/t", "train.ema=[0.9,0.99]"]
    )
    found = plan(made, 4)
    one = 4.0 * found.parameters
    assert (
        found.memory["weights"] == found.memory["gradients"] == found.memory["target"] == found.memory["teacher"] == one
    )
    assert found.memory["moments"] == 2 * one / 4 and found.memory["averages (2)"] == 2 * one / 4
    assert found.host_memory == 6 * one / 4
    stage0 = plan(config.parse(config.dump(made), ["train.zero_stage=0"]), 4).memory
    assert stage0["moments"] == 2 * one and "fp32 master slice" not in stage0
    assert plan(config.parse(config.dump(made), ["train.zero_stage=2"]), 4).memory["gradients"] == one / 4
    assert (
        "target"
        not in plan(
            config.parse(config.dump(made), ["objective.curriculum.kind=constant", "objective.curriculum.mu=0.0"]), 4
        ).memory
    )


def test_activations_are_those_of_a_real_pass() -> None:
    """The same objective with data: the live bytes at the peak are those of the plan, and grow with the batch, less
    with checkpointing.
    """
    made = config.parse(NARROW)
    net, target = build.network(made), build.network(made).requires_grad_(False)
    for parameter in net.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    denoise, images = build.model(made, net), torch.zeros(2, 3, 16, 16)
    networks = Networks(denoise, denoise, target=build.model(made, target))
    draw = Pairs(torch.ones(2), torch.zeros_like(images), 0, sigma_next=torch.ones(2) / 2)
    with Counter() as live:
        build.objective(made, lambda keys: build.distance(made, keys)).loss(
            networks, images, None, draw
        ).minimised.mean().backward()
    planned = plan(made, 1).memory["activations"]
    assert planned == pytest.approx(live.peak, rel=0.02)
    larger = plan(config.parse(NARROW, ["train.micro_batch=8"]), 1).memory["activations"]
    assert 2.5 < larger / planned <= 4.01
    assert (
        plan(config.parse(NARROW, ["train.micro_batch=8", "network.checkpoint_activations=true"]), 1).memory[
            "activations"
        ]
        < 0.8 * larger
    )


def test_bytes_touched_are_those_of_each_tensor_that_an_operation_is_given_and_gives() -> None:
    """A view touches nothing; what is expanded lies in memory once; what is changed in place is read and written."""
    a, b, row = torch.zeros(64, 32), torch.zeros(64, 32), torch.zeros(32)
    with Counter() as counter:
        a + b
        a.view(-1)[:64].reshape(8, 8).t()
        torch.empty(1000)
        a.mul(row.expand(64, 32))
        a.relu_()
        a.bfloat16()
    one = 4 * 64 * 32
    assert counter.touched == {"add": 3 * one, "mul": 2 * one + 4 * 32, "relu_": 2 * one, "_to_copy": 1.5 * one}


def test_frozen_networks_are_kept_in_the_precision_and_not_cast_at_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of three calls (Heun's two of the teacher, one of the target) would read 4 bytes of a weight and write 2."""
    distil = ["objective.kind=consistency_distillation", "objective.teacher=runs/t"]
    full, half = (plan(config.parse(NARROW, [*distil, f"train.precision={p}"]), 1) for p in ("fp32", "bf16"))
    one = 4.0 * full.parameters
    assert full.memory["teacher"] == full.memory["target"] == one
    assert 0.5 * one < half.memory["teacher"] < 0.52 * one
    assert half.memory["teacher"] + half.memory["target"] == 2 * one  # the target's 16 bits are beside its fp32
    low, casts = one - half.memory["teacher"], "casts and changes of format"
    monkeypatch.setattr("cmdist.nets.unet.UNet.lower", lambda net: net)
    cast = plan(config.parse(NARROW, [*distil, "train.precision=bf16"]), 1)
    assert cast.touched[casts] - half.touched[casts] == 3 * (4 + 2) / 2 * low


@pytest.mark.parametrize("ranks", [8, pytest.param(64, marks=pytest.mark.slow)])
def test_lsun_distillation_fits_80_gb(ranks: int) -> None:
    """LSUN: 2,238.7 GFLOP a forward pass; CD with Heun and LPIPS is six passes and VGG."""
    command = ["pipelines/train.py", "configs/lsun_bedroom256/cd.yaml", "--plan", "--ranks", str(ranks)]
    shown = subprocess.run([sys.executable, *command], cwd=ROOT, text=True, capture_output=True, check=True).stdout
    assert f"on {ranks} A100 GPUs of 80 GB" in shown
    assert "forward pass                          2,238.7 GFLOP an image" in shown
    assert "training                              13.558 TFLOP an image" in shown
    assert "fits" in shown and "does not fit" not in shown


def test_a_plan_that_does_not_fit_says_what_helps(capsys: pytest.CaptureFixture[str]) -> None:
    path = ROOT / "configs" / "imagenet64" / "edm.yaml"
    pipeline("train").main([str(path), "--plan", "--ranks", "8", "--gpu-memory", "4", "train.micro_batch=1"])
    assert (
        "does not fit: lower train.micro_batch, or set network.checkpoint_activations=true" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--gpu", "v1"],
            "--gpu v1: a100, a100-40gb, h100, h100-pcie, h200, b200, a40, l40s are known; of others give",
        ),
        (["--mfu", "0"], "--mfu 0: a number above 0 and up to 1 is needed"),
        (["--mfu", "1.5"], "--mfu 1.5: a number above 0 and up to 1 is needed"),
        (["--peak-tflops", "nan"], "--peak-tflops nan: a number above 0 is needed"),
        (["--peak-tflops", "-3"], "--peak-tflops -3: a number above 0 is needed"),
        (["--gpu-memory", "inf"], "--gpu-memory inf: a number above 0 is needed"),
        (["--ranks", "0"], "--ranks must be 1 to 1048576, not 0"),
        (["--ranks", "3"], "3 ranks cannot share train.global_batch / train.micro_batch = 16 micro-batches evenly"),
    ],
)
def test_impossible_plans_are_one_sentence(arguments: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        pipeline("train").main([str(ROOT / "configs" / "cifar10" / "cd.yaml"), "--plan", *arguments])


def test_a_run_has_the_ranks_of_its_launcher() -> None:
    with pytest.raises(ConfigError, match="--ranks is for --plan and --dry-run; a run has the ranks of its launcher"):
        pipeline("train").main([str(ROOT / "configs" / "cifar10" / "cd.yaml"), "--ranks", "8"])


def test_the_peak_is_that_of_the_precision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "narrow.yaml").write_text(NARROW)
    for precision, peak in (("fp32", 156), ("bf16", 312), ("fp16", 312)):
        pipeline("train").main([str(tmp_path / "narrow.yaml"), "--plan", f"train.precision={precision}"])
        assert f"if 30% of {peak} TFLOP/s are reached: an assumption, not a measurement" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--gpu", "h100"], ["1 H100 GPU of 80 GB", "30% of 989.5 TFLOP/s", "not a measurement on H100s"]),
        (["--gpu", "H200", "train.precision=fp32"], ["1 H200 GPU of 141 GB", "30% of 494.7 TFLOP/s"]),
        (["--gpu", "h100", "--gpu-memory", "94", "--peak-tflops", "835"], ["of 94 GB", "30% of 835 TFLOP/s"]),
        (["--mfu", "0.4"], ["1 A100 GPU of 80 GB", "40% of 312 TFLOP/s"]),
    ],
)
def test_a_gpu_has_the_peaks_of_its_data_sheet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: list[str]
) -> None:
    (tmp_path / "narrow.yaml").write_text(NARROW)
    pipeline("train").main([str(tmp_path / "narrow.yaml"), "--plan", "train.precision=bf16", *arguments])
    shown = capsys.readouterr().out
    assert all(text in shown for text in says), shown
    assert "train.micro_batch belongs to the run's identity" in shown


def test_a_measured_utilisation_is_used_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(gpus.GPUS, "h100", gpus.Gpu(80, 1000, 500, utilisation=0.17))
    (tmp_path / "narrow.yaml").write_text(NARROW)
    pipeline("train").main([str(tmp_path / "narrow.yaml"), "--plan", "--gpu", "h100"])
    assert "17% of 500 TFLOP/s are reached: as was measured" in capsys.readouterr().out


def test_more_ranks_need_less_memory() -> None:
    totals = [plan(config.parse(NARROW), ranks).total_memory for ranks in (1, 4)]
    assert totals[1] < totals[0]


def test_a_network_adds_what_ranks_tell_each_other(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """In bytes as the counts have them, and in seconds by the model."""
    path = tmp_path / "narrow.yaml"
    path.write_text(NARROW)
    made = config.load(path)
    network = ["--node-gpus", "2", "--intra", "100", "--inter", "10"]
    few = ["--ranks", "2", "--peak-tflops", "0.001", "--gpu-memory", "80", "--mfu", "1"]
    pipeline("train").main([str(path), "--plan", *few, *network])
    said = capsys.readouterr().out
    costs = plan(made, 2)
    assert f"{4 * costs.parameters / 1e6:,.1f}  MB by all_reduce" in said and "reading, each node" in said
    sent = communication.step(made, costs.parameters, 2)
    exposed = communication.seconds(sent, 2, communication.Network(2, 100, 10))
    step = costs.flops * made.train.global_batch / 2 / 1e9 + exposed
    assert f"exposed communication                 {exposed:.3g} of {step:.3g} s, {exposed / step:.1%}" in said
    assert 0 < exposed < 1e-3


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--plan", "--intra", "450"], "--intra and --inter go together, with --plan"),
        (["--plan", "--node-gpus", "8"], "--intra and --inter go together, with --plan"),
        (["--dry-run", "--intra", "450", "--inter", "50"], "--intra and --inter go together, with --plan"),
        (["--plan", "--intra", "0", "--inter", "50"], "--intra 0: a number above 0"),
        (["--plan", "--intra", "450", "--inter", "nan"], "--inter nan: a number above 0"),
        (["--plan", "--intra", "450", "--inter", "50", "--node-gpus", "-1"], "--node-gpus -1: a number above 0"),
    ],
)
def test_a_network_that_cannot_be_is_one_sentence(tmp_path: Path, options: list[str], sentence: str) -> None:
    path = tmp_path / "narrow.yaml"
    path.write_text(NARROW)
    with pytest.raises(ConfigError, match=sentence) as error:
        pipeline("train").main([str(path), *options])
    assert error.value.exit_code == 2


def test_the_page_of_scale_is_what_its_command_prints() -> None:
    """One recipe of it; the slow test has all."""
    path = ROOT / "configs/cifar10/edm.yaml"
    assert "\n".join(scale.table(path)) in (ROOT / "docs/scale.md").read_text()


@pytest.mark.slow
def test_the_whole_page_of_scale_is_what_its_command_prints() -> None:
    assert "\n".join(scale.page()) + "\n" == (ROOT / "docs/scale.md").read_text()
