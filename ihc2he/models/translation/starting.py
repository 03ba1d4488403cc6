"""Training of a stain translation that starts from trained generators, and discriminators where there are some."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from ihc2he.errors import ConfigError
from ihc2he.models.bundle import bundles_in, load_bundle
from ihc2he.models.checkpoint import read_checkpoint
from ihc2he.models.starting import misfits, settings_to_change, warn_of_pixel_size
from ihc2he.stain import STAINS

log = logging.getLogger(__name__)

_RANGE = [-1.0, 1.0]  # of the images of generators that are trained here


class _Found(NamedTuple):
    """A trained network: its weights, the node that builds it if it is known, and um/px likewise."""

    state: Mapping[str, Tensor]
    node: Any = None
    mpp: float | None = None


def start_from(
    source: str, networks: Mapping[str, Sequence[nn.Module]], nodes: Mapping[str, Any], mpp: float | None
) -> None:
    """Load trained weights into generators and discriminators, and log what starts from them and what does not.

    Generators must fit; a discriminator that does not keeps its random weights.

    Args:
        source: a checkpoint of a run, from which the averaged generators are taken if there are some; a bundle (folder
            or hub id); or the folder of a run's bundles.
        networks: to start, by name (`g_ihc2he`, `d_he`): each with its average, if there is one.
        nodes: that build the generators, by name.
        mpp: um/px of the data.

    Raises:
        ConfigError: if there is no generator for this model, or one of another size.
        DataError: if it cannot be read.
    """
    found = _of_run(source) if source.endswith(".ckpt") else _of_bundles(source)
    started = [name for name in networks if name in found and _fits(source, name, networks[name][0], nodes, found)]
    if not any(name.startswith("g_") for name in started):
        wanted = " and ".join(name for name in networks if name.startswith("g_"))
        msg = (
            f"model.init={source}: holds {', '.join(found) or 'no generators'}, and this model trains {wanted}. Pass a "
            "checkpoint or the folder of bundles (RUN/bundles) of a stain translation."
        )
        raise ConfigError(msg)
    for name in started:
        for network in networks[name]:
            network.load_state_dict(found[name].state)
    left = [name for name in networks if name not in started]
    level = logging.WARNING if any(name.startswith("g_") for name in left) else logging.INFO
    random = f"; with random weights: {', '.join(left)}" if left else ""
    log.log(level, "Starting from %s: %s%s.", source, ", ".join(started), random)
    for size in {one.mpp for one in found.values()}:
        warn_of_pixel_size(source, mpp, size)


def _fits(source: str, name: str, network: nn.Module, nodes: Mapping[str, Any], found: Mapping[str, _Found]) -> bool:
    wrong = misfits(network.state_dict(), found[name].state)
    if not wrong:
        return True
    if name.startswith("d_"):
        return False
    both = nodes[name], found[name].node
    changes = settings_to_change(*both, "model.generator") if all(isinstance(node, Mapping) for node in both) else []
    remedy = f"Pass {' '.join(changes)}." if changes else "The config.yaml of its run has its settings."
    msg = (
        f"model.init={source}: its {name} is another network than this configuration's: {len(wrong)} tensors are "
        f"missing, unknown or of another shape, such as {wrong[0]}. {remedy}"
    )
    raise ConfigError(msg)


def _of_run(path: str) -> dict[str, _Found]:
    """Return the networks of a checkpoint by name, of generators the averaged ones if the run kept an average."""
    if not Path(path).is_file():
        msg = f"model.init={path}: there is no such file. Pass a checkpoint, or the folder of bundles (RUN/bundles)."
        raise ConfigError(msg)
    content = read_checkpoint(path)
    hparams = content.get("hyper_parameters")
    node = hparams.get("generator") if isinstance(hparams, Mapping) else None
    states: dict[str, dict[str, Tensor]] = {}
    for key, value in content["state_dict"].items():
        name, _, rest = key.partition(".")
        if name.startswith(("g_ihc", "g_he", "d_")):
            states.setdefault(name, {})[rest] = value
    for key, value in content["state_dict"].items():
        if key.startswith("g_ema."):
            _, name, rest = key.split(".", 2)
            states[name][rest] = value
    return {name: _Found(state, node if name.startswith("g_") else None) for name, state in states.items()}


def _of_bundles(source: str) -> dict[str, _Found]:
    """Return the generators of a bundle, or of a folder of bundles, by name."""
    found = {}
    for own in bundles_in(source):
        network, info = load_bundle(own)
        named = {shown: stain for stain, shown in STAINS.items()}
        stains = [named.get(str(info.get(end))) for end in ("stain_in", "stain_out")]
        if info.get("role") != "translator" or None in stains or info.get("value_range") != _RANGE:
            msg = (
                f"model.init={own}: this is the bundle of a {info.get('role')} from {info.get('stain_in')} to "
                f"{info.get('stain_out')} with values in {info.get('value_range')}; expected a translator between IHC "
                f"and H&E in {_RANGE}, such as RUN/bundles/g_ihc2he of a CycleGAN."
            )
            raise ConfigError(msg)
        found["g_{}2{}".format(*stains)] = _Found(network.state_dict(), info["module"], info.get("mpp"))
    return found
