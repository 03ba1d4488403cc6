"""How good made tiles are: distributions, manifolds, likeness to real tiles, copies; over all and by level.

Shape suffixes: n = made or real tiles of an evaluation, c = colour, h, w = height, width, d = features.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ihc2he.build import build
from ihc2he.metrics import distribution, fidelity, manifold, nearest
from ihc2he.metrics.cards import Card
from ihc2he.ranks import from_all_ranks

log = logging.getLogger(__name__)

COLLAPSED = 0.1  # coverage below which a level is said to have collapsed, or recall of made tiles that look real
LOOKS_REAL = 0.5  # precision
_SETS = distribution.CARDS | manifold.CARDS


@dataclass
class _Pairs:
    """Real tiles, each with a made tile of its level; made and real uint8."""

    names: list[str]
    label_n: Tensor
    real_nchw: Tensor
    fake_nchw: Tensor
    real_nd: Tensor
    fake_nd: Tensor

    def take(self, index: Tensor) -> _Pairs:
        names = [self.names[i] for i in index.tolist()]
        return _Pairs(names, *(getattr(self, name)[index] for name in _TENSORS))


_TENSORS = ("label_n", "real_nchw", "fake_nchw", "real_nd", "fake_nd")


class GenerationEvaluation:
    """Compares made tiles with as many real tiles of the same levels, which were not trained on.

    Sets of tiles are compared in the features of a network: FID, KID, precision, recall, density, coverage. Each made
    tile is compared with the nearest real tile of its level by the metrics of `ihc2he.metrics.fidelity`. If the
    training tiles are known, it is also measured whether they were copied.

    It is no `nn.Module`, so nothing of it enters a checkpoint.

    Args:
        metrics: names of fidelity metrics.
        features: `inception`, a node of an `nn.Module`, or None to compare no sets.

    Attributes:
        rows: of the last evaluation, one for each made tile.

    Raises:
        ConfigError: for an unknown metric, or a network that is none.
    """

    def __init__(self, metrics: Sequence[str], features: str | Mapping[str, Any] | None) -> None:
        self.metrics = fidelity.check_names(metrics)
        self._features = features
        self._network: nn.Module | None = None
        self._pairs: list[_Pairs] = []
        self._known: Tensor | None = None  # thumbnails of the training tiles
        self.known_names: list[str] = []
        self.rows: list[dict[str, Any]] = []

    @property
    def cards(self) -> dict[str, Card]:
        """The name cards by logged key, `kid` or `nearest/psnr` for instance."""
        near = {f"nearest/{name}": fidelity.CARDS[name] for name in self.metrics}
        return (_SETS if self._features is not None else {}) | near | nearest.CARDS

    @property
    def knows_training(self) -> bool:
        """Whether the training tiles are known."""
        return self._known is not None

    def know(self, batches: Iterable[Mapping[str, Any]]) -> None:
        """Take the training tiles, each once and unchanged. Collective: every rank gives its own.

        Args:
            batches: `image`, (N, 3, H, W) in [-1, 1], and `name`.
        """
        own = [(batch["name"], nearest.thumbnails(_unit(batch["image"])).cpu()) for batch in batches]
        parts = [part for parts in from_all_ranks(own) for part in parts]
        self.known_names = [name for names, _ in parts for name in names]
        self._known = torch.cat([thumbnails for _, thumbnails in parts])

    def update(self, batch: Mapping[str, Any], fake_nchw: Tensor) -> None:
        """Add real tiles, and a made tile of the same level for each.

        Args:
            batch: `image`, (N, 3, H, W) in [-1, 1], `label` and `name`.
            fake_nchw: likewise.
        """
        real, fake = _unit(batch["image"]), _unit(fake_nchw)
        features = [self._features_of(x) for x in (real, fake)]
        pixels = [(x * 255).round().byte().cpu() for x in (real, fake)]
        self._pairs.append(_Pairs(list(batch["name"]), batch["label"].cpu(), *pixels, *features))

    def _features_of(self, x_nchw: Tensor) -> Tensor:
        """Return features, or none where no sets are compared; the network is built at the first call."""
        if self._features is None:
            return torch.empty(len(x_nchw), 0)
        if self._network is None:
            node = self._features
            self._network = distribution.feature_network(
                build(node, nn.Module) if isinstance(node, Mapping) else node  # type: ignore[arg-type]
            )
        with torch.no_grad(), fidelity.full_float32(x_nchw.device):
            return self._network.to(x_nchw.device)(x_nchw).float().cpu()

    def compute_and_reset(self, levels: Sequence[str]) -> dict[str, float]:
        """Return the values over all tiles and over each level; then start afresh. `rows` has those of each tile.

        Collective: every rank has to call it. The values do not depend on the number of ranks or on batches.

        Args:
            levels: their names.
        """
        pairs, self._pairs = _joined([part for parts in from_all_ranks(self._pairs) for part in parts]), []
        values: dict[str, float] = {}
        for level, own in [("", pairs), *((name, _of(pairs, i)) for i, name in enumerate(levels))]:
            ending = f"/{level}" if level else ""
            values |= {f"{name}{ending}": value for name, value in self._compare_sets(own).items()}
        self.rows = [row for i, name in enumerate(levels) for row in self._compare_tiles(_of(pairs, i), pairs, name)]
        for level in ("", *levels):
            rows = [row for row in self.rows if level in ("", row["group"])]
            values |= {f"{name}/{level}" if level else name: value for name, value in _means(rows).items()}
        return values

    def _compare_sets(self, pairs: _Pairs) -> dict[str, float]:
        if self._features is None:
            return {}
        found = manifold.manifold(pairs.real_nd, pairs.fake_nd)
        enough = len(pairs.names) >= 2
        found["fid"] = distribution.frechet_distance(pairs.real_nd, pairs.fake_nd) if enough else _NAN
        found["kid"] = distribution.kernel_distance(pairs.real_nd, pairs.fake_nd)[0] if enough else _NAN
        return {name: value.item() for name, value in found.items()}

    def _compare_tiles(self, own: _Pairs, pairs: _Pairs, level: str) -> list[dict[str, Any]]:
        """Return a row for each made tile of a level.

        Args:
            own: of the level; the nearest tile that the metrics compare with is one of it.
            pairs: of all levels, among which the nearest unseen tile is searched.
            level: its name.
        """
        if not own.names:
            return []
        fakes, reals, all_reals = (x.float() / 255 for x in (own.fake_nchw, own.real_nchw, pairs.real_nchw))
        thumbs = nearest.thumbnails(fakes)
        near = nearest.nearest(thumbs, nearest.thumbnails(reals))
        found = [nearest.turned(reals[i], turn) for i, turn in zip(near.index_n, near.turn_n.tolist(), strict=True)]
        scores = fidelity.fidelity(fakes, torch.stack(found), self.metrics)
        columns: dict[str, Any] = {f"nearest/{name}": value.tolist() for name, value in scores.items()}
        columns["nearest"] = [own.names[i] for i in near.index_n.tolist()]
        if self._known is not None:
            trained = nearest.nearest(thumbs, self._known)
            unseen = nearest.nearest(thumbs, nearest.thumbnails(all_reals))
            ratio_n = trained.distance_n / unseen.distance_n.clamp(min=1e-6)
            columns["train_ratio"] = ratio_n.tolist()
            columns["nearest_trained"] = [self.known_names[i] for i in trained.index_n.tolist()]
        return [
            {"name": name, "group": level} | {key: column[i] for key, column in columns.items()}
            for i, name in enumerate(own.names)
        ]


_NAN = torch.tensor(torch.nan)


def copies(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the rows of made tiles that are copies of training tiles, the nearest first."""
    found = [row for row in rows if row.get("train_ratio", torch.inf) < nearest.COPY]
    return sorted(found, key=lambda row: row["train_ratio"])


def collapsed(values: Mapping[str, float], levels: Sequence[str]) -> list[str]:
    """Return the levels whose made tiles cover hardly any of the real ones, or look real and all alike.

    With few real tiles the coverage cannot be low, since each ball reaches far; the recall can.

    Args:
        values: as `compute_and_reset` returns them.
        levels: their names.

    >>> collapsed({"coverage/0": 0.05, "coverage/3+": 0.6}, ["0", "3+"])
    ['0']
    >>> collapsed({"coverage/0": 0.8, "precision/0": 0.9, "recall/0": 0.0}, ["0"])
    ['0']
    """

    def has(level: str) -> bool:
        coverage, recall = (values.get(f"{name}/{level}", 1.0) for name in ("coverage", "recall"))
        alike = values.get(f"precision/{level}", 0.0) >= LOOKS_REAL and recall < COLLAPSED
        return coverage < COLLAPSED or alike

    return [level for level in levels if has(level)]


def shares(values: Mapping[str, float], level: str) -> str:
    """Return in words how much of a level is covered, and how much of it looks real."""
    return ", ".join(f"{name} {values[f'{name}/{level}']:.2f}" for name in ("coverage", "recall", "precision"))


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the means of the columns of numbers; of the distance ratio the median, and the share of copies."""
    names = {name for row in rows[:1] for name, value in row.items() if isinstance(value, float)} - {"train_ratio"}
    found = {name: torch.tensor([row[name] for row in rows]).nanmean().item() for name in sorted(names)}
    if rows and "train_ratio" in rows[0]:
        found["train_ratio"] = torch.tensor([row["train_ratio"] for row in rows]).median().item()
        found["memorised"] = len(copies(rows)) / len(rows)
    return found


def _joined(parts: Sequence[_Pairs]) -> _Pairs:
    """Return all pairs, by name."""
    names = [name for part in parts for name in part.names]
    pairs = _Pairs(names, *(torch.cat([getattr(part, name) for part in parts]) for name in _TENSORS))
    return pairs.take(torch.tensor(sorted(range(len(names)), key=names.__getitem__)))


def _of(pairs: _Pairs, label: int) -> _Pairs:
    return pairs.take((pairs.label_n == label).nonzero().flatten())


def _unit(x_nchw: Tensor) -> Tensor:
    return ((x_nchw.float() + 1) / 2).clamp(0, 1)
