"""The schema of a run's configuration: the sections of every run, and those of its kinds of objective and network."""

from typing import Annotated

from pydantic import model_validator

from cmdist.core.guidance import Guidance
from cmdist.kinds.distances import Features, Lpips
from cmdist.kinds.guided import guidance, guided_wrongly
from cmdist.kinds.kind import Kind
from cmdist.kinds.networks import NETWORKS, Images
from cmdist.kinds.objectives import OBJECTIVES
from cmdist.sections import (
    Data,
    Evaluation,
    Noise,
    OneOf,
    Optimizer,
    Run,
    Sampling,
    Section,
    Tracking,
    Train,
    content,
)


class Config(Section):
    """One run.

    A teacher and `init` name a run folder (its newest checkpoint), a checkpoint folder, or a file of released weights
    (.pt, .pth, .safetensors); `exact` as teacher is the data's closed form. A file as teacher is a denoiser (edm_*)
    with this run's `network.*`.
    """

    objective: Annotated[Section, OneOf(OBJECTIVES)]
    run: Run
    data: Data
    network: Annotated[Section, OneOf(NETWORKS, "adm")]
    noise: Noise = Noise()
    optimizer: Optimizer
    train: Train
    init: Annotated[str | None, content("null: random weights; 'teacher': the teacher's")] = None
    sampling: Sampling = Sampling()
    evaluation: Evaluation = Evaluation()
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _possible(self) -> "Config":
        noise, train = self.noise, self.train
        if noise.sigma_min >= noise.sigma_max:
            raise ValueError(f"noise.sigma_min ({noise.sigma_min}) must be below noise.sigma_max ({noise.sigma_max})")
        if train.global_batch % train.micro_batch:
            raise ValueError(
                f"train.global_batch ({train.global_batch}) must be a multiple of train.micro_batch "
                f"({train.micro_batch})"
            )
        if len(set(train.ema)) != len(train.ema):
            raise ValueError(f"train.ema {list(train.ema)} names one twice; each may stand once")
        if train.ema_ramp_up is not None and max(train.ema) < 1:
            raise ValueError(
                f"train.ema_ramp_up shortens half-lives in images, and train.ema {list(train.ema)} has decays alone"
            )
        if train.compile and getattr(self.network, "checkpoint_activations", False) and self.dropout:
            raise ValueError(
                "train.compile with network.checkpoint_activations needs network.dropout 0: "
                "compiled checkpointing draws its masks in another order, so student and target would not share them"
            )
        if short := [value for value in train.ema if 1 <= value < train.global_batch]:
            raise ValueError(
                f"train.ema {short[0]:g} is a half-life in images below train.global_batch ({train.global_batch}): "
                "such an average is the weights of the last step"
            )
        if self.null_label and not self.data.classes:
            raise ValueError("network.null_label is the label of no class: it needs data.classes above 0")
        if train.label_dropout and not self.null_label:
            raise ValueError("train.label_dropout takes labels away: it needs network.null_label true")
        if train.label_dropout and self.teacher is not None:
            raise ValueError(
                "train.label_dropout takes classes away, for which a teacher would be asked: it must be 0 with one"
            )
        if sentence := guided_wrongly(self.objective, self.guidance, self.told_guidance, self.data.classes):
            raise ValueError(sentence)
        if self.kind.through(self.objective) and getattr(self.network, "checkpoint_activations", False):
            raise ValueError(
                f"the gradient of objective.kind {self.kind_name} goes through a derivative of the network here, which "
                "cannot be computed in pieces again: network.checkpoint_activations must be false"
            )
        if self.init == "teacher" and self.teacher in (None, "exact"):
            raise ValueError(
                "init: teacher needs objective.teacher to be a run folder, a checkpoint folder or a file of weights"
            )
        if sentence := self.kind.check(self):
            raise ValueError(f"objective.kind {self.kind_name}: {sentence}")
        if self.kind.second != getattr(self.network, "second_time", self.kind.second):
            raise ValueError(
                f"objective.kind {self.kind_name} "
                + (
                    "gives the network a second noise level: it needs network.second_time true"
                    if self.kind.second
                    else "gives the network one noise level: network.second_time must be false"
                )
            )
        row = NETWORKS[self.network.kind]  # type: ignore[attr-defined]
        row.check(self.network, self.images)
        if row.drawn and self.optimizer.weight_decay:
            raise ValueError(
                f"optimizer.weight_decay moves every weight, and a network of this kind keeps {row.drawn} as they were "
                "drawn: it must be 0"
            )
        times, top, bottom = self.sampling.times, noise.sigma_max, noise.sigma_min
        if times[0] != top or any(a <= b for a, b in zip(times, times[1:], strict=False)) or times[-1] <= bottom:
            raise ValueError(
                f"sampling.times {list(times)} must fall from noise.sigma_max ({top}) and "
                f"stay above noise.sigma_min ({bottom})"
            )
        return self

    @property
    def micro_batches(self) -> int:
        """M, micro-batches of an optimizer step over all ranks."""
        return self.train.global_batch // self.train.micro_batch

    @property
    def images(self) -> Images:
        """What the network is made for."""
        return Images(self.data.channels, self.data.image_size, self.data.classes)

    @property
    def kind_name(self) -> str:
        """The objective's."""
        return str(self.objective.kind)  # type: ignore[attr-defined]

    @property
    def kind(self) -> Kind:
        """What the table says of the objective."""
        return OBJECTIVES[self.kind_name]

    @property
    def teacher(self) -> str | None:
        """Whom the objective follows, if it does."""
        return getattr(self.objective, "teacher", None)

    @property
    def guidance(self) -> Guidance:
        """How the teacher is guided."""
        return guidance(self.objective)

    @property
    def guide(self) -> str | None:
        """The worse teacher, if the teacher is guided by one."""
        return getattr(self.objective, "guide", None)

    @property
    def frozen(self) -> str | None:
        """The run of a helper that never changes, if the objective has one."""
        return getattr(self.objective, self.kind.frozen) if self.kind.frozen else None

    @property
    def start(self) -> str | None:
        """Whose weights the run starts from: a run, a checkpoint or a file; None: random."""
        return self.teacher if self.init == "teacher" else self.init

    @property
    def dropout(self) -> float:
        """Of the network."""
        return float(getattr(self.network, "dropout", 0.0))

    def usual_steps(self, step: int | None = None) -> list[str]:
        """The samplers of evaluation after so many steps of training, None: all, by name; the fastest first."""
        if self.kind.steps is not None:
            return [str(self.student_steps(step))]
        return ["heun"] if self.kind.makes == "denoiser" else ["1", str(len(self.sampling.times))]

    def student_steps(self, step: int | None = None) -> int | None:
        """How many steps of a fixed grid the student was trained for, if it was, after so many steps of training."""
        steps = self.train.steps if step is None else step
        return self.kind.steps(self.objective, steps) if self.kind.steps is not None else None

    @property
    def second_time(self) -> bool:
        """Whether the network takes a second noise level."""
        return bool(getattr(self.network, "second_time", False))

    @property
    def told_guidance(self) -> bool:
        """Whether the network takes a scale of guidance."""
        return bool(getattr(self.network, "told_guidance", False))

    @property
    def null_label(self) -> bool:
        """Whether the network knows the label of no class."""
        return bool(getattr(self.network, "null_label", False))

    @property
    def guidable(self) -> bool:
        """Whether its model has learnt no class beside classes, at one noise level."""
        return self.null_label and self.train.label_dropout > 0 and not self.second_time

    def as_denoiser(self) -> "Config":
        """With a network that takes one noise level and no scale of guidance, as those of denoisers."""
        if not (self.second_time or self.told_guidance):
            return self
        plain = {key: False for key in ("second_time", "told_guidance") if getattr(self.network, key, False)}
        return self.model_copy(update={"network": self.network.model_copy(update=plain)})

    @property
    def lpips(self) -> Lpips | None:
        """The keys of LPIPS, if the loss looks through VGG."""
        distance = getattr(self.objective, "distance", None)
        return distance if isinstance(distance, Lpips) else None

    @property
    def classifier(self) -> str | None:
        """The data set whose classifier the loss looks through, if it does."""
        distance = getattr(self.objective, "distance", None)
        return (distance.extractor or self.data.url) if isinstance(distance, Features) else None


# Keys of format 2 and what has become of them, for overrides and files written by hand.
MOVED = {
    "objective": "objective.kind",
    "teacher": "objective.teacher",
    "loss": "a part of objective (docs/keys.md)",
    "loss.distance": "objective.distance.kind",
    "loss.lpips_weights": "objective.distance.weights",
    "loss.lpips_pooling": "objective.distance.pooling",
    "loss.lpips_precision": "objective.distance.precision",
    "loss.huber_c": "objective.distance.c",
    "loss.weighting": "objective.weighting",
    "loss.index": "objective.index.kind",
    "loss.index_mean": "objective.index.mean",
    "loss.index_std": "objective.index.std",
    "loss.sigma_mean": "objective.sigma_mean",
    "loss.sigma_std": "objective.sigma_std",
    "loss.solver": "objective.solver",
    "curriculum": "objective.curriculum",
    **{
        f"curriculum.{name}": f"objective.curriculum.{name}"
        for name in ("kind", "n_timesteps", "mu", "s0", "s1", "mu0", "mu_form", "total_steps")
    },
}
