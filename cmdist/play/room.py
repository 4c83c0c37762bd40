"""The models of a page, and what it does with them: messages in, pictures out."""

import base64
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from cmdist.errors import ConfigError
from cmdist.evaluation import edits, generation, pictures
from cmdist.evaluation.edits import Request
from cmdist.play import messages, player
from cmdist.play.messages import Between, Describe, Edit, Message, Open, Sample, Sampling, Slot, Upload
from cmdist.play.player import Player

Reply = dict[str, object]


class Room:
    """Two models, the second of which stands beside the first on the same noise; one thing is computed at a time."""

    def __init__(self, first: Player, second: Player | None = None) -> None:
        self._players: dict[Slot, Player] = {"first": first}
        if second:
            self._players["second"] = second
        self._device = first.device
        self._lock = threading.Lock()
        self._actions: Mapping[str, tuple[type[Message], Callable[[Any], Reply]]] = {
            "describe": (Describe, lambda request: self._player(request.slot).described()),
            "open": (Open, self._open),
            "sample": (Sample, self._sample),
            "between": (Between, self._between),
            "upload": (Upload, self._upload),
            "edit": (Edit, self._edit),
        }

    @property
    def actions(self) -> tuple[str, ...]:
        """The names of what can be asked for."""
        return tuple(self._actions)

    def act(self, action: str, tree: Any) -> Reply:
        """The reply to a message, with the `seconds` that it took. Raises CmdistError."""
        shape, does = self._actions[action]
        request = messages.message(shape, tree)
        with self._lock:
            begun = time.perf_counter()
            return does(request) | {"seconds": time.perf_counter() - begun}

    def _player(self, slot: Slot) -> Player:
        if slot not in self._players:
            raise ConfigError(f"there is no {slot} model: open one")
        return self._players[slot]

    def _open(self, request: Open) -> Reply:
        made = player.opened(request.run, request.weights or None, None, self._device)
        described = made.described()
        self._players[request.slot] = made
        return described

    def _sampling(self, request: Sampling) -> Player:
        made, first = self._player(request.slot), self._players["first"]
        if made.shape != first.shape:
            raise ConfigError(
                f"{made.model.title} makes images {list(made.shape)} and {first.model.title} {list(first.shape)} "
                "(channels, height, width); side by side they must be equal"
            )
        return made

    def _sample(self, request: Sample) -> Reply:
        seeds = range(request.seed, request.seed + request.count)
        images = self._sampling(request).sample(seeds, request.steps, request.times, request.label, request.guidance)
        return {"images": [_encoded(image) for image in images]}

    def _between(self, request: Between) -> Reply:
        ends = request.seed, request.other
        images = self._sampling(request).between(
            ends, request.shares, request.steps, request.times, request.label, request.guidance
        )
        return {"images": [_encoded(image) for image in images]}

    def _upload(self, request: Upload) -> Reply:
        content, shape = messages.content_of(request.content), self._player("first").shape
        picture = edits.decoded(content, request.name, shape, enlarge=True, fit=request.fit)
        return {"image": _encoded(_bytes(picture))}

    def _edit(self, request: Edit) -> Reply:
        made = self._player("first")
        size = made.shape[1]
        mask = edits.mask_in(messages.content_of(request.mask), "as drawn", size) if request.mask else None
        picture = edits.decoded(
            messages.content_of(request.picture), "the picture", made.shape, enlarge=True, fit=False
        )
        seeds = range(request.seed, request.seed + request.count)
        result = made.edit(
            Request(
                request.task, seeds, request.times, request.label, mask, request.patch, request.sigma, request.add_noise
            ),
            picture,
            request.guidance,
        )
        return {
            "known": _encoded(_bytes(result.known)),
            "images": [_encoded(image) for image in generation.to_uint8(result.edits)],
            "kept": float(result.errors.max()),
        }


def _bytes(picture: Tensor) -> Tensor:
    return generation.to_uint8(picture.clamp(-1, 1)[None])[0]


def _encoded(image: Tensor) -> str:
    """An image uint8 (C, H, W) as an address that holds the whole of it."""
    return "data:image/png;base64," + base64.b64encode(pictures.png(pictures.alone(image))).decode()
