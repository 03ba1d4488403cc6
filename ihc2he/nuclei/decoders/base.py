"""The interface of a decoder. One object is used by the dataset, training, test and pipeline.

A decoder is built from plain values, so that it can be named in a configuration and in a bundle, and it can be pickled,
so that worker processes can use it. Importing one must not import torch, which would take seconds in such processes.
Shape suffixes: b = batch, k = maps, h, w = height, width; n = nuclei; 2 = (x, y).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ihc2he.errors import require_setting
from ihc2he.nuclei.instances import instance_types, means
from ihc2he.tiling.resampling import moved_points, resized_labels

if TYPE_CHECKING:
    from torch import Tensor


class Nuclei(NamedTuple):
    """The nuclei of a tile.

    Attributes:
        inst_hw: int32 instance map with ids 1..N, 0 = background.
        types_n: type of each, 0 if it is not known.
        shares_n: share of its pixels that are of this type.
    """

    inst_hw: NDArray[np.int32]
    types_n: NDArray[np.int64]
    shares_n: NDArray[np.float32]


class Found(NamedTuple):
    """Nuclei as a decoder finds them.

    Attributes:
        nuclei: with ids from 1 to N; on a coarser grid some may have no pixel left.
        centres_n2: (x, y) in px.
        scores_n: how sure the network is of each, in [0, 1].
    """

    nuclei: Nuclei
    centres_n2: NDArray[np.float64]
    scores_n: NDArray[np.float32]


class Decoder(ABC):
    """Between instance maps and the maps of a network.

    The maps of a network are a dict of raw tensors by name, (N, C, H, W) each: what the loss sees. `join` makes one
    tensor of K maps from them, which may all be averaged over windows, views and networks.
    """

    def __eq__(self, other: object) -> bool:
        """Return whether another decoder does the same."""
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(type(self))

    @abstractmethod
    def channels(self, n_types: int) -> dict[str, int]:
        """Return the raw maps that a network must give, with their number of channels.

        Args:
            n_types: types of nuclei, without background; 0: nuclei have no types.
        """

    @abstractmethod
    def targets(self, inst_hw: NDArray[np.int32], mpp: float) -> dict[str, NDArray[np.float32]]:
        """Return what a network should learn of a crop, besides the instance map and the types themselves.

        Args:
            inst_hw: instance map, 0 = background; every connected piece has an id of its own.
            mpp: um/px.
        """

    @abstractmethod
    def join(self, raw: Mapping[str, Tensor]) -> Tensor:
        """Return raw maps as one tensor of probabilities and the like, (N, K, H, W) float32."""

    @abstractmethod
    def turned_back(self, maps_bkhw: Tensor, view: int) -> Tensor:
        """Return the joined maps of images in another view, turned back to the original images.

        Args:
            maps_bkhw: as `join` gives them.
            view: of `ihc2he.tiling.augmentation.VIEWS`.
        """

    @abstractmethod
    def votes(self, maps_bkhw: Tensor) -> Tensor | None:
        """Return which pixels the maps call nucleus, (N, H, W) of 0 and 1; None if the maps alone do not show it."""

    def reduced(self, maps_bkhw: Tensor) -> Tensor:
        """Return the part of joined maps that `find` needs and that is sent to another process."""
        return maps_bkhw

    @abstractmethod
    def find(self, maps_khw: NDArray[np.float32], mpp: float) -> Found:
        """Return the nuclei on the maps of one tile.

        Args:
            maps_khw: joined and reduced.
            mpp: um/px.
        """


def require_share(name: str, value: float) -> None:
    """Raise a ConfigError unless a setting of a decoder is between 0 and 1."""
    require_setting("decoder", name, value, 0 < value < 1, "above 0 and below 1")


def likeliest(maps_bkhw: Tensor, first: int) -> Tensor:
    """Return maps with the most likely type instead of the probabilities of all.

    Args:
        maps_bkhw: joined maps.
        first: number of the background's map, which is followed by those of the types; if there is none, there are no
            types.
    """
    import torch

    if maps_bkhw.shape[1] <= first:
        return maps_bkhw
    # On the CPU `max` takes a fifth of the time of `argmax`.
    return torch.cat([maps_bkhw[:, :first], maps_bkhw[:, first:].max(1, keepdim=True).indices.float()], 1)


def typed(inst_hw: NDArray[np.int32], maps_khw: NDArray[np.float32], first: int) -> Nuclei:
    """Return nuclei with their types, which are 0 without a map of types.

    Args:
        inst_hw: instance map with ids 1..N.
        maps_khw: as `likeliest` gives them.
        first: number of the map of types.
    """
    types_hw = maps_khw[first].astype(np.uint8) if len(maps_khw) > first else np.zeros(inst_hw.shape, np.uint8)
    return Nuclei(inst_hw, *instance_types(inst_hw, types_hw))


def find_and_vote(
    find: Callable[[NDArray[np.float32], float], Found],
    maps_khw: NDArray[np.float32],
    votes_hw: NDArray[np.float32] | None,
    mpp: float,
    size: tuple[int, int],
) -> tuple[Found, NDArray[np.float32] | None]:
    """Return the nuclei on maps, on the grid of the tile, and the mean of any votes over each nucleus.

    This is the one way from maps to nuclei, in training and in the pipeline, and what worker processes do.

    Args:
        find: of a decoder.
        maps_khw: its input.
        votes_hw: share of ensemble members and views that call a pixel nucleus.
        mpp: pixel size of the maps, um/px.
        size: height and width of the tile, px.
    """
    nuclei, centres_n2, scores_n = find(maps_khw, mpp)
    agreement_n = None if votes_hw is None else means(votes_hw, nuclei.inst_hw)
    centres_n2 = moved_points(centres_n2, nuclei.inst_hw.shape, size)
    inst_hw = resized_labels(nuclei.inst_hw, *size).astype(np.int32, copy=False)
    return Found(nuclei._replace(inst_hw=inst_hw), centres_n2, scores_n), agreement_n
