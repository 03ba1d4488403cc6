"""Synthetic tiles from a trained generator, each from its own seed."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ihc2he.errors import ConfigError
from ihc2he.models.bundle import load_bundle
from ihc2he.models.generation.draws import latents
from ihc2he.models.pixels import pixels
from ihc2he.models.task import Task


class Made(NamedTuple):
    """A synthetic tile.

    Attributes:
        number: of the tile.
        level: its name.
        image: SxSx3 uint8 RGB.
    """

    number: int
    level: str
    image: NDArray[np.uint8]


class TileSampler(Task):
    """Makes tiles of all levels in turn: tile i is of level i modulo their number.

    A tile depends on (seed, number) and the weights alone, so it is the same in any batch and on any number of
    processes: tiles are made one by one, in full precision.

    Args:
        weights: bundle of a generator: RUN/bundles/generator or a hub id.
        seed: of the latent vectors.

    Raises:
        ConfigError: if there are no weights, or they are of something else.
        DataError: if the bundle cannot be read.
    """

    def __init__(self, weights: str | None, seed: int = 0) -> None:
        super().__init__()
        if weights is None:
            msg = "model.weights=null: pass the generator of a finished run of gan_her2, RUN/bundles/generator."
            raise ConfigError(msg)
        self.generator, info = load_bundle(weights)
        if info.get("role") != "generator":
            msg = f"model.weights={weights}: found a {info.get('role')}, expected a generator, RUN/bundles/generator."
            raise ConfigError(msg)
        self.seed = seed
        self.levels: list[str] = info["classes"]
        self.latent_size: int = info["latent_size"]
        self.digest: str = info["sha256"]
        self.trained_on: list[str] = info.get("trained_on", [])

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What the tiles depend on."""
        return {"weights": self.digest, "seed": self.seed, "levels": self.levels}

    def level_of(self, number: int) -> int:
        """Return the position of a tile's level."""
        return number % len(self.levels)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[Made]:
        """Return the tiles of these numbers.

        Args:
            batch: `number`, a list.
            batch_idx: not used.
        """
        return [self._make(number) for number in batch["number"]]

    def _make(self, number: int) -> Made:
        label = self.level_of(number)
        z_bd = latents([(self.seed, number)], self.latent_size).to(self.device)
        with torch.autocast(self.device.type, enabled=False):
            made = self.generator(z_bd, torch.tensor([label], device=self.device))
        return Made(number, self.levels[label], pixels((made.float() + 1) / 2)[0])
