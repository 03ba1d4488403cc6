"""Precision, recall and F1 from counts, of one set of tiles or of many resamples at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def ratio(part: Any, whole: Any) -> NDArray[np.float64]:
    """Return part / whole, NaN where that is 0.

    >>> ratio(np.array([1, 0]), np.array([2, 0]))
    array([0.5, nan])
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(whole != 0, np.asarray(part, np.float64) / whole, np.nan)


def detection_ratios(tp: Any, pred: Any, true: Any, suffix: str = "") -> dict[str, NDArray[np.float64]]:
    """Return precision, recall and F1 by name.

    Args:
        tp: matches.
        pred: predicted nuclei.
        true: true nuclei.
        suffix: of the names.

    >>> {name: float(value) for name, value in detection_ratios(1, 2, 4, "_own").items()}
    {'precision_own': 0.5, 'recall_own': 0.25, 'f1_own': 0.3333333333333333}
    """
    values = {"precision": ratio(tp, pred), "recall": ratio(tp, true), "f1": ratio(2 * tp, pred + true)}
    return {name + suffix: value for name, value in values.items()}


def hovernet_f1(right: Any, wrong: Any, alone: Any) -> NDArray[np.float64]:
    """Return the F1 of a class by HoVer-Net (Graham et al. 2019, section 4.1.2).

    Args:
        right: matches of the class that have the right type.
        wrong: matches in which one nucleus is of the class and the other is not; each counts twice.
        alone: nuclei of the class without a match, true or predicted.

    >>> float(hovernet_f1(2, 1, 1))
    0.5714285714285714
    """
    return ratio(2 * right, 2 * right + 2 * wrong + alone)
