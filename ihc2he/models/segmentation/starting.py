"""Training of a segmenter that starts from a trained one, perhaps with other types of nuclei."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ihc2he.errors import ConfigError
from ihc2he.models.segmentation.loading import Loaded, load_segmenter
from ihc2he.models.segmentation.networks import MapNetwork
from ihc2he.models.starting import misfits, settings_to_change, warn_of_pixel_size
from ihc2he.nuclei.decoders.base import Decoder

log = logging.getLogger(__name__)


def start_from(
    source: str,
    network: MapNetwork,
    decoder: Decoder,
    classes: Sequence[str],
    node: Mapping[str, Any] | None,
    mpp: float | None,
    key: str = "model",
) -> list[str]:
    """Load the weights of a trained segmenter into a network; return the types that keep their random ones.

    Types with a name that the weights have keep their channels, and so does the background, if there is one such type.

    Args:
        source: see `load_segmenter`.
        network: to start.
        decoder: of its maps.
        classes: names of its types.
        node: that builds it, if it is known.
        mpp: um/px of the data.
        key: of the node in the configuration.

    Raises:
        ConfigError: if the weights are of another network or decoder.
        DataError: if they cannot be read.
    """
    loaded = load_segmenter(source)
    own, found = network.state_dict(), loaded.network.state_dict()
    typed = _of_types(decoder, [*own, *found])
    (own_head, own_rest), (head, rest) = (_parted(state, typed) for state in (own, found))
    wrong = misfits(own_rest, rest)
    if own_head and head:
        wrong += misfits(_without_types(own_head), _without_types(head))
    alike = [type(network), type(network.backbone), type(decoder)]
    if wrong or alike != [type(loaded.network), type(loaded.network.backbone), type(loaded.decoder)]:
        raise ConfigError(_other_network(source, network, decoder, node, loaded, wrong, key))
    kept = [name for name in classes if name in loaded.classes]
    network.load_state_dict(rest | _heads(own_head, head, classes, loaded.classes))
    anew = [name for name in classes if name not in kept]
    log.info("Starting from %s. %s", source, _about_types(classes, loaded.classes, kept, anew))
    warn_of_pixel_size(source, mpp, loaded.mpp)
    changed = settings_to_change(vars(decoder), vars(loaded.decoder), "model.decoder")
    if changed:
        log.warning("model.init=%s has other settings of its decoder. For these pass %s.", source, " ".join(changed))
    return anew


def _of_types(decoder: Decoder, names: Sequence[str]) -> set[str]:
    """Return the names of tensors that only the maps of types need."""
    without = decoder.channels(0)
    maps = {name for name, n in decoder.channels(1).items() if without.get(name) != n}
    return {name for name in names if maps & set(name.split("."))}


def _parted(state: Mapping[str, Tensor], typed: set[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors with these names, and the others."""
    return {k: v for k, v in state.items() if k in typed}, {k: v for k, v in state.items() if k not in typed}


def _last(head: Mapping[str, Tensor]) -> str:
    """Return the start of the names of the tensors with a row per type."""
    return [*head][-1].rpartition(".")[0] + "."


def _without_types(head: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of maps of types, with one row where there is one per type."""
    last = _last(head)
    return {name: value[:1] if name.startswith(last) else value for name, value in head.items()}


def _heads(
    own: Mapping[str, Tensor], found: Mapping[str, Tensor], classes: Sequence[str], others: Sequence[str]
) -> dict[str, Tensor]:
    """Return the tensors of maps of types to start with, row by row where there is one per type."""
    if not (own and found):
        return dict(own)
    last = _last(own)
    rows = [(i, others.index(name) + 1) for i, name in enumerate(classes, start=1) if name in others]
    rows = [(0, 0), *rows] if rows else []
    started = dict(found)
    for name in [name for name in own if name.startswith(last)]:
        value = own[name].clone()
        for i, other in rows:
            value[i] = found[name][other]
        started[name] = value
    return started


def _about_types(classes: Sequence[str], others: Sequence[str], kept: Sequence[str], anew: Sequence[str]) -> str:
    """Return what becomes of the types, as a sentence.

    >>> _about_types(["round", "flat"], ["flat"], ["flat"], ["round"])
    'Types that go on: flat; that start anew: round.'
    """
    if not classes:
        return f"Its types ({', '.join(others)}) are left out." if others else "All of its weights are taken."
    if not anew:
        return f"Its types go on: {', '.join(kept)}."
    if kept:
        return f"Types that go on: {', '.join(kept)}; that start anew: {', '.join(anew)}."
    return f"All types start anew: {', '.join(anew)}; it has {', '.join(others) or 'none'}."


def _other_network(
    source: str,
    network: MapNetwork,
    decoder: Decoder,
    node: Mapping[str, Any] | None,
    loaded: Loaded,
    wrong: Sequence[str],
    key: str,
) -> str:
    kinds = [
        f"a {type(net).__name__} on {type(net.backbone).__name__} with a {type(own).__name__}"
        for net, own in ((loaded.network, loaded.decoder), (network, decoder))
    ]
    changes = []
    if type(loaded.network) is type(network) and node is not None:
        changes = settings_to_change(node, loaded.module, key)
    if type(loaded.decoder) is not type(decoder):
        changes.append(f"model/decoder={type(loaded.decoder).__module__.rpartition('.')[2]}")
    many = f" ({len(wrong)} tensors are missing, unknown or of another shape, such as {wrong[0]})" if wrong else ""
    remedy = f"Pass {' '.join(changes)}" if changes else "Choose the model of the run that made it, by its config.yaml"
    return f"model.init={source}: holds {kinds[0]}, and this configuration has {kinds[1]}{many}. {remedy}."
