"""Shapes of nuclei, from their outlines.

Shape suffixes: e = corners; n = nuclei; 2 = the longer and the shorter axis.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ihc2he.nuclei.outlines import Outlines


def axes(outlines: Outlines) -> NDArray[np.float64]:
    """Return the axes of the ellipse with the second moments of each nucleus, in px: its length and its width.

    Exactly: sums over pixels are sums over the sides of the outlines.

    Args:
        outlines: of N nuclei.

    Returns:
        (N, 2), the longer axis first.

    >>> from ihc2he.nuclei.outlines import outlines as traced
    >>> axes(traced(np.ones((2, 4), int))).round(3).tolist()
    [[4.619, 2.309]]
    """
    boxes_n4 = outlines.boxes()
    n = len(boxes_n4)
    nucleus_e = np.repeat(outlines.nucleus_r, np.diff(outlines.starts_r))
    x_e, y_e = (outlines.corners_e2 - boxes_n4[nucleus_e, :2]).T.astype(np.float64)  # small numbers stay exact
    after_e = np.arange(1, len(x_e) + 1)
    after_e[outlines.starts_r[1:] - 1] = outlines.starts_r[:-1]
    down_e, left_e = y_e[after_e] - y_e, x_e - x_e[after_e]
    # Integrals over the area of 1, x, y, x^2, y^2 and xy.
    terms = (
        x_e * down_e, x_e**2 / 2 * down_e, y_e**2 / 2 * left_e, x_e**3 / 3 * down_e, y_e**3 / 3 * left_e,
        x_e**2 / 4 * (y_e[after_e] ** 2 - y_e**2),
    )  # fmt: skip
    area_n, *sums = (np.bincount(nucleus_e, term_e, n) for term_e in terms)
    x_n, y_n, xx_n, yy_n, xy_n = (sum_n / area_n for sum_n in sums)
    xx_n, yy_n, xy_n = xx_n - x_n**2, yy_n - y_n**2, xy_n - x_n * y_n
    mean_n, spread_n = (xx_n + yy_n) / 2, np.hypot((xx_n - yy_n) / 2, xy_n)
    return 4 * np.sqrt(np.stack([mean_n + spread_n, np.maximum(mean_n - spread_n, 0)], 1))
