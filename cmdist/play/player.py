"""What a page plays with: a model that makes pictures, goes from one noise to another and edits, at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cmdist import build, guiding, quality
from cmdist.build import Model
from cmdist.core import editing
from cmdist.core.guidance import Guidance
from cmdist.core.noise import Denoise
from cmdist.errors import ConfigError
from cmdist.evaluation import edits, generation
from cmdist.evaluation.edits import Editor, Request, Result
from cmdist.evaluation.generation import Sampler


@dataclass(frozen=True)
class Player:
    """A model on a device. Image i has the noise of seed i, as everywhere; only these images are computed, not their
    whole group, so that the last bits may differ from those of an evaluation.
    """

    model: Model
    device: torch.device

    @cached_property
    def denoise(self) -> Denoise:
        """The network, ready to call."""
        return self.model.denoiser(self.device)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of its images."""
        return quality.shape(self.model.config)

    @cached_property
    def editor(self) -> Editor:
        """What edits with it; a denoiser by its ODE."""
        return self._editor(Guidance())

    def _editor(self, guidance: Guidance) -> Editor:
        noise, denoise = self.model.config.noise, guiding.guided(self.model.config, self.denoise, guidance)
        consistency = quality.to_sigma_min(self.model.config, denoise)
        return Editor(consistency, self.shape, noise.sigma_min, noise.sigma_max, noise.rho, self.device)

    def described(self) -> dict[str, object]:
        """What a page says of it and fills its controls with."""
        config = self.model.config
        return {
            "title": self.model.title,
            "objective": config.kind_name,
            "size": self.shape[1],
            "channels": self.shape[0],
            "classes": config.data.classes,
            "guided": config.guidable or config.told_guidance,
            "sigma_min": config.noise.sigma_min,
            "sigma_max": config.noise.sigma_max,
            "steps": config.usual_steps(self.model.step)[0],
            "times": list(config.sampling.times),
            "grid": self.editor.times("inpaint"),
            "stroke": self.editor.times("stroke"),
        }

    def sample(
        self, seeds: Sequence[int], steps: str, times: Sequence[float], label: int | None, guidance: float = 1.0
    ) -> Tensor:
        """Images uint8 (n, C, H, W) of seeds; `steps` is a number, or heun for a denoiser. Raises ConfigError."""
        sampler = self._sampler(steps, times, label, guidance)
        return self._images(sampler, generation.noises(seeds, sampler.draws, self.shape), label)

    def between(
        self,
        ends: tuple[int, int],
        shares: Sequence[float],
        steps: str,
        times: Sequence[float],
        label: int | None,
        guidance: float = 1.0,
    ) -> Tensor:
        """Images uint8 (n, C, H, W) on the way between the noises of two seeds, 0 at the first and 1 at the other.

        Noise that further steps add is the first seed's. Raises ConfigError.
        """
        sampler = self._sampler(steps, times, label, guidance)
        noises = generation.noises(ends, sampler.draws, self.shape)
        way = noises[:, :1].repeat(1, len(shares), 1, 1, 1)
        way[0] = editing.slerp(noises[0, 0], noises[0, 1], torch.tensor(shares))
        return self._images(sampler, way, label)

    def edit(self, request: Request, picture: Tensor, guidance: float = 1.0) -> Result:
        """A picture (C, H, W), edited. Raises ConfigError."""
        editor = self._editor(Guidance(guidance))
        edits.check(editor, request, self.model.config.data.classes)
        with torch.inference_mode():
            (result,) = edits.edited(editor, request, [("picture", picture)])
        return result

    def _sampler(self, steps: str, times: Sequence[float], label: int | None, guidance: float) -> Sampler:
        config = self.model.config
        edits.check_label(label, config.data.classes)
        several = steps.isdigit() and int(steps) > 1
        levels = times if several else [config.noise.sigma_max]
        (sampler,) = quality.samplers(config, self.denoise, [steps], levels, self.model.step, Guidance(guidance))
        return sampler

    def _images(self, sampler: Sampler, noises: Tensor, label: int | None) -> Tensor:
        labels = None if label is None else torch.full((noises.shape[1],), label, device=self.device)
        with torch.inference_mode():
            return generation.to_uint8(sampler.sample(noises.to(self.device), labels)).cpu()


def opened(url: str, file: str | None, ema: float | None, device: torch.device) -> Player:
    """The model of a run folder, or of a file of weights that the configuration `url` describes. Raises
    CheckpointError, ConfigError.
    """
    if file and ema is not None:
        raise ConfigError("--weights holds one set of weights, so there is no --ema")
    player = Player(build.open_model(url, ema, file), device)
    player.editor  # noqa: B018 - weights that do not fit are an error of the opening
    return player
