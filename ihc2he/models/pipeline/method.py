"""What is compared: a translator from IHC to H&E, with a segmenter of H&E."""

from __future__ import annotations

from typing import Literal, NamedTuple

Role = Literal["translation", "none", "ceiling"]  # of a translator in a comparison


class Method(NamedTuple):
    """A pair in use, by the names that the configuration gives.

    >>> str(Method("cyclegan", "hovernet"))
    'cyclegan+hovernet'
    """

    translator: str
    segmenter: str

    def __str__(self) -> str:
        return f"{self.translator}+{self.segmenter}"
