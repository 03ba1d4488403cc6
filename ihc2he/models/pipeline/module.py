"""The pipeline as a LightningModule: `test` compares ways to find nuclei on IHC, `predict` uses one of them.

A way, called method here, is a translator from IHC to H&E, or several fused, and a segmenter of H&E.
Shape suffixes: b = batch, c = colour, h, w = height, width.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ihc2he import __version__
from ihc2he.errors import ConfigError, DataError, did_you_mean
from ihc2he.internals.glibc import KeptMemory
from ihc2he.metrics.fidelity import Card
from ihc2he.models.handover import Handover
from ihc2he.models.pipeline.assembly import Strip, joined
from ihc2he.models.pipeline.blocks import OpenImage, Piece, alike, pieces_of
from ihc2he.models.pipeline.choice import Choice, Choose, fitting
from ihc2he.models.pipeline.evaluation import MethodComparison, summary
from ihc2he.models.pipeline.fusing import Fused
from ihc2he.models.pipeline.inference import predict, submit
from ihc2he.models.pipeline.method import Method
from ihc2he.models.pipeline.parts import built, described, digest
from ihc2he.models.pipeline.prediction import Prediction, prediction_of
from ihc2he.models.pipeline.segmenters import Segmenter
from ihc2he.models.pipeline.translators import Translator
from ihc2he.models.pipeline.types import type_map
from ihc2he.models.task import Ranking, Task
from ihc2he.stain.white import White
from ihc2he.tiling.augmentation import VIEWS
from ihc2he.tiling.windows import OVERLAP_UM, Block, divide

log = logging.getLogger(__name__)


class Pipeline(Task):
    """Translates IHC tiles to H&E, finds nuclei on them, and compares them with keypoints.

    Batches are dicts of lists with an entry per tile, which may differ in size and pixel size: `name`, `image` (HxWx3
    uint8 RGB), `mpp`; for a test `group`, `points` (x, y, class), `readers`, and where the truth is known `inst`,
    `type` and `he`; for a prediction `path` and `error`, and for a large image `block` and `open`, see
    `ihc2he.data.tiles`.

    Args:
        translators: node of each `Translator` by name; only those in use are built.
        segmenters: node of each `Segmenter` by name, likewise.
        use: which `translators` and `segmenters` to use; a test takes all pairs, a prediction exactly one.
        fuse: translators that are also used as one, named after all (`none&recolour`): each translates the tile, and
            the maps are averaged; empty: none. A prediction then uses only this one.
        class_map: from the types of segmenters to the classes of the keypoints, or to None for no class; None: types
            keep their names and keypoints are scored without regard to class.
        radius_um: largest distance of a keypoint and the nucleus that it is matched with.
        radii_um: further such distances, for the curve over them.
        ap_map: classes that average precision counts as another.
        against: methods (TRANSLATOR+SEGMENTER) that every other is compared with, besides the one without translation.
        choose: settings of decoders, by segmenter, with values of which a validation chooses those with the highest F1
            for each translator; the test that follows in the same run uses them.
        tta: average maps over the eight flips and rotations of a tile.
        block: px, larger tiles are divided into overlapping blocks.
        white: colour of empty glass, [R, G, B] up to 255, from which optical densities count; None: it is estimated in
            each image.
        workers: processes that turn maps into nuclei beside the GPU; 0: a thread of this one.
        resamples: of the bootstrap, for the intervals; 0: there are none.
        seed: of the bootstrap.

    Raises:
        ConfigError: for an unknown name, or an invalid number.
    """

    def __init__(
        self,
        translators: Mapping[str, Any],
        segmenters: Mapping[str, Any],
        use: Mapping[str, Sequence[str]],
        class_map: Mapping[str, str | None] | None = None,
        radius_um: float = 3.0,
        radii_um: Sequence[float] = (1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6),
        ap_map: Mapping[str, str] | None = None,
        against: Sequence[str] = (),
        choose: Choose | None = None,
        tta: bool = False,
        block: int = 1024,
        white: Sequence[float] | None = None,
        workers: int = 2,
        resamples: int = 2000,
        seed: int = 0,
        fuse: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if (
            not radii_um
            or min(radius_um, block, *radii_um) <= 0
            or min(workers, resamples, seed) < 0
            or resamples > 10**6
        ):
            msg = (
                f"model.radius_um={radius_um}, radii_um={list(radii_um)} (some) and block={block} have to be above 0, "
                f"workers={workers} and seed={seed} 0 or more, resamples={resamples} 0 to 10^6."
            )
            raise ConfigError(msg)
        self.translators = nn.ModuleDict(built("translators", translators, use, Translator))
        self.fused = "&".join(fuse)
        if fuse:
            parts = built("translators", translators, {"translators": fuse}, Translator, "model.fuse")
            self.translators[self.fused] = Fused(parts)
            translators = {**translators, self.fused: {name: translators[name] for name in parts}}
        self.segmenters = nn.ModuleDict(built("segmenters", segmenters, use, Segmenter))
        wanted = {
            name: own for name, own in (choose or {}).items() if name in self.segmenters or name not in segmenters
        }
        self._choice = Choice(list(self.translators), dict(self.segmenters.items()), wanted)  # type: ignore[arg-type]
        everything = {Method(t, s): own for t in self.translators for s, own in self._choice.segmenters.items()}
        self._in_use = fitting(everything, self._translators, tta)
        self.against = list(against)
        for method in against:
            if method not in self.methods:
                msg = f"model.against: '{method}' is not compared here.{did_you_mean(method, self.methods)}"
                raise ConfigError(msg)
        self.class_map = None if class_map is None else dict(class_map)
        self.radius_um, self.radii_um = radius_um, list(radii_um)
        self.ap_map = dict(ap_map or {})
        self.views = list(VIEWS) if tta else [0]
        self.block = block
        if white is not None and (len(white) != 3 or not all(0 < value <= 255 for value in white)):
            msg = f"model.white={list(white)}: expected the colour of glass as [R, G, B], each above 0 and up to 255."
            raise ConfigError(msg)
        self.white: White | None = None if white is None else (white[0], white[1], white[2])
        self.workers = workers
        self.resamples, self.seed = resamples, seed
        self._tables: dict[str, list[dict[str, Any]]] = {}
        self.evaluation: MethodComparison | None = None
        self._nodes = {
            "translators": {name: described(translators[name], own) for name, own in self.translators.items()},
            "segmenters": {name: described(segmenters[name], own) for name, own in self.segmenters.items()},
        }
        self._weights = digest(self)
        self.handover: Handover[Piece] = Handover(workers)
        self._memory = KeptMemory(steps=16)
        self._large: dict[str, OpenImage] = {}

    @property
    def pairs(self) -> list[Method]:
        """All pairs in use, translators first; in a validation also those to choose from."""
        return list(self._in_use)

    @property
    def _translators(self) -> dict[str, Translator]:
        return dict(self.translators.items())  # type: ignore[arg-type]

    @property
    def _running(self) -> dict[str, Translator]:
        """The translators of the pairs in use, by name."""
        used = dict.fromkeys(pair.translator for pair in self._in_use)
        return {name: self.translators[name] for name in used}  # type: ignore[misc]

    def _segmenters_of(self, translator: str) -> dict[str, Segmenter]:
        """Return the segmenters whose maps are needed after a translator, by name."""
        names = {self._choice.base_of(pair.segmenter) for pair in self._in_use if pair.translator == translator}
        return {name: own for name, own in self._choice.segmenters.items() if name in names}

    @property
    def methods(self) -> list[str]:
        """The names of all pairs in use, as tables and logged keys have them."""
        return [str(pair) for pair in self.pairs]

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What must be equal for the results of two runs to be comparable: settings, and a digest of the weights.

        It has no paths, so that weights may be moved.
        """
        settings = {"views": self.views, "block": self.block, "class_map": self.class_map, "white": self.white}
        return {
            "ihc2he": __version__, "methods": self.methods, **settings, **self._nodes, "weights": self._weights,
        } | ({"chosen": self._choice.rows} if self._choice.rows else {})  # fmt: skip

    def setup(self, stage: str) -> None:
        """Check that the methods fit the stage and the data, and make the networks faster.

        Raises:
            ConfigError: if they do not.
        """
        for segmenter in self.segmenters.values():
            segmenter.fold()  # type: ignore[operator]  # a ModuleDict has any module
        self.to(memory_format=torch.channels_last)
        self._in_use = fitting(self._choice.methods(stage), self._translators, len(self.views) > 1)
        if stage == "predict" and self.fused:
            self._in_use = {pair: own for pair, own in self._in_use.items() if pair.translator == self.fused}
        if stage == "predict" and len(self.methods) != 1:
            msg = (
                f"A prediction takes one translator and one segmenter, found {', '.join(self.methods)}. Pass "
                "model.use.translators=[NAME] and model.use.segmenters=[NAME]."
            )
            raise ConfigError(msg)
        classes = list(self.data.classes)
        if stage == "predict":
            for name, segmenter in self.segmenters.items():
                type_map(name, segmenter.classes, self.class_map)  # type: ignore[arg-type]
        else:
            if classes and self.class_map is None:
                log.info("model.class_map is not given: keypoints are scored without regard to their class.")
            self.evaluation = MethodComparison(
                {pair: list(segmenter.classes) for pair, segmenter in self._in_use.items()},
                {name: translator.role for name, translator in self.translators.items()},  # type: ignore[misc]
                classes,
                self.class_map,
                list(self.data.truth_classes),
                self.radius_um,
                self.radii_um,
                self.ap_map,
                self.resamples,
                self.seed,
                self.against,
            )

    # ------------------------------------------------------------------ stages

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Return the scores of the tiles that are ready, as `rows` and `scored`; at the end those of all."""
        return self._evaluate(batch, last=batch_idx + 1 == self.trainer.num_test_batches[0])

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Like a test, on the tiles for choosing settings."""
        return self._evaluate(batch, last=batch_idx + 1 == self.trainer.num_val_batches[0])

    def _evaluate(self, batch: dict[str, Any], last: bool) -> dict[str, Any]:
        assert self.evaluation is not None
        scored = []
        pieces = [piece for tile in _tiles(batch) for piece in pieces_of(self._opened(tile))]
        for piece in self._found(pieces, batch, last):
            image = piece.image
            image.strips += [image.add(piece)]
            if piece.is_last:
                results = {method: joined([one[method] for one in image.strips if one]) for method in self.methods}
                scored.append(self.evaluation.update(image.tile, results, image.source.white))
        return {"rows": [row for tile in scored for row in self.evaluation.rows(tile)], "scored": scored}

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[Prediction]:
        """Return the predictions that are ready, at the end all; for files that could not be read, the error.

        A large image comes block by block, its number under `block`, and its predictions are strips of it.
        """
        last = batch_idx + 1 == self.trainer.num_predict_batches[0]
        pieces: list[Piece] = []
        failed: list[Prediction] = []
        for tile in _tiles(batch):
            if tile.get("block") and tile["name"] not in self._large:
                continue  # of an image that failed before
            error = tile["error"]
            if error is None:
                try:
                    pieces += self._pieces(tile)
                except DataError as problem:
                    error = str(problem)
            if error is not None:
                failed.append(self._failure(tile, error))
        (pair,) = self.pairs
        blend = self.translators[pair.translator].role != "none"
        return failed + [
            self._prediction(piece.image, strip)
            for piece in self._found(pieces, batch, last)
            if not piece.image.failed
            for strip in piece.image.add(piece, blend).values()
        ]

    def _pieces(self, tile: Mapping[str, Any]) -> list[Piece]:
        """Return the blocks in an entry of a batch: all of a small image, or one of a large image."""
        number = tile.get("block")
        if number is None:
            return pieces_of(self._opened(tile))
        if number == 0:
            self._large[tile["name"]] = self._opened(tile)
        pieces = pieces_of(self._large[tile["name"]], number, tile["image"])
        if pieces[0].is_last:
            del self._large[tile["name"]]
        return pieces

    def _opened(self, tile: Mapping[str, Any]) -> OpenImage:
        segmenters = {name: self._segmenters_of(name) for name in self._running}
        return OpenImage(tile, self.divide, self._running, self.white, segmenters)

    def _failure(self, tile: Mapping[str, Any], error: str) -> Prediction:
        """Return the error of an image, of which nothing more is to be predicted."""
        opened = self._large.pop(tile["name"], None)
        if opened is not None:
            opened.failed = True
        return Prediction(tile["name"], tile["path"], error, None, None, None, 0.0, [])

    def _prediction(self, image: OpenImage, strip: Strip) -> Prediction:
        (pair,) = self.pairs
        classes: Sequence[str] = self.segmenters[pair.segmenter].classes  # type: ignore[assignment]
        types = type_map(pair.segmenter, classes, self.class_map)
        return prediction_of(image, strip, types)

    def divide(self, height: int, width: int, mpp: float) -> list[Block]:
        """Return the blocks of an image, which overlap by more than a nucleus, and by what local translators see."""
        overlap, step = round(OVERLAP_UM / mpp), 1
        translators: list[Any] = [own for own in self.translators.values() if own.mpp in (None, mpp)]
        for translator in translators:
            overlap = max(overlap, 2 * (translator.reach or 0))
            step = math.lcm(step, translator.stride)
        return divide(height, width, max(self.block, 2 * (overlap + step - 1)), overlap, step)

    def _found(self, pieces: Sequence[Piece], batch: Mapping[str, Any], last: bool) -> Iterator[Piece]:
        """Hand the maps of blocks to the workers; yield blocks that are ready, in their order, or all at the end."""
        groups = list(alike(pieces, len(batch["name"])))
        for i, group in enumerate(groups):
            self._submit(group)
            for piece in group:
                self.handover.add(piece, piece.jobs())
            if i + 1 < len(groups):
                yield from self.handover.ready()
        yield from self.handover.ready(last)

    def _submit(self, pieces: Sequence[Piece]) -> None:
        """Give blocks of the same size the promises of their nuclei."""
        if self.device.type == "cpu":  # not before: readers are copies of this process, with all that it keeps
            self._memory.step()
        inks = [piece.image.ink.region(piece.block.rows, piece.block.columns) for piece in pieces]
        for name, translator in self._running.items():
            self.handover.wait()
            x_bchw = self._images([piece.input_of(name) for piece in pieces])
            states = [piece.image.states[name] for piece in pieces]
            whites = [piece.image.whites[name] for piece in pieces]
            segmenters = self._segmenters_of(name)
            each = [piece.prepared_of(name, segmenters) for piece in pieces]
            prepared = {own: [one[own] for one in each] for own in segmenters}
            maps = predict(translator, segmenters, x_bchw, pieces[0].image.mpp, self.views, states, prepared)
            for pair in (pair for pair in self._in_use if pair.translator == name):
                found = maps[self._choice.base_of(pair.segmenter)]
                parts = submit(self.handover, self._in_use[pair], found, whites, inks)
                for piece, part in zip(pieces, parts, strict=True):
                    piece.parts[str(pair)] = part

    def _images(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        x_bhwc = torch.from_numpy(np.stack(images)).to(self.device)
        return x_bhwc.permute(0, 3, 1, 2).float() / 255

    # ------------------------------------------------------------------ end of an epoch

    def on_validation_epoch_end(self) -> None:
        """Log the metrics on the tiles of the validation."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics, and keep their tables."""
        self._log_evaluation("test")

    def on_predict_epoch_end(self) -> None:
        """Let the translators report what they could not do."""
        self._finish()

    def _finish(self) -> None:
        for translator in self.translators.values():
            translator.finish()  # type: ignore[operator]

    def _log_evaluation(self, stage: str) -> None:
        self._finish()
        assert self.evaluation is not None
        values, self._tables = self.evaluation.compute_and_reset()
        if stage == "val" and values:
            self._choice.choose(values)
        if rows := self._choice.rows:
            self._tables["chosen.csv"] = rows
        self.log_dict({f"{stage}/{key}": value for key, value in values.items()}, rank_zero_only=True)
        if self.trainer.is_global_zero:
            table = summary(self._tables.get("comparison.csv", []))
            log.info("Keypoints within %g um, in brackets 95 %% intervals over tiles:\n%s", self.radius_um, table)

    def teardown(self, stage: str) -> None:
        """End the worker processes."""
        self.handover.close()

    @property
    def tables(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """The tables of the last test by file name."""
        return self._tables

    @property
    def ranking(self) -> Ranking:
        """Tiles are ranked by the F1 of the last method."""
        return Ranking("f1", "higher", group=self.methods[-1])

    @property
    def cards(self) -> Mapping[str, Card]:
        """The name cards of the logged metrics."""
        return {} if self.evaluation is None else self.evaluation.cards


def _tiles(batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the entries of a batch of lists."""
    return [dict(zip(batch, entry, strict=True)) for entry in zip(*batch.values(), strict=True)]
