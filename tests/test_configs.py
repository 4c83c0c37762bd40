"""Every recipe in configs/ can be read and built, and says what it is; the paper's numbers are where table 3 has
them.
"""

import re
from pathlib import Path

import pytest
import torch

from cmdist import build, config

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(path for path in (ROOT / "configs").glob("*/*.yaml") if path.parent.name != "studies")
SMALL = ("digits", "emoji")  # ours: no recipe of a paper, for one node
RECIPES = [path for path in CONFIGS if path.parent.name not in SMALL]
PARAMETERS = {
    "imagenet64": 295_899_267,
    "lsun_bedroom256": 526_304_771,
    "lsun_cat256": 526_304_771,
    "cifar10": 52_542_979,
}
OWN = {  # other networks than their data set's: EDM's DDPM++ and NCSN++, with the frequencies of the latter
    "edm_ddpmpp": 55_733_891,
    "ect_public": 55_733_891,
    "cmt_public": 55_733_891,
    "ect_cmt_public": 55_733_891,
    "scd_public": 55_733_891,
    "sct_public": 55_733_891,
    "cd_public": 56_397_827 + 128,
}
TABLE_3 = {  # lr, batch, steps, N or (s0, s1), mu or mu0: paper, appendix C, table 3
    ("cifar10", "cd"): (4e-4, 512, 800_000, 18, 0.0),
    ("cifar10", "ct"): (4e-4, 512, 800_000, (2, 150), 0.9),
    ("imagenet64", "cd"): (8e-6, 2048, 600_000, 40, 0.95),
    ("imagenet64", "ct"): (8e-6, 2048, 800_000, (2, 200), 0.95),
    ("lsun_bedroom256", "cd"): (1e-5, 2048, 600_000, 40, 0.95),
    ("lsun_bedroom256", "ct"): (1e-5, 2048, 1_000_000, (2, 150), 0.95),
    ("lsun_cat256", "cd"): (1e-5, 2048, 600_000, 40, 0.95),
    ("lsun_cat256", "ct"): (1e-5, 2048, 1_000_000, (2, 150), 0.95),
}


EMAS = {
    "cifar10": [0.9999],
    "imagenet64": [0.9999432189950708, 0.9999, 0.999],
    "lsun": [0.9999432189950708, 0.99994, 0.9999],
}
# index in the grid, points of the grid: public sampling lines; none is public for CD on Cat, and none for CIFAR-10
SECOND_TIME = {
    ("imagenet64", "cd"): (22, 40),
    ("imagenet64", "ct"): (106, 201),
    ("lsun_bedroom256", "cd"): (17, 40),
    ("lsun_bedroom256", "ct"): (67, 151),
    ("lsun_cat256", "cd"): (17, 40),
    ("lsun_cat256", "ct"): (62, 151),
}


def test_every_data_set_has_its_recipes() -> None:
    found = {(path.parent.name, path.stem) for path in CONFIGS}
    assert found >= {(d, kind) for d in PARAMETERS for kind in ("edm", "cd", "ct")} | {
        ("digits", k) for k in ("edm", "cd", "ct", "ict")
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_it_builds_and_its_head_says_how_to_run_it(path: Path) -> None:
    made = config.load(path)
    assert config.parse(config.dump(made)) == made
    with torch.device("meta"):
        net = build.network(made)
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"pipelines/train.py configs/{path.parent.name}/{path.name}" in line for line in head)
    build.numbers(made, 0)
    if path.parent.name in SMALL:
        return
    assert sum(p.numel() for p in net.parameters()) == OWN.get(path.stem, PARAMETERS[path.parent.name])
    assert any(line.startswith("# Cost: about ") for line in head) and any(
        line.startswith("# Expected FID") for line in head
    )
    gpus = 8 if path.parent.name == "cifar10" else 64
    assert made.micro_batches % gpus == 0, f"{made.micro_batches} micro-batches on {gpus} GPUs"
    # mirrored once: by the reader, or by an augmentation that tells the network so
    assert made.data.flip != bool(getattr(made.objective, "augment", 0.0))
    assert made.run.name == path.stem and made.run.root == f"runs/{path.parent.name}"


@pytest.mark.parametrize(("data", "kind"), TABLE_3, ids="/".join)
def test_the_papers_presets_have_the_numbers_of_table_3(data: str, kind: str) -> None:
    made = config.load(ROOT / "configs" / data / f"{kind}.yaml")
    lr, batch, steps, grid, mu = TABLE_3[data, kind]
    c, n = made.objective.curriculum, made.noise
    assert (made.optimizer.kind, made.optimizer.lr, made.train.global_batch, made.train.steps) == (
        "radam",
        lr,
        batch,
        steps,
    )
    assert ((c.n_timesteps, c.mu) if kind == "cd" else ((c.s0, c.s1), c.mu0)) == (grid, mu)
    assert (n.sigma_min, n.sigma_max, n.sigma_data, n.rho) == (0.002, 80.0, 0.5, 7.0)
    assert made.objective.distance.kind == "lpips" and made.objective.weighting == "uniform"
    assert getattr(made.objective, "solver", "heun") == "heun"
    assert made.objective.distance.pooling == ("max" if data == "cifar10" else "avg")
    assert made.network.dropout == 0.0 and made.optimizer.weight_decay == 0.0 and made.optimizer.clip == 0.0
    assert made.init == ("teacher" if kind == "cd" else None)
    assert made.train.ema[0] == (0.9999 if data == "cifar10" else 0.5 ** (4096 / 50e6))


@pytest.mark.parametrize(("data", "kind"), SECOND_TIME, ids="/".join)
def test_two_steps_are_at_the_times_of_the_public_lines(data: str, kind: str) -> None:
    index, points = SECOND_TIME[data, kind]
    time = 80 ** (1 / 7) + index / (points - 1) * (
        0.002 ** (1 / 7) - 80 ** (1 / 7)
    )  # paper, section 4; index 0 is sigma_max
    for name in (kind, f"{kind}_launch"):
        path = ROOT / "configs" / data / f"{name}.yaml"
        if path.exists():
            assert config.load(path).sampling.times == pytest.approx([80.0, time**7], abs=0.005)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_averages_are_those_of_the_public_lines(path: Path) -> None:
    made, data = config.load(path), path.parent.name.partition("_")[0]
    if made.kind.steps is not None:  # students of several numbers of steps are not averaged
        assert list(made.train.ema) == [0.0]
    elif made.train.ema_ramp_up:  # the half-life itself, and EDM's ramp-up
        assert (made.train.ema, made.train.ema_ramp_up) == ((500_000,), 0.05)
    elif made.kind_name != "denoising":
        assert list(made.train.ema) == EMAS[data]
    else:  # cifar10: a half-life of 0.5 million images; the others: 50 million at a batch of 4,096
        assert made.train.ema[0] == (
            pytest.approx(0.5 ** (512 / 0.5e6), abs=5e-6) if data == "cifar10" else 0.5 ** (4096 / 50e6)
        )


@pytest.mark.parametrize(
    ("data", "kind", "numbers"),
    [
        ("cifar10", "edm", ("adam", 1e-3, 19531, 512, 400_000, 0.13)),
        ("cifar10", "edm_ddpmpp", ("adam", 1e-3, 19531, 512, 390_625, 0.13)),  # 200 million images
        ("imagenet64", "edm", ("adam", 1e-4, 2441, 4096, 610_352, 0.1)),  # 2,500 million images
        ("lsun_bedroom256", "edm", ("radam", 1e-4, 0, 2048, 600_000, 0.1)),
        ("lsun_bedroom256", "edm_launch", ("radam", 1e-4, 0, 256, 600_000, 0.1)),
        ("lsun_cat256", "edm", ("radam", 1e-4, 0, 2048, 300_000, 0.1)),
        ("lsun_cat256", "edm_launch", ("radam", 1e-4, 0, 256, 300_000, 0.1)),
    ],
)
def test_teachers_have_the_numbers_of_their_sources(data: str, kind: str, numbers: tuple[object, ...]) -> None:
    made = config.load(ROOT / "configs" / data / f"{kind}.yaml")
    o, t = made.optimizer, made.train
    assert (o.kind, o.lr, o.warmup_steps, t.global_batch, t.steps, made.network.dropout) == numbers


@pytest.mark.parametrize("kind", ["ect", "cmt", "ect_cmt", "cd"])
def test_from_a_public_teacher_the_network_and_where_it_comes_from_differ(kind: str) -> None:
    own, public = (config.load(ROOT / "configs/cifar10" / f"{name}.yaml") for name in (kind, f"{kind}_public"))
    for part in ("noise", "optimizer", "train", "sampling", "data", "evaluation"):
        assert getattr(own, part) == getattr(public, part)
    teacher = {"teacher": public.teacher} if public.teacher else {}
    assert own.objective.model_copy(update=teacher) == public.objective
    assert own.dropout == public.dropout and public.network.augment_dim == 9
    assert public.start in (
        "runs/cifar10/cmt_public",
        f"weights/edm-cifar10-32x32-uncond-{'ve' if kind == 'cd' else 'vp'}.safetensors",
    )


@pytest.mark.parametrize("data", ["lsun_bedroom256", "lsun_cat256"])
def test_the_launch_line_of_distillation_differs_in_the_batch(data: str) -> None:
    paper, launch = (config.load(ROOT / "configs" / data / f"{kind}.yaml") for kind in ("cd", "cd_launch"))
    assert (launch.train.global_batch, launch.optimizer, launch.objective, launch.init) == (
        256, paper.optimizer, paper.objective, paper.init,
    )  # fmt: skip


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_the_ranks_of_its_script_share_its_micro_batches(path: Path) -> None:
    made = config.load(path)
    script = (
        ROOT / "cluster" / ("train_imagenet64.sbatch" if made.data.image_size <= 64 else "train_lsun.sbatch")
    ).read_text()
    nodes, tasks = (
        int(re.findall(rf"^#SBATCH --{option}=(\d+)$", script, re.M)[0]) for option in ("nodes", "ntasks-per-node")
    )
    if said := re.findall(r"^#   python cluster/launch.py \S+ --nodes (\d+)$", path.read_text(), re.M):
        nodes = int(said[0])
    assert made.micro_batches % (nodes * tasks) == 0, f"{made.micro_batches} micro-batches on {nodes} nodes of {tasks}"


@pytest.mark.parametrize(
    ("data", "lr", "batch"), [("imagenet64", 1e-4, 2048), ("lsun_bedroom256", 5e-5, 256), ("lsun_cat256", 5e-5, 256)]
)
def test_the_launch_presets_differ_where_the_public_lines_do(data: str, lr: float, batch: int) -> None:
    ct = config.load(ROOT / "configs" / data / "ct_launch.yaml")
    assert (ct.optimizer.lr, ct.train.global_batch, ct.init, ct.objective.curriculum.mu_form) == (
        lr,
        batch,
        f"runs/{data}/edm",
        "code",
    )
