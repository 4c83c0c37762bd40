"""Trainable weights as views of one vector and their gradient as another, which ZeRO makes for itself."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

BUCKET = 50_000_000  # gradients that are reduced at once; each costs 4 bytes of the GPU's memory


class Flat:
    """The parameters' memory end to end in one `vector`, which an optimizer updates instead of hundreds of tensors."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = list(parameters)
        memory = torch.cat([p.data.reshape(-1) for p in self._parameters])
        for p, part in zip(self._parameters, memory.split([p.numel() for p in self._parameters]), strict=True):
            p.data = part.view(p.shape)
        self.vector = memory.requires_grad_()

    def take_gradients(self) -> Tensor:
        """Move the parameters' gradients into the vector's, and return that; zeros where a parameter has none."""
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        self.vector.grad = torch.cat([gradient.reshape(-1) for gradient in gradients])
        for p in self._parameters:
            p.grad = None
        return self.vector.grad

    def drop_gradients(self) -> None:
        """Free what `take_gradients` made."""
        self.vector.grad = None
