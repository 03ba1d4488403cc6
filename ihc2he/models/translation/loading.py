"""Trained generators: from a bundle, or from the checkpoint of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from ihc2he.build import build, refuse_foreign
from ihc2he.errors import ConfigError, DataError
from ihc2he.models.bundle import load_bundle
from ihc2he.models.checkpoint import read_checkpoint


class Generator(NamedTuple):
    """A trained generator.

    Attributes:
        network: in evaluation mode.
        mpp: um/px that it was trained at; None if it is not known.
        value_range: of its images.
    """

    network: nn.Module
    mpp: float | None
    value_range: tuple[float, float]


def load_generator(source: str, stain_in: str, stain_out: str) -> Generator:
    """Return a trained generator.

    Args:
        source: a model bundle (folder or hub id), or a checkpoint of a run (`.ckpt`), whose generator makes H&E.
        stain_in: what it reads, as bundles say it.
        stain_out: what it makes.

    Raises:
        ConfigError: if it is of another kind or direction, or cannot be built from a checkpoint.
        DataError: if it cannot be read.
    """
    return _of_run(source) if source.endswith(".ckpt") else _of_bundle(source, stain_in, stain_out)


def common_mpp(found: Mapping[str, float | None], said: float | None, key: str) -> float:
    """Return the pixel size of all weights.

    Args:
        found: pixel size in each of them, by source.
        said: pixel size in the configuration, for those without one.
        key: of the translator in the configuration.

    Raises:
        ConfigError: if one is not known, or two differ.

    >>> common_mpp({"a/bundles/g_ihc2he": 0.46, "b.ckpt": None}, 0.46, "model.translators.cyclegan")
    0.46
    """
    known = {source: mpp or said for source, mpp in found.items()}
    known |= {f"{key}.mpp": said} if said else {}
    for source, mpp in known.items():
        if mpp is None:
            msg = (
                f"{source}: does not say the pixel size it was trained at. Pass it in um/px, such as "
                f"{key}.mpp=0.46, or the bundle of its run: RUN/bundles/g_ihc2he."
            )
            raise ConfigError(msg)
    (first, mpp), *others = known.items()
    for source, other in others:
        if other != mpp:
            msg = f"{key}: {first} has {mpp} um/px and {source} {other}; they must be equal."
            raise ConfigError(msg)
    return float(mpp)  # type: ignore[arg-type]


def _of_bundle(source: str, stain_in: str, stain_out: str) -> Generator:
    network, info = load_bundle(source)
    found = tuple(info.get(key) for key in ("role", "stain_in", "stain_out"))
    if found != ("translator", stain_in, stain_out):
        usual = "g_ihc2he" if stain_in == "IHC" else "g_he2ihc"
        msg = (
            f"{source}: this is the bundle of a {found[0]} from {found[1]} to {found[2]}; expected a translator from "
            f"{stain_in} to {stain_out}, such as RUN/bundles/{usual} of a CycleGAN or of CUT."
        )
        raise ConfigError(msg)
    try:
        low, high = info["value_range"]
    except (KeyError, TypeError, ValueError) as error:
        msg = f"{source}: config.json has no value_range, such as [-1, 1]: the range of the network's images."
        raise DataError(msg) from error
    return Generator(network, info.get("mpp"), (low, high))


def _of_run(path: str) -> Generator:
    """Return the generator of a checkpoint of CycleGAN, CUT or pix2pix, the averaged one if the run kept an average."""
    content = read_checkpoint(path)
    hparams, state = content.get("hyper_parameters"), content["state_dict"]
    node = hparams.get("generator") if isinstance(hparams, Mapping) else None
    prefix = next((p for p in ("g_ema.g_ihc2he.", "g_ihc2he.") if any(key.startswith(p) for key in state)), None)
    if not isinstance(node, Mapping) or prefix is None:
        msg = f"{path}: holds no generator that can be built from it. Pass the bundle of its run: RUN/bundles/g_ihc2he."
        raise ConfigError(msg)
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    try:
        refuse_foreign(node)
        network: Any = build(node, nn.Module)
        network.load_state_dict(own)
    except (ConfigError, RuntimeError) as error:
        msg = f"{path}: its generator cannot be built ({' '.join(str(error).split())[:200]}). Pass the run's bundle."
        raise DataError(msg) from error
    return Generator(network.eval(), None, (-1.0, 1.0))
