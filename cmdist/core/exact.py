"""Closed forms."""
import torch
from torch import Tensor
from cmdist.core.noise import expand


class FiniteDataSet:
    """The denoiser of a finite set of images."""

    def __init__(self, images: Tensor, labels: Tensor | None = None) -> None:
        self.images, self.labels = images, labels

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        data = self.images.flatten(1).to(x)
        flat = x.flatten(1)
        logits = (flat @ data.T - data.square().sum(1) / 2) / sigma[:, None] ** 2
        if self.labels is not None and labels is not None:
            logits = logits.masked_fill(self.labels[None] != labels[:, None], float("-inf"))
        return (logits.softmax(1) @ data).view_as(x)
