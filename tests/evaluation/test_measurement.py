import dataclasses
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from cmdist import migrations
from cmdist.data.images import open_dataset
from cmdist.errors import DataError
from cmdist.evaluation import measurement, references, stored
from cmdist.evaluation.extractor import inside
from cmdist.evaluation.extractors import Extractor
from cmdist.evaluation.generation import Task
from cmdist.evaluation.metrics.frechet import Moments, Statistics
from cmdist.evaluation.references import Reference
from cmdist.system import distributed
from ranks import Ranks
from runs import make_data

WORLD = distributed.World()


def test_identity_depends_on_content_and_not_on_order():
    assert measurement.digest({"a": 1, "b": [1, 2]}) == measurement.digest({"b": [1, 2], "a": 1})
    assert measurement.digest({"a": 1}) != measurement.digest({"a": 2})


def test_code_version_names_version_and_commit():
    version, _, commit = measurement.code_version().partition("+")
    assert version == measurement.cmdist.__version__
    head = subprocess.run(
        ["git", "-C", measurement.__file__.rpartition("/")[0], "rev-parse", "HEAD"], capture_output=True, text=True
    )
    if head.returncode == 0:
        assert commit.removesuffix("-dirty") == head.stdout.strip()


# --- references


@pytest.fixture(scope="module")
def pictures():
    draw = np.random.default_rng(11)
    flat = 128 + draw.normal(size=(500, 12)) @ draw.normal(size=(12, 16)) * 8
    return torch.from_numpy(flat.clip(0, 255).astype(np.uint8)).view(500, 1, 4, 4)


def test_bootstrap_draws_real_images_with_replacement(pictures):
    drawn = measurement.bootstrap(pictures, 2000, seed=0)
    real = {image.numpy().tobytes() for image in pictures}
    found = [image.numpy().tobytes() for image in drawn]
    assert set(found) <= real and len(set(found)) < len(found)
    assert torch.equal(drawn, measurement.bootstrap(pictures, 2000, seed=0)) and not torch.equal(
        drawn, measurement.bootstrap(pictures, 2000, seed=1)
    )


def test_matched_gaussian_has_the_pixels_mean_and_covariance(pictures):
    n = 40_000
    drawn = measurement.matched_gaussian(pictures, n, seed=0)
    assert drawn.shape == (n, 1, 4, 4) and drawn.dtype == torch.uint8
    real, made = pictures.flatten(1).double(), drawn.flatten(1).double()
    assert (real.mean(0) - made.mean(0)).abs().max() < 5 * real.std(0).max() / n**0.5
    scale = real.std(0).view(-1, 1) * real.std(0)
    # rounding adds 1/12 to each variance
    difference = (made.T.cov() - real.T.cov() - torch.eye(16) / 12).abs() / scale
    assert difference.max() < 5 * (2 / n) ** 0.5 + 0.01


# --- generation and features over ranks

TASK = Task(range(3, 1403), (1, 8, 8), 10, 2)
METRICS = {"fid": ["fid", "kid"], "fid_legacy": ["fid_legacy", "is", "precision", "recall"]}


def sample(noises, labels):
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 32, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(32, 1, 3, padding=1)
    ).eval()
    return net(noises[0]) + net(noises[1]) + labels.view(-1, 1, 1, 1) / 10


def extractor(space="fid_legacy", seed=1):
    torch.manual_seed(seed)
    net, classes = torch.nn.Linear(64, 16), torch.nn.Linear(64, 10)
    return Extractor(
        space,
        f"hash {seed}",
        "none",
        16,
        inside(space, lambda images: images.flatten(1).float() / 255, net, lambda x: classes(x * 20).softmax(dim=1)),
    )


def real(e: Extractor) -> Reference:
    moments, images = (
        Moments(16),
        torch.randint(0, 256, (400, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8),
    )
    moments.add(e.features(images))
    return Reference(moments.statistics(), e.features(images), references.describe(e) | {"image_size": 8})


def wanted():
    both = extractor("fid", 1), extractor("fid_legacy", 2)
    return [(e, METRICS[e.space], real(e)) for e in both]


def measure(folder, task=TASK, world=WORLD, **more):
    return measurement.measure(task, sample, wanted(), str(folder), world, **more)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return measure(tmp_path_factory.mktemp("alone"), keep=70)


def test_all_figures_are_those_of_all_features_at_once(alone, tmp_path):
    assert list(alone.figures) == [metric for metrics in METRICS.values() for metric in metrics]
    assert all(np.isfinite(value) for value in alone.figures.values()) and alone.figures["is"] > 1.01
    images = measure(tmp_path, keep=1400).images
    assert torch.equal(images[:70], alone.images) and len(images) == 1400
    e, _, reference = wanted()[0]
    moments = Moments(16)
    moments.add(torch.cat([e.features(piece) for piece in images.split(64)]))
    expected = measurement.frechet.frechet_distance(moments.statistics(), reference.statistics)
    assert alone.figures["fid"] == pytest.approx(expected, rel=1e-6)


def test_an_image_depends_on_its_seed_alone(alone, tmp_path):
    part = measure(tmp_path / "a", Task(range(100, 164), (1, 8, 8), 10, 2), keep=70)
    assert part.images.shape == (64, 1, 8, 8) and part.sha256 != alone.sha256
    assert torch.equal(measure(tmp_path / "b", Task(range(5, 40), (1, 8, 8), 10, 2), keep=9).images, alone.images[2:11])


def test_blocks_are_cut_on_the_line_of_seeds():
    assert TASK.blocks() == [range(i, i + 1) for i in range(6)]  # groups of 256
    assert [TASK.before(block.start) for block in TASK.blocks()] == [0, 253, 509, 765, 1021, 1277]
    assert Task(range(600, 700), (1, 8, 8), 0, 1).blocks() == [range(2, 3)]
    assert Task(range(5, 300), (3, 256, 256), 0, 1).blocks() == [
        range(1, 32),
        range(32, 64),
        range(64, 75),
    ]  # groups of 4


def _measure(folder: str, batch: int) -> None:
    world = distributed.start()
    made = measure(f"{folder}/{world.size}", world=world, batch=batch, keep=70)
    assert (made is None) == (world.rank > 0)
    if made:
        Path(f"{folder}/{world.size}.json").write_text(json.dumps(made.figures | {"sha256": made.sha256}))
    distributed.stop(world)


def test_figures_are_identical_on_one_two_and_four_ranks(alone, tmp_path):
    running = [
        (size, Ranks(size, tmp_path / f"{size}.log", _measure, str(tmp_path), batch))
        for size, batch in ((1, 1000), (2, 64), (4, 600))
    ]
    for size, ranks in running:
        assert ranks.join(120) == [0] * size, ranks.text
        assert json.loads((tmp_path / f"{size}.json").read_text()) == alone.figures | {"sha256": alone.sha256}


def _peak(folder: str, n: int) -> None:
    torch.set_num_threads(1)
    e, mix = extractor(), torch.randn(16, 2048, generator=torch.Generator().manual_seed(0))
    wide = dataclasses.replace(e, dimensions=2048, compute=lambda x, _: (e.features(x) @ mix, x.new_zeros(len(x), 0)))
    real = Reference(
        Statistics(0, torch.zeros(2048).double(), torch.eye(2048).double()),
        torch.zeros(0, 2048),
        references.describe(wide),
    )
    measurement.measure(Task(range(n), (1, 8, 8), 10, 2), sample, [(wide, ["fid_legacy"], real)], folder, WORLD)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    Path(folder, f"{n}.json").write_text(status["VmHWM"].split()[0])


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images(tmp_path):
    """16,384 and 65,536 of them; their features are 134 and 537 MB."""
    peaks = {}
    for n in (16_384, 65_536):
        ranks = Ranks(1, tmp_path / f"log{n}", _peak, str(tmp_path / str(n)), n)
        assert ranks.join(250) == [0], ranks.text
        peaks[n] = int((tmp_path / str(n) / f"{n}.json").read_text())
    assert peaks[65_536] < 1.1 * peaks[16_384], peaks


def test_what_was_made_is_not_made_again(alone, tmp_path, monkeypatch):
    """The fifth part fails; then a call finds the first four and makes the others."""
    calls = []

    def failing(noises, labels):
        calls.append(1)
        if len(calls) > 4:
            raise KeyboardInterrupt
        return sample(noises, labels)

    with pytest.raises(KeyboardInterrupt):
        measurement.measure(TASK, failing, wanted(), str(tmp_path), WORLD, keep=70)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"part-{i:06d}.npz" for i in range(4)]
    seen, calls[:] = [], [1, 1]  # two groups may be made
    again = measurement.measure(TASK, failing, wanted(), str(tmp_path), WORLD, keep=70, progress=seen.append)
    assert again.figures == alone.figures and again.sha256 == alone.sha256 and torch.equal(again.images, alone.images)
    assert sum(seen) == 1400 and seen[:4] == [253, 256, 256, 256]


def test_a_damaged_part_is_a_sentence(tmp_path):
    measure(tmp_path)
    (tmp_path / "part-000001.npz").write_bytes(b"PK")
    with pytest.raises(
        DataError, match=r"part-000001.npz is damaged: .*remove it, and the same command makes it again"
    ):
        measure(tmp_path)


def test_features_that_are_not_finite_are_refused(tmp_path):
    e = extractor()
    bad = Extractor("fid", "x", "none", 16, inside("fid", lambda images: images.flatten(1) / 0.0, lambda x: x[:, :16]))
    with pytest.raises(DataError, match="the extractor of fid gave features that are not finite"):
        measurement.measure(TASK, sample, [(bad, ["fid"], real(e))], str(tmp_path), WORLD)


def test_rows_of_a_file_are_those_of_the_tensor():
    x, rows = torch.randn(300, 7), measurement.Features(7)
    for piece in x.split(128):
        rows.append(piece)
    index = torch.randperm(300)[:50]
    assert len(rows) == 300 and torch.equal(rows[index], x[index])


# --- references


def make_reference(folder, world=WORLD, **more):
    data = open_dataset(str(folder.parent / "data"))
    return references.make(data, extractor(), str(folder), world, **more)


@pytest.fixture
def thousand(tmp_path, monkeypatch):
    """3,000 images in 6 units."""
    make_data(tmp_path / "data", 3000)
    return tmp_path


def _reference(folder: str) -> None:
    world = distributed.start()
    made = make_reference(Path(folder) / str(world.size), world)
    if made:
        made.save(f"{folder}/{world.size}.npz")
    distributed.stop(world)


def test_references_are_identical_on_one_two_and_four_ranks(thousand):
    seen = []
    made = make_reference(thousand / "parts", progress=seen.append)
    assert made.statistics.n == 3000 and made.features.shape == (3000, 16) and sum(seen) == 3000
    data, e = open_dataset(str(thousand / "data")), extractor()
    features = torch.cat([e.features(data.images(range(i, i + 100))) for i in range(0, 3000, 100)]).double().numpy()
    assert np.allclose(made.statistics.covariance, np.cov(features, rowvar=False), rtol=1e-6, atol=1e-9)
    running = [(size, Ranks(size, thousand / f"{size}.log", _reference, str(thousand))) for size in (2, 4)]
    for size, ranks in running:
        assert ranks.join(120) == [0] * size, ranks.text
        assert references.load(f"{thousand}/{size}.npz", e, 8).hash == made.hash


def test_references_come_back_from_a_file_with_the_same_hash(tmp_path):
    made = real(extractor())
    made.save(str(tmp_path / "s.npz"))
    again = references.load(str(tmp_path / "s.npz"), extractor(), 8)
    assert again.hash == made.hash and again.statistics.n == 400 and torch.equal(again.features, made.features)
    changed = Reference(made.statistics, made.features + 1, made.described)
    assert changed.hash != made.hash != Reference(made.statistics, None, made.described).hash


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"size": 16}, r"is of images of size 8, and this evaluation of 16"),
        ({"extractor": extractor(seed=3)}, r"is of the extractor hash 1, and this evaluation of hash 3"),
    ],
)
def test_a_reference_of_something_else_is_refused(tmp_path, change, sentence):
    real(extractor()).save(str(tmp_path / "s.npz"))
    with pytest.raises(DataError, match=sentence):
        references.load(str(tmp_path / "s.npz"), change.get("extractor", extractor()), change.get("size", 8))


@pytest.mark.parametrize("content", [b"", b"no npz", b"PK\x03\x04"])
def test_damaged_references_are_a_sentence(tmp_path, content):
    (tmp_path / "s.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"(s|t)\.npz is damaged: "):
        references.load(str(tmp_path / "s.npz"), extractor(), 8)
    with pytest.raises(DataError, match="are not there"):
        references.load(str(tmp_path / "t.npz"), extractor(), 8)


def published(path: Path, dimensions=16, **more) -> str:
    draw = np.random.default_rng(0)
    np.savez(path, mu=draw.normal(size=dimensions), sigma=np.diag(draw.uniform(1, 2, dimensions)), **more)
    return str(path)


def test_adms_files_are_imported_with_the_features_of_their_images(tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (50, 8, 8, 1), np.uint8)
    url = published(tmp_path / "VIRTUAL_imagenet8_labeled.npz", arr_0=images, mu_s=np.zeros(1), sigma_s=np.zeros(1))
    made = references.load(url, extractor("fid_legacy"), 8)
    assert made.features.shape == (50, 16) and made.described["source"] == "VIRTUAL_imagenet8_labeled.npz"
    assert torch.equal(made.features, extractor().features(torch.from_numpy(images).permute(0, 3, 1, 2)))
    with pytest.raises(DataError, match="of images of size 8, and this evaluation of 16"):
        references.load(url, extractor("fid_legacy"), 16)
    with pytest.raises(DataError, match="was made with TensorFlow's resizing, which is not that of fid"):
        references.load(url, extractor("fid"), 8)
    made.save(str(tmp_path / "stored.npz"))
    assert references.load(str(tmp_path / "stored.npz"), extractor(), 8).hash == made.hash


def test_cleanfids_files_are_imported(tmp_path):
    url = published(tmp_path / "lsun_cat_clean_trainfull_8.npz")
    made = references.load(url, extractor("fid"), 8)
    assert made.features is None and made.statistics.n == 0
    with pytest.raises(DataError, match="of images of size 8, and this evaluation of 64"):
        references.load(url, extractor("fid"), 64)
    with pytest.raises(DataError, match="was made with clean-fid's resizing, which is not that of fid_legacy"):
        references.load(url, extractor("fid_legacy"), 8)


def test_files_that_cannot_be_meant_are_refused(tmp_path):
    with pytest.raises(DataError, match="is of 12 features, and the extractor of fid gives 16"):
        references.load(published(tmp_path / "a.npz", 12), extractor("fid"), 8)
    np.savez(tmp_path / "b.npz", mean=np.zeros(3))
    with pytest.raises(DataError, match="has no mu and sigma; it has mean"):
        references.load(str(tmp_path / "b.npz"), extractor(), 8)
    np.savez(tmp_path / "c.npz", mu=np.full(16, np.nan), sigma=np.eye(16))
    with pytest.raises(DataError, match="holds values that are not finite"):
        references.load(str(tmp_path / "c.npz"), extractor(), 8)


SQUARE = np.eye(16)
TRIANGLE = SQUARE + np.triu(np.full((16, 16), 0.1), 1)
MATRICES = {
    "negative": (-SQUARE, "has eigenvalues from -1 to -1, and none below 0 is needed"),
    "one negative value": (np.diag([1.0] * 15 + [-0.1]), "has eigenvalues from -0.1 to 1"),
    "twice what rounding may be": (np.diag([1.0] * 15 + [-2e-5]), "has eigenvalues from -2e-05 to 1"),
    "triangular": (TRIANGLE, "is not symmetric"),
    "zero": (np.zeros((16, 16)), "has eigenvalues from 0 to 0"),
    "infinite": (SQUARE * np.inf, "not finite"),
    "whole numbers": (SQUARE.astype(np.int64), "fractions are needed"),
    "complex": (SQUARE.astype(np.complex128), "fractions are needed"),
    "another size": (np.eye(3), r"of 16 features, and the extractor|the shape \[3, 3\]"),
}


@pytest.mark.parametrize("name", MATRICES)
def test_a1_a_covariance_of_nothing_is_named(tmp_path, name):
    matrix, sentence = MATRICES[name]
    np.savez(tmp_path / "imported.npz", mu=np.zeros(16), sigma=matrix)
    described = references.describe(extractor()) | {"image_size": 8, "source": "0" * 64}
    own = {"n": np.int64(9), "mean": np.zeros(16), "covariance": matrix, "described": np.array(json.dumps(described))}
    np.savez(tmp_path / "own.npz", **own)
    for file in ("imported.npz", "own.npz"):
        with pytest.raises(DataError, match=sentence):
            references.load(str(tmp_path / file), extractor(), 8)


@pytest.mark.parametrize("least", [-4e-6, -8e-6])  # seen by a factor, and by eigenvalues
def test_a_covariance_may_be_rounded(tmp_path, least):
    np.savez(tmp_path / "a.npz", mu=np.zeros(16), sigma=np.diag([1.0] * 15 + [least]))
    assert references.load(str(tmp_path / "a.npz"), extractor(), 8).statistics.covariance[-1, -1] == least


@pytest.mark.parametrize("mean", [np.full(16, np.nan), np.zeros(16, np.int64), np.zeros(16, np.complex64), np.zeros(3)])
def test_a1_a_mean_of_nothing_is_named(tmp_path, mean):
    np.savez(tmp_path / "a.npz", mu=mean, sigma=SQUARE)
    with pytest.raises(DataError, match=r"not finite|fractions are needed|is of 3 features"):
        references.load(str(tmp_path / "a.npz"), extractor(), 8)


@pytest.mark.parametrize("n", [0, 1, -1])
def test_a1_moments_of_no_images_are_named(tmp_path, n):
    described = references.describe(extractor()) | {"image_size": 8, "source": "0" * 64}
    arrays = {
        "n": np.int64(n),
        "mean": np.zeros(16),
        "covariance": SQUARE,
        "described": np.array(json.dumps(described)),
    }
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=f"its moments are of {n} images"):
        references.load(str(tmp_path / "a.npz"), extractor(), 8)


def test_a1_a_singular_covariance_and_one_in_fp32_are_read(tmp_path):
    rows = np.random.default_rng(0).normal(size=(5, 16))
    for matrix in (np.cov(rows.T), np.cov(rows.T).astype(np.float32)):
        np.savez(tmp_path / "a.npz", mu=np.zeros(16), sigma=matrix)
        assert torch.allclose(
            references.load(str(tmp_path / "a.npz"), extractor(), 8).statistics.covariance.float(),
            torch.from_numpy(matrix).float(),
        )


RECORD = {
    "title": "t", "step": 1, "protocol": {"space": "fd", "n": 5}, "protocol_id": "p", "sampling": {},
    "checkpoint": {"weights": "w"}, "metrics": {"fd_1step": 1.5}, "images": "i", "code": "c", "device": "cpu",
    "ranks": 1, "time": 1, "seconds": 1.0, "identity": "i", "stem": "s",
}  # fmt: skip


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a1_a_record_with_a_figure_that_is_not_finite_is_never_written(tmp_path, value):
    url = str(tmp_path / "step-1.json")
    with pytest.raises(DataError, match="fd_1step is .*, which is no figure, so no record is written"):
        stored.write(url, RECORD, {"fd_1step": value})
    assert not list(tmp_path.iterdir())


def test_a1_an_edited_record_is_noticed_and_one_of_before_is_read(tmp_path, capsys):
    url = tmp_path / "step-1.json"
    stored.write(str(url), migrations.EVALUATION.stamp(RECORD), RECORD["metrics"])
    ((_, read),) = stored.records(str(tmp_path))
    assert read["metrics"] == {"fd_1step": 1.5} and "seal" not in read
    url.write_text(url.read_text().replace("1.5", "0.5"))
    assert stored.records(str(tmp_path)) == []
    assert "step-1.json is damaged: its content is not what was written; remove it, and" in capsys.readouterr().err
    url.write_text(json.dumps(migrations.EVALUATION.stamp(RECORD)))
    assert len(stored.records(str(tmp_path))) == 1


def test_a1_an_edited_score_of_real_images_is_noticed(tmp_path, capsys):
    url = tmp_path / "references-n5-seed0.json"
    scores = {"extractor": "e", "reference": "r", "n": 5, "bootstrap": 1.5, "matched_gaussian": 2.5}
    stored.write(str(url), scores, {"bootstrap": 1.5})
    assert stored.scores(str(tmp_path)) == [scores]
    url.write_text(url.read_text().replace("2.5", "0.1"))
    assert stored.scores(str(tmp_path)) == [] and "is damaged: its content is not" in capsys.readouterr().err
