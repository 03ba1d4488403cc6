"""How many nuclei are positive for DAB, and how strongly: counts per class, percentage positive, H-score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ihc2he.errors import ConfigError
from ihc2he.nuclei.colours import name_of
from ihc2he.nuclei.table import NucleiTable

THRESHOLDS = (0.2, 0.4, 0.6)  # of the mean DAB optical density; those of QuPath


class Counts(NamedTuple):
    """Numbers of nuclei by the strength of their DAB."""

    negative: int
    weak: int
    moderate: int
    strong: int

    @property
    def nuclei(self) -> int:
        """All nuclei."""
        return sum(self)

    @property
    def positive(self) -> int:
        """Those that are weak or stronger."""
        return self.nuclei - self.negative

    @property
    def percent_positive(self) -> float:
        """Share of the positive ones, 0 to 100; NaN if there are no nuclei."""
        return 100 * self.positive / self.nuclei if self.nuclei else float("nan")

    @property
    def h_score(self) -> float:
        """Percentage weak + 2 x moderate + 3 x strong, 0 to 300; NaN if there are no nuclei.

        Source: McCarty et al., Arch Pathol Lab Med 1985.
        """
        weighted = self.weak + 2 * self.moderate + 3 * self.strong
        return 100 * weighted / self.nuclei if self.nuclei else float("nan")


def check_thresholds(thresholds: Sequence[float]) -> None:
    """Refuse anything but three positive, rising numbers.

    Args:
        thresholds: from which mean DAB optical density a nucleus is weak, moderate, strong.

    Raises:
        ConfigError: with what was found.

    >>> check_thresholds([0.2, 0.4, 0.6])
    """
    if len(thresholds) != 3 or not all(low < high for low, high in pairwise([0, *thresholds])):
        msg = f"thresholds={list(thresholds)}: expected three rising optical densities, such as {list(THRESHOLDS)}."
        raise ConfigError(msg)


def strengths(dab_od_n: NDArray[np.floating], thresholds: Sequence[float] = THRESHOLDS) -> NDArray[np.intp]:
    """Return 0 for each negative nucleus, 1 for a weak, 2 for a moderate, 3 for a strong one.

    Args:
        dab_od_n: mean DAB optical density of each nucleus.
        thresholds: from which density on a nucleus is weak, moderate, strong.

    Raises:
        ConfigError: the thresholds are not three that rise.
        ValueError: a density is NaN, which is neither positive nor negative.

    >>> strengths(np.array([0.1, 0.2, 0.45, 3.0])).tolist()
    [0, 1, 2, 3]
    """
    check_thresholds(thresholds)
    if np.isnan(dab_od_n).any():
        msg = (
            f"The DAB density of {np.isnan(dab_od_n).sum()} of {len(dab_od_n)} nuclei is NaN: measure it, or drop them."
        )
        raise ValueError(msg)
    return np.digitize(dab_od_n, thresholds)


def count_by_class(
    table: NucleiTable, classes: Sequence[str], thresholds: Sequence[float] = THRESHOLDS
) -> dict[str, Counts]:
    """Return the counts of each class, of nuclei of unknown type if there are some, and of all under `all`.

    Args:
        table: with a mean `dab` density of each nucleus.
        classes: names of the types from 1 upwards.
        thresholds: from which density on a nucleus is weak, moderate, strong.

    Raises:
        ConfigError: the thresholds are not three that rise.
        ValueError: the table has no `dab`, or it has NaN.

    >>> from ihc2he.nuclei.table import IHC_STAINS, nuclei_table
    >>> brown = np.array([[[255, 255, 255], [110, 60, 30]]], np.uint8)
    >>> table = nuclei_table(np.array([[1, 2]]), np.array([1, 1]), mpp=0.5, image=brown, stains=IHC_STAINS)
    >>> count_by_class(table, ["stroma"])["stroma"]
    Counts(negative=1, weak=0, moderate=0, strong=1)
    """
    if "dab" not in table.stain_od:
        msg = f"The table of nuclei has the stains {sorted(table.stain_od)}; counting needs 'dab', measured on the IHC."
        raise ValueError(msg)
    return counted(table.types_n, table.stain_od["dab"], classes, thresholds)


def counted(
    types_n: NDArray[np.integer],
    dab_od_n: NDArray[np.floating],
    classes: Sequence[str],
    thresholds: Sequence[float] = THRESHOLDS,
) -> dict[str, Counts]:
    """Return the counts like `count_by_class`, from the type and the mean `dab` density of each nucleus."""
    kinds = len(classes) + 1
    cells_n = types_n * 4 + strengths(dab_od_n, thresholds)
    found_k4 = np.bincount(cells_n, minlength=4 * kinds).reshape(kinds, 4)
    counts = {name_of(kind, classes): Counts(*found_k4[kind].tolist()) for kind in range(1, kinds)}
    if classes and found_k4[0].any():
        counts[name_of(0, classes)] = Counts(*found_k4[0].tolist())
    return counts | {"all": Counts(*found_k4.sum(0).tolist())}


def pooled(images: Sequence[Mapping[str, Counts]]) -> dict[str, Counts]:
    """Return the counts of several images together, class by class.

    Args:
        images: results of `count_by_class`; a class that is missing in one has no nuclei there.

    >>> pooled([{"all": Counts(1, 0, 0, 0)}, {"all": Counts(2, 1, 0, 0)}])
    {'all': Counts(negative=3, weak=1, moderate=0, strong=0)}
    """
    names = dict.fromkeys(name for counts in images for name in counts)
    return {name: Counts(*map(sum, zip(*(c[name] for c in images if name in c), strict=True))) for name in names}
