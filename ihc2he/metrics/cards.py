"""The name card of a metric: what a reader must know about it, and which of two values is better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_CLOSEST = "closest to "


@dataclass(frozen=True)
class Card:
    """What a reader must know about a metric before comparing two of its values.

    Attributes:
        name: its key.
        title: its name in tables and reports.
        higher_is_better: which direction is better; not used if there is a `best` value.
        unit: unit or range.
        min_size: shorter side of the smallest tile it is defined for, in px.
        protocol: how it is computed.
        best: the best value of a metric that can be too low or too high, such as 0 for a bias.
    """

    name: str
    title: str
    higher_is_better: bool
    unit: str
    min_size: int
    protocol: str
    best: float | None = None

    @property
    def better(self) -> str:
        """Return the direction as it is written in tables: `higher`, `lower`, or for instance `closest to 0`.

        >>> Card("bias", "Bias", False, "nuclei", 1, "found - true", best=0).better
        'closest to 0'
        """
        if self.best is not None:
            return f"{_CLOSEST}{self.best:g}"
        return "higher" if self.higher_is_better else "lower"


def card_of(key: str, cards: Mapping[str, Card]) -> Card | None:
    """Return the card of a logged value, for instance of `val/he/ssim/3+`; None where there is none.

    Args:
        key: stage, metric, and in case a group.
        cards: by metric.

    >>> cards = {"he/ssim": Card("ssim", "SSIM", True, "-1 to 1", 11, "")}
    >>> card_of("val/he/ssim/3+", cards).title, card_of("train/loss", cards)
    ('SSIM', None)
    """
    metric = key.partition("/")[2]
    return cards.get(metric) or cards.get(metric.rpartition("/")[0])


def badness(value: float, better: str) -> float:
    """Return a number that is lower if a value of a metric is better; NaN for NaN.

    Args:
        value: of the metric.
        better: its direction, as `Card.better` has it.

    Raises:
        ValueError: if there is no such direction.

    >>> badness(-50, "closest to 0") > badness(2, "closest to 0"), badness(3, "higher"), badness(3, "lower")
    (True, -3, 3)
    """
    if better.startswith(_CLOSEST):
        return abs(value - float(better.removeprefix(_CLOSEST)))
    if better not in ("higher", "lower"):
        msg = f"'{better}' is not a direction of a metric: expected higher, lower, or for instance {_CLOSEST}0."
        raise ValueError(msg)
    return -value if better == "higher" else value
