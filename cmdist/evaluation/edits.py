"""Pictures of files edited by a consistency model: what is read, what is kept, and a sheet of the results."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cmdist import seeding
from cmdist.core import editing
from cmdist.core.editing import Edited, Known
from cmdist.core.noise import Denoise, karras_sigmas
from cmdist.data.decode import BadImageError
from cmdist.data.preparing.sources import pictures as decoding
from cmdist.errors import ConfigError, DataError
from cmdist.evaluation import generation

TASKS = ("inpaint", "colourise", "superresolve", "stroke", "denoise")
MASKS = ("centre", "left", "right", "top", "bottom")
STROKE_TIMES = (5.38, 2.24)  # of the paper's stroke-guided editing (appendix D)
GRID = 40  # noise levels of the paper's editing of LSUN
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
BATCH = 64  # pictures that are edited at once


@dataclass(frozen=True)
class Editor:
    """What edits: f(x, sigma, labels) of a model, and what it is for."""

    consistency: Denoise
    shape: tuple[int, int, int]  # (C, H, W) of its images
    sigma_min: float
    sigma_max: float
    rho: float
    device: torch.device

    def times(self, task: str, given: Sequence[float] | None = None) -> list[float]:
        """The noise levels of a task: those given, else the paper's. Raises ConfigError for levels that do not fall, or
        leave the model's range.
        """
        if given is None:
            grid = karras_sigmas(GRID, self.sigma_min, self.sigma_max, self.rho, torch.float64)
            return list(STROKE_TIMES) if task == "stroke" else grid[:-1].tolist()
        levels = list(given)
        falling = all(a > b for a, b in zip(levels, levels[1:], strict=False))
        if not levels or not falling or levels[0] > self.sigma_max or levels[-1] <= self.sigma_min:
            raise ConfigError(
                f"the times {levels} must fall, from at most sigma_max ({self.sigma_max:g}) to above sigma_min "
                f"({self.sigma_min:g})"
            )
        return levels


@dataclass(frozen=True)
class Request:
    """What is done to each picture; `mask` (H, W) is 1 where an image is generated."""

    task: str
    seeds: Sequence[int] = (0,)
    times: Sequence[float] | None = None
    label: int | None = None
    mask: Tensor | None = None
    patch: int = 4  # pixels a side whose mean super-resolution knows
    sigma: float = 0.5  # of denoising
    add_noise: bool = False  # before denoising


@dataclass(frozen=True)
class Result:
    """A picture with what of it was known (C, H, W), and its edits (S, C, H, W) by seed, with their errors (S,) of the
    known part before they were clamped.
    """

    name: str
    picture: Tensor
    known: Tensor
    edits: Tensor
    errors: Tensor


def read(paths: Sequence[Path], shape: tuple[int, int, int], enlarge: bool, fit: bool) -> list[tuple[str, Tensor]]:
    """Pictures (C, H, W) in [-1, 1] of files, and of all pictures in folders, by name.

    Grey ones have three equal channels where the model has three. `enlarge`: smaller ones, by whole numbers, to the
    nearest pixel; `fit`: others are cropped to the centre square and resized. Raises DataError, ConfigError.
    """
    files = [file for path in paths for file in _files(path)]
    if not files:
        raise DataError(f"{', '.join(map(str, paths))}: there are no pictures ({', '.join(ENDINGS)})")
    return [(file.stem, decoded(file.read_bytes(), str(file), shape, enlarge, fit)) for file in files]


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(each for each in path.iterdir() if each.suffix.lower() in ENDINGS)
    if not path.exists():
        raise DataError(f"there is no picture {path}")
    return [path]


def decoded(content: bytes, where: str, shape: tuple[int, int, int], enlarge: bool, fit: bool) -> Tensor:
    """The picture (C, H, W) in a file's content, as `read` has it. Raises DataError, ConfigError, naming `where`."""
    channels, size = shape[0], shape[1]
    try:
        image, _ = decoding.load(content, decoding.OWN)
    except BadImageError as error:
        raise DataError(f"{where} {error}") from error
    if image.size != (size, size):
        if enlarge and image.width == image.height and size % image.width == 0:
            image = image.resize((size, size), Image.Resampling.NEAREST)
        elif fit:
            image = decoding.centre_crop(image, size)
        else:
            smaller = ", or 1/k of it for super-resolution" * enlarge
            raise ConfigError(
                f"{where} is {image.width}x{image.height}, and the model makes {size}x{size}{smaller}; --fit crops to "
                "the centre square and resizes it"
            )
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"), np.float32)
    return torch.from_numpy(pixels / 127.5 - 1.0).reshape(size, size, channels).permute(2, 0, 1).contiguous()


def mask_of(text: str, size: int) -> Tensor:
    """(H, W) of 0 and 1: a part by name, random:SHARE of the pixels, or a picture file whose white is generated. Raises
    ConfigError, also for a mask that generates nothing, or everything.
    """
    mask = torch.zeros(size, size)
    half, quarter = size // 2, size // 4
    parts = {
        "centre": (slice(quarter, size - quarter), slice(quarter, size - quarter)),
        "left": (slice(None), slice(0, half)),
        "right": (slice(None), slice(half, size)),
        "top": (slice(0, half), slice(None)),
        "bottom": (slice(half, size), slice(None)),
    }
    if text in parts:
        mask[parts[text]] = 1
    elif match := re.fullmatch(r"random:(0?\.\d+|0|1|1\.0*)", text):
        mask = (torch.rand(size, size, generator=seeding.generator("cpu", 0, "mask")) < float(match[1])).float()
    elif text.startswith("random") or not Path(text).exists():
        allowed = ", ".join(MASKS)
        raise ConfigError(f"--mask {text}: {allowed}, random:0.5, or a picture whose white is generated, is allowed")
    else:
        return mask_in(Path(text).read_bytes(), text, size)
    return _partial(mask, text)


def mask_in(content: bytes, where: str, size: int) -> Tensor:
    """(H, W) of 0 and 1, 1 where the picture in a file's content is white. Raises as `mask_of`, naming `where`."""
    white = decoded(content, f"--mask {where}", (1, size, size), enlarge=True, fit=False)[0] > 0
    return _partial(white.float(), where)


def _partial(mask: Tensor, where: str) -> Tensor:
    if not mask.any() or mask.all():
        what = "generates nothing: nowhere is it white" if not mask.any() else "keeps nothing: all of it is white"
        raise ConfigError(f"--mask {where} {what}")
    return mask


def edited(editor: Editor, request: Request, pictures: Sequence[tuple[str, Tensor]]) -> Iterator[Result]:
    """The edits of each picture, one seed after the other. A seed's noise is the same for every picture."""
    times = torch.tensor(editor.times(request.task, request.times), dtype=torch.float64)
    draws = 1 if request.task == "denoise" else len(times)
    seeds = list(request.seeds)
    noises = generation.noises(seeds, draws, editor.shape).to(editor.device)
    labels = None if request.label is None else torch.full((len(seeds),), request.label, device=editor.device)
    for name, picture in pictures:
        y = picture.to(editor.device).expand(len(seeds), *picture.shape)
        if request.task == "denoise":
            noisy = y + request.sigma * noises[0] if request.add_noise else y
            images = editing.denoised(editor.consistency, noisy, request.sigma, labels)
            yield Result(name, picture, noisy[0].cpu(), images.cpu(), torch.zeros(len(seeds)))
        elif request.task == "stroke":
            images = editing.stroke_guided(editor.consistency, y, noises, times, editor.sigma_min, labels)
            yield Result(name, picture, picture, images.cpu(), torch.zeros(len(seeds)))
        else:
            known = known_of(request, y)
            edits: Edited = editing.complete(editor.consistency, known, noises, times, editor.sigma_min, labels)
            seen = _grey(y) if request.task == "colourise" else known.project(torch.zeros_like(y))
            yield Result(name, picture, seen[0].cpu(), edits.images.cpu(), edits.error.cpu())


def _grey(y: Tensor) -> Tensor:
    weights = torch.tensor(editing.LUMA, dtype=y.dtype, device=y.device)[:, None, None]
    return (weights / weights.sum() * y).sum(1, keepdim=True).expand_as(y)


def known_of(request: Request, y: Tensor) -> Known:
    """What a task keeps of pictures y (B, C, H, W). Raises ConfigError for a picture that has no such part."""
    makers: dict[str, Callable[[], Known]] = {
        "inpaint": lambda: editing.inpainting(y, request.mask.to(y.device)),  # type: ignore[union-attr]
        "colourise": lambda: editing.colourisation(y),
        "superresolve": lambda: editing.super_resolution(y, request.patch),
    }
    return makers[request.task]()


def check(editor: Editor, request: Request, classes: int) -> None:
    """Raise ConfigError, in one sentence, if this cannot be done with this model."""
    channels, size = editor.shape[0], editor.shape[1]
    if request.task == "inpaint" and request.mask is None:
        raise ConfigError(
            f"inpaint needs --mask: {', '.join(MASKS)}, random:0.5, or a picture whose white is generated"
        )
    if request.task != "inpaint" and request.mask is not None:
        raise ConfigError(f"--mask is for inpaint, not for {request.task}")
    if request.task == "colourise" and channels != 3:
        raise ConfigError(f"colourise needs a model of RGB images; this one's have {channels} channel")
    if request.task == "superresolve" and (request.patch < 2 or size % request.patch):
        raise ConfigError(f"--patch {request.patch}: 2 or more, a divisor of the model's {size} pixels, is allowed")
    if request.task == "denoise" and not editor.sigma_min < request.sigma <= editor.sigma_max:
        raise ConfigError(
            f"--sigma {request.sigma:g}: above {editor.sigma_min:g} and up to {editor.sigma_max:g} is allowed"
        )
    if request.task == "denoise" and request.times is not None:
        raise ConfigError("denoise takes one step from --sigma, so it has no --times")
    check_label(request.label, classes)
    if not request.seeds or min(request.seeds) < 0:
        raise ConfigError("--seeds: numbers of 0 or more are needed")
    editor.times(request.task, request.times)


def check_label(label: int | None, classes: int) -> None:
    """Raise ConfigError if a model with so many classes (0: none) makes no image of this one."""
    if classes and label is None:
        raise ConfigError(f"this model is conditional on {classes} classes: --label 0 ... {classes - 1} is needed")
    if not classes and label is not None:
        raise ConfigError("--label was given, and this model has no classes")
    if label is not None and not 0 <= label < classes:
        raise ConfigError(f"--label {label}: 0 ... {classes - 1} are allowed")


def sheet(results: Sequence[Result], seeds: Sequence[int]) -> tuple[Tensor, list[str]]:
    """All results as uint8 images (n, C, H, W), a row for each picture, and the titles of their columns."""
    rows = [torch.cat([r.picture[None], r.known[None], r.edits]) for r in results]
    return generation.to_uint8(torch.cat(rows).clamp(-1, 1)), ["input", "known", *(f"seed {s}" for s in seeds)]
