"""Bundles of earlier versions, converted to the present format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FORMAT = 2  # of `config.json`


def upgraded(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a bundle's `config.json` as format 2 has it.

    Format 1 had only one way from maps to nuclei, with one switch.

    Raises:
        ValueError: if the switch is not true or false.

    >>> old = {"role": "segmenter", "postprocessing": "ihc2he.nuclei.postprocess.postprocess", "keep_unmarked": False}
    >>> upgraded(old)["decoder"]
    {'_target_': 'ihc2he.nuclei.decoders.hover.HoverDecoder', 'keep_unmarked': False}
    """
    own = dict(config)
    if own.get("format", 1) != 1:
        return own
    kept = own.pop("keep_unmarked", True)
    if kept not in (True, False):
        msg = f"config.json: keep_unmarked {kept!r}, expected true or false"
        raise ValueError(msg)
    own.pop("postprocessing", None)
    if own.get("role") == "segmenter":
        own["decoder"] = hover_node(kept)
    return own | {"format": FORMAT}


def hover_node(keep_unmarked: bool) -> dict[str, Any]:
    """Return the node of the decoder that every segmenter of format 1 has."""
    return {"_target_": "ihc2he.nuclei.decoders.hover.HoverDecoder", "keep_unmarked": keep_unmarked}
