"""Trained segmenters: from a bundle, from the checkpoint of a run, or from published weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ihc2he.build import build, refuse_foreign
from ihc2he.config import signature
from ihc2he.errors import ConfigError, DataError, did_you_mean
from ihc2he.models.bundle import load_bundle
from ihc2he.models.checkpoint import read_checkpoint
from ihc2he.models.former import hover_node
from ihc2he.models.segmentation.hovernet.networks import HoverNet
from ihc2he.models.segmentation.hovernet.weights import load_reference
from ihc2he.models.segmentation.networks import MapNetwork
from ihc2he.nuclei.decoders.base import Decoder

PANNUKE = ["neoplastic", "inflammatory", "connective", "dead", "epithelial"]  # types of the published checkpoints


class Loaded(NamedTuple):
    """A trained segmenter.

    Attributes:
        network: in evaluation mode.
        mpp: um/px that it was trained at; None if it is not known.
        classes: names of the types from 1.
        decoder: of its maps.
        node: that builds this decoder.
        module: node that builds the network.
    """

    network: MapNetwork
    mpp: float | None
    classes: list[str]
    decoder: Decoder
    node: dict[str, Any]
    module: Mapping[str, Any]


def load_segmenter(source: str, settings: Mapping[str, Any] | None = None) -> Loaded:
    """Return a trained segmenter.

    Args:
        source: a model bundle (folder, hub id or `builtin`), a checkpoint of a run (`.ckpt`), or the authors' of
            HoVer-Net for PanNuke (`.tar`).
        settings: of its decoder, which replace those that it was saved with.

    Raises:
        ConfigError: if it is of another kind, or its decoder has no such settings.
        DataError: if it cannot be read, or its parts do not fit together.
    """
    if source.endswith((".tar", ".pth")):
        network, info = _published(source)
    else:
        network, info = _of_run(source) if source.endswith(".ckpt") else _of_bundle(source)
    if not isinstance(info.get("classes"), list):
        msg = f"{source}: config.json has no list of classes, the names of the types; [] where there are none."
        raise DataError(msg)
    try:
        decoder = build(info.get("decoder"), Decoder)  # type: ignore[arg-type,type-abstract]
    except ConfigError as error:
        msg = f"{source}: its decoder cannot be built ({error})."
        raise DataError(msg) from error
    decoder, node = changed_decoder(source, decoder, info["decoder"], settings or {})
    classes = info["classes"]
    wanted = decoder.channels(len(classes))
    if dict(network.channels) != wanted:
        msg = (
            f"{source}: {len(classes)} classes {classes} and its {type(decoder).__name__} need the maps {wanted}, but "
            f"the network gives {dict(network.channels)}."
        )
        raise DataError(msg)
    return Loaded(network.eval(), info.get("mpp"), classes, decoder, node, info["module"])


def load_member(
    source: str, network: MapNetwork, decoder: Decoder, classes: list[str], mpp: float | None
) -> MapNetwork:
    """Return the network of another segmenter, whose maps can be averaged with those of a model.

    Args:
        source: see `load_segmenter`.
        network: of the model.
        decoder: of the model.
        classes: of the model.
        mpp: of the model.

    Raises:
        ConfigError: if the other one has another network, mode, decoder, pixel size or other classes.
    """
    loaded = load_segmenter(source)
    own, other = {"classes": classes, "mpp": mpp}, {"classes": loaded.classes, "mpp": loaded.mpp}
    differing = [key for key, value in own.items() if other[key] != value]
    found = (type(loaded.network), loaded.network.margin, loaded.decoder)
    if differing or found != (type(network), network.margin, decoder):
        what = {key: other[key] for key in differing} or "another mode or decoder"
        msg = (
            f"model.ensemble: {source} cannot be averaged with this model: expected a {type(network).__name__} of the "
            f"same mode and decoder with {own}, found a {type(loaded.network).__name__} with {what}."
        )
        raise ConfigError(msg)
    return loaded.network


def changed_decoder(
    source: str, decoder: Decoder, node: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[Decoder, dict[str, Any]]:
    """Return a decoder with other settings, and the node that builds it.

    Args:
        source: of the decoder, for messages.
        decoder: with its own settings.
        node: that builds it.
        settings: that replace its own.

    Raises:
        ConfigError: if it has no such settings.
    """
    if not settings:
        return decoder, dict(node)
    known = [name for name in signature(type(decoder)).parameters if name != "self"]
    for name in settings:
        if name not in known:
            kind = type(decoder).__name__
            msg = f"decoder.{name}: the {kind} of {source} has no such setting.{did_you_mean(name, known)}"
            raise ConfigError(msg)
    changed = {**node, **settings}
    return build(changed, Decoder), changed  # type: ignore[type-abstract]


def _of_bundle(source: str) -> tuple[MapNetwork, Mapping[str, Any]]:
    network, info = load_bundle(source)
    if not isinstance(network, MapNetwork):
        msg = f"{source}: expected the bundle of a segmenter, found '{info.get('role')}' ({type(network).__name__})."
        raise ConfigError(msg)
    return network, info


def _of_run(path: str) -> tuple[MapNetwork, Mapping[str, Any]]:
    content = read_checkpoint(path)
    info = content.get("segmenter") or _former_run(content.get("hyper_parameters"))
    if not isinstance(info, Mapping) or not isinstance(info.get("module"), Mapping):
        msg = f"{path}: holds no description of a segmenter. Pass the bundle of a segmenter: RUN/bundles/segmenter."
        raise ConfigError(msg)
    own = "network."  # and not that of a teacher
    state = {key.removeprefix(own): value for key, value in content["state_dict"].items() if key.startswith(own)}
    try:
        refuse_foreign(info)
        network = build(info["module"], MapNetwork)
        network.load_state_dict(state)
    except (ConfigError, TypeError, RuntimeError) as error:
        cause = " ".join(str(error).split())[:200]
        msg = f"{path}: its network cannot be built ({cause}). Pass the run's bundle."
        raise DataError(msg) from error
    return network, info


def _former_run(hparams: Any) -> dict[str, Any] | None:
    """Return the description of the HoVer-Net of a run of version 0.1, from the arguments of its module."""
    if not isinstance(hparams, Mapping) or "encoder" not in hparams:
        return None
    classes = list(hparams.get("classes") or ())
    return {
        "module": {
            "_target_": "ihc2he.models.segmentation.hovernet.networks.HoverNet",
            "encoder": hparams["encoder"],
            "n_types": len(classes),
            **{key: hparams[key] for key in ("mode", "width") if key in hparams},
        },
        "decoder": hover_node(hparams.get("keep_unmarked", True)),
        "classes": classes,
    }


def _published(path: str) -> tuple[MapNetwork, Mapping[str, Any]]:
    """Return the network of the official checkpoint for PanNuke, in the form that keeps the size."""
    encoder: Mapping[str, Any] = {"_target_": "ihc2he.models.segmentation.encoders.PreactResNet"}
    network = HoverNet(encoder, len(PANNUKE))
    load_reference(network, path)
    node = {"_target_": "ihc2he.models.segmentation.hovernet.networks.HoverNet", "encoder": encoder}
    return network, {"mpp": 0.25, "classes": PANNUKE, "decoder": hover_node(True), "module": node}
