"""The metrics of a stain translation, over whole tiles and in both directions."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor, nn

from ihc2he.build import build
from ihc2he.metrics import distribution, fidelity, stain
from ihc2he.metrics.fidelity import Card

log = logging.getLogger(__name__)

DIRECTIONS = ("he", "ihc")


class Evaluation:
    """Collects per-image metrics of made H&E (keys `he/...`) and made IHC (`ihc/...`).

    Fidelity is computed on pairs, what the stains did on every image, and FID and KID on all images where a feature
    network can be had; where it cannot, one log line says so and the others go on. It is no `nn.Module`, so nothing
    of it enters a checkpoint.

    Args:
        metrics: names of fidelity metrics.
        features: `inception`, a node of an `nn.Module`, or None.

    Raises:
        ConfigError: for an unknown metric.
    """

    def __init__(self, metrics: Sequence[str], features: str | Mapping[str, Any] | None) -> None:
        self.metrics = fidelity.check_names(metrics)
        self.per_image = fidelity.PerImageMean()
        self.distributions: dict[str, distribution.Distribution] = {}
        if features is not None:
            network = build(features, nn.Module) if isinstance(features, Mapping) else features
            self.distributions = {to: distribution.Distribution(network) for to in DIRECTIONS}

    @property
    def cards(self) -> dict[str, Card]:
        """The name cards by logged key, `he/psnr` for one."""
        titles = {"he": "made H&E", "ihc": "made IHC"}
        cards = {name: fidelity.CARDS[name] for name in self.metrics} | stain.CARDS
        if self.distributions:
            cards |= distribution.CARDS
        return {
            f"{to}/{name}": replace(card, title=f"{card.title}, {titles[to]}")
            for to in DIRECTIONS
            for name, card in cards.items()
        }

    def update(self, batch: Mapping[str, Any], fake_he: Tensor, fake_ihc: Tensor) -> list[dict[str, Any]]:
        """Add a batch and return one row per image: name, group, and the values by key.

        Args:
            batch: `ihc`, `he`, `name`, `group`, `paired`.
            fake_he: made from `ihc`, (N, 3, H, W) in [-1, 1].
            fake_ihc: made from `he`, likewise.
        """
        values: dict[str, Tensor] = {}
        paired = bool(batch["paired"].all())
        directions: list[tuple[Literal["he", "ihc"], Tensor, Tensor]]
        directions = [("he", batch["ihc"], fake_he), ("ihc", batch["he"], fake_ihc)]
        for to, source, fake in directions:
            if paired and self.metrics:
                scores = fidelity.fidelity(_unit(fake), _unit(batch[to]), self.metrics)
                values |= {f"{to}/{name}": value for name, value in scores.items()}
            values |= {f"{to}/{name}": value for name, value in stain.stain_change(source, fake, to).items()}
            self._update_distribution(to, real=batch[to], fake=fake)
        self.per_image.to(fake_he.device).update(values, batch["group"])
        columns = {key: value.tolist() for key, value in values.items()}
        return [
            {"name": name, "group": group} | {key: column[i] for key, column in columns.items()}
            for i, (name, group) in enumerate(zip(batch["name"], batch["group"], strict=True))
        ]

    def _update_distribution(self, to: str, real: Tensor, fake: Tensor) -> None:
        if to not in self.distributions:
            return
        metric = self.distributions[to].to(real.device)
        try:
            metric.update(_unit(real), real=True)
            metric.update(_unit(fake), real=False)
        except distribution.FeaturesUnavailable as error:
            log.warning("FID and KID are left out. %s", error)
            self.distributions.clear()

    def compute_and_reset(self) -> dict[str, Tensor]:
        """Return the means over all images and over each group, and FID and KID; then start afresh.

        Collective: every rank has to call it.
        """
        values = self.per_image.compute()
        self.per_image.reset()
        for to, metric in self.distributions.items():
            values |= {f"{to}/{name}": value.float() for name, value in metric.compute().items()}
            metric.reset()
        return values


def _unit(x_bchw: Tensor) -> Tensor:
    return ((x_bchw.float() + 1) / 2).clamp(0, 1)
