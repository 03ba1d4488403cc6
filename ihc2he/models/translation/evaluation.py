"""The metrics of a stain translation, over whole tiles and in the directions that there are."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ihc2he.build import build
from ihc2he.metrics import content, distribution, fidelity, stain
from ihc2he.metrics.cards import Card
from ihc2he.models.pixels import pixels
from ihc2he.ranks import from_all_ranks
from ihc2he.stain import STAINS, Stain

log = logging.getLogger(__name__)

_SOURCES: dict[Stain, Stain] = {"he": "ihc", "ihc": "he"}
# What correlates between an image and its source where the stains are right. Positive nuclei of IHC are brown.
_NUCLEI: dict[Stain, tuple[str, str]] = {
    "he": ("hematoxylin_correlation", "hematoxylin"),
    "ihc": ("nuclear_correlation", "the nuclear stain"),
}


class TranslationEvaluation:
    """Collects per-image metrics of made H&E (keys `he/...`) and made IHC (`ihc/...`).

    Fidelity is computed on pairs, what the stains did on every image, nuclei lost and invented in made H&E where the
    true nuclei are known, and FID and KID on all images where a feature network can be had; where it cannot, one log
    line says so and the others go on. It is no `nn.Module`, so nothing of it enters a checkpoint.

    Args:
        metrics: names of fidelity metrics.
        features: `inception`, a node of an `nn.Module`, or None.
        made: the stains that are made.

    Raises:
        ConfigError: for an unknown metric.
    """

    def __init__(
        self, metrics: Sequence[str], features: str | Mapping[str, Any] | None, made: Sequence[Stain] = ("he", "ihc")
    ) -> None:
        self.metrics = fidelity.check_names(metrics)
        self.made = made
        self.per_image = fidelity.PerImageMean()
        self.distributions: dict[Stain, distribution.Distribution] = {}
        if features is not None:
            network = build(features, nn.Module) if isinstance(features, Mapping) else features
            self.distributions = {to: distribution.Distribution(network) for to in made}

    @property
    def cards(self) -> dict[str, Card]:
        """The name cards by logged key, `he/psnr` for one."""
        cards = {name: fidelity.CARDS[name] for name in self.metrics} | stain.CARDS
        if self.distributions:
            cards |= distribution.CARDS
        return {
            f"{to}/{name}": replace(card, title=f"{card.title}, made {STAINS[to]}")
            for to in self.made
            for name, card in (cards | content.CARDS if to == "he" else cards).items()
        }

    def update(self, batch: Mapping[str, Any], made: Mapping[Stain, Tensor]) -> list[dict[str, Any]]:
        """Add a batch and return one row per image: name, group, and the values by key.

        Args:
            batch: `ihc`, `he`, `name`, `group`, `paired`; with `inst` and `mpp`, the true nuclei of the IHC are known.
            made: translations by their stain, (N, 3, H, W) in [-1, 1].
        """
        values: dict[str, Tensor] = {}
        paired = bool(batch["paired"].all())
        for to, fake in made.items():
            if paired and self.metrics:
                scores = fidelity.fidelity(_unit(fake), _unit(batch[to]), self.metrics)
                values |= {f"{to}/{name}": value for name, value in scores.items()}
            changes = stain.stain_change(batch[_SOURCES[to]], fake, to)
            values |= {f"{to}/{name}": value for name, value in changes.items()}
            if to == "he" and "inst" in batch:
                values |= _content(batch, fake)
            self._update_distribution(to, real=batch[to], fake=fake)
        self.per_image.to(batch["ihc"].device).update(values, batch["group"])
        columns = {key: value.tolist() for key, value in values.items()}
        return [
            {"name": name, "group": group} | {key: column[i] for key, column in columns.items()}
            for i, (name, group) in enumerate(zip(batch["name"], batch["group"], strict=True))
        ]

    def _update_distribution(self, to: Stain, real: Tensor, fake: Tensor) -> None:
        if to not in self.distributions:
            return
        metric = self.distributions[to].to(real.device)
        for image, is_real in ((real, True), (fake, False)):
            self._try(metric.update, _unit(image), real=is_real)

    def compute_and_reset(self) -> dict[str, Tensor]:
        """Return the means over all images and over each group, and FID and KID; then start afresh.

        Collective: every rank has to call it.
        """
        values = self.per_image.compute()
        self.per_image.reset()
        self._agree_on_distributions()
        for to, metric in self.distributions.items():
            values |= {f"{to}/{name}": value.float() for name, value in metric.compute().items()}
            metric.reset()
        return values

    def _agree_on_distributions(self) -> None:
        """Leave out FID and KID on every rank if one has no network, for the others would wait for it."""
        for metric in list(self.distributions.values()):
            self._try(metric.prepare)  # a rank without images has not needed it so far
        if not all(from_all_ranks(bool(self.distributions))):
            self.distributions.clear()

    def _try(self, work: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        """Do what needs the feature network, or give up FID and KID with a line."""
        try:
            work(*args, **kwargs)
        except distribution.FeaturesUnavailable as error:
            if self.distributions:
                log.warning("FID and KID are left out. %s", error)
            self.distributions.clear()

    def inverted(self, values: Mapping[str, Any]) -> str | None:
        """Return what says that nuclei and background have changed places, or None.

        Args:
            values: as `compute_and_reset` returns them.
        """
        to = self.made[0]
        metric, what = _NUCLEI[to]
        correlation = float(values.get(f"{to}/{metric}", 1))
        if not correlation < 0:  # NaN is no alarm
            return None
        return (
            f"{what} of the made {STAINS[to]} correlates with that of its {STAINS[_SOURCES[to]]} at {correlation:.2f}; "
            "below 0 means that nuclei and background have changed places"
        )


def _content(batch: Mapping[str, Any], he_bchw: Tensor) -> dict[str, Tensor]:
    """Return what happened to the true nuclei of each image, (N,) each."""
    ihc, he = (np.ascontiguousarray(pixels(_unit(x_bchw))) for x_bchw in (batch["ihc"], he_bchw))
    images = zip(ihc, he, batch["inst"].cpu().numpy(), batch["mpp"].tolist(), strict=True)
    rows = [content.content_change(*image) for image in images]
    return {f"he/{name}": torch.tensor([row[name] for row in rows], device=he_bchw.device) for name in content.CARDS}


def _unit(x_bchw: Tensor) -> Tensor:
    return ((x_bchw.float() + 1) / 2).clamp(0, 1)
