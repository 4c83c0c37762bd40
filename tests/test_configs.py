"""Every recipe in configs/ can be read and built, and says what it is; the paper's numbers are where table 3 has them."""

from pathlib import Path

import pytest
import torch

from cmdist import build, config

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*/*.yaml"))
PARAMETERS = {"imagenet64": 295_899_267, "lsun_bedroom256": 526_304_771, "lsun_cat256": 526_304_771, "cifar10": 52_542_979}
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


def test_every_data_set_has_its_recipes() -> None:
    found = {(path.parent.name, path.stem) for path in CONFIGS}
    assert found >= {(d, kind) for d in PARAMETERS for kind in ("edm", "cd", "ct")} | {("digits", k) for k in ("edm", "cd", "ct", "ict")}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_it_builds_and_its_head_says_how_to_run_it(path: Path) -> None:
    made = config.load(path)
    assert config.parse(config.dump(made)) == made
    with torch.device("meta"):
        net = build.network(made)
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"pipelines/train.py configs/{path.parent.name}/{path.name}" in line for line in head)
    build.curriculum(made)(0)
    if path.parent.name == "digits":
        return
    assert sum(p.numel() for p in net.parameters()) == PARAMETERS[path.parent.name]
    assert any(line.startswith("# Cost: about ") for line in head) and any(line.startswith("# Expected FID") for line in head)
    gpus = 8 if path.parent.name == "cifar10" else 64
    assert made.micro_batches % gpus == 0, f"{made.micro_batches} micro-batches on {gpus} GPUs"
    assert made.data.flip and made.run.name == path.stem and made.run.root == f"runs/{path.parent.name}"


@pytest.mark.parametrize(("data", "kind"), TABLE_3, ids="/".join)
def test_the_papers_presets_have_the_numbers_of_table_3(data: str, kind: str) -> None:
    made = config.load(ROOT / "configs" / data / f"{kind}.yaml")
    lr, batch, steps, grid, mu = TABLE_3[data, kind]
    c, n = made.curriculum, made.noise
    assert (made.optimizer.kind, made.optimizer.lr, made.train.global_batch, made.train.steps) == ("radam", lr, batch, steps)
    assert ((c.n_timesteps, c.mu) if kind == "cd" else ((c.s0, c.s1), c.mu0)) == (grid, mu)
    assert (n.sigma_min, n.sigma_max, n.sigma_data, n.rho) == (0.002, 80.0, 0.5, 7.0)
    assert made.loss.distance == "lpips" and made.loss.weighting == "uniform" and made.loss.solver == "heun"
    assert made.loss.lpips_pooling == ("max" if data == "cifar10" else "avg")
    assert made.network.dropout == 0.0 and made.optimizer.weight_decay == 0.0 and made.optimizer.clip == 0.0
    assert made.init == ("teacher" if kind == "cd" else None)
    assert made.train.ema[0] == (0.9999 if data == "cifar10" else 0.5 ** (4096 / 50e6))


@pytest.mark.parametrize(("data", "lr", "batch"), [("imagenet64", 1e-4, 2048), ("lsun_bedroom256", 5e-5, 256), ("lsun_cat256", 5e-5, 256)])
def test_the_launch_presets_differ_where_the_public_lines_do(data: str, lr: float, batch: int) -> None:
    ct = config.load(ROOT / "configs" / data / "ct_launch.yaml")
    assert (ct.optimizer.lr, ct.train.global_batch, ct.init, ct.curriculum.mu_form) == (lr, batch, f"runs/{data}/edm", "code")
