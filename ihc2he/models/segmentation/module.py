"""The common part of all segmenters of nuclei: windows, views, ensembles, evaluation and exports.

Shape suffixes: b = batch, c = colour, k = maps, as the decoder joins them, h, w = height, width.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from ihc2he.build import build
from ihc2he.config import signature
from ihc2he.datainfo import check_class_names
from ihc2he.errors import ConfigError
from ihc2he.metrics.fidelity import Card
from ihc2he.models.batchnorm import check_sync_batchnorm
from ihc2he.models.handover import Handover, Job
from ihc2he.models.segmentation.evaluation import SegmentationEvaluation, Truth, paper_row, pictures, truths
from ihc2he.models.segmentation.loading import load_member
from ihc2he.models.segmentation.networks import MapNetwork, centre_crop
from ihc2he.models.segmentation.painting import NetworkPainter
from ihc2he.models.segmentation.schedule import check_cycles, parameter_groups, scheduled
from ihc2he.models.segmentation.starting import start_from
from ihc2he.models.task import Export, Scores, Task, required_mpp
from ihc2he.nuclei.decoders.base import Decoder, Nuclei, find_and_vote
from ihc2he.tiling.augmentation import mean, predict_views
from ihc2he.tiling.windows import predict_tiled

log = logging.getLogger(__name__)


class NucleiSegmenter(Task):
    """Finds and classifies nuclei; a subclass defines the loss.

    Batches are dicts. Training: `image` (N, 3, H, W) in [0, 1], `inst` (N, H, W) with 0 = background, with classes
    `type` (N, H, W) with 0 = background, and the targets of the decoder. Evaluation: whole tiles without targets, and
    `name` and `group` (the tissue) are lists. The pixel size is the DataModule's.

    Args:
        network: node or module of a `MapNetwork`. A node gets the argument `channels`: the maps that the decoder needs.
        decoder: node or object of a `Decoder`; give the DataModule the same one.
        optimizer: node of a `torch.optim.Optimizer` without its parameters.
        scheduler: node of a learning-rate scheduler without its optimiser, stepped each epoch; None: constant. A
            `torch.optim.lr_scheduler.OneCycleLR` is stepped each batch and reaches the learning rates at its peak.
        classes: names of the types, in the order of the DataModule; None or empty: nuclei have no types.
        lr_encoder: learning rate of the network's backbone; None: the optimiser's.
        window: px, the largest sides that are predicted at once; larger tiles are covered by overlapping windows.
        overlap: px, least overlap of windows, in which their maps are blended.
        tta: average the maps over the eight flips and rotations by multiples of 90 degrees in the test.
        ensemble: bundles (folders or hub ids) of further segmenters, whose maps are averaged with this one's when
            testing.
        workers: processes that turn maps into nuclei beside the GPU; 0: a thread of this one.
        channels_last: memory format of the network.
        compile: compile the network in place.
        init: trained weights to start from: a bundle (folder, hub id or `builtin`), a checkpoint of a run, or the
            authors' of HoVer-Net for PanNuke; None: random ones, with the encoder's own `weights`.
        paint: node or object of a `NetworkPainter`, which paints a share of the training crops as IHC; None: none.

    Raises:
        ConfigError: for a network that does not give the decoder's maps, class names that tables cannot tell apart, or
            an overlap that does not fit the window.
    """

    def __init__(
        self,
        network: Mapping[str, Any] | MapNetwork,
        decoder: Mapping[str, Any] | Decoder,
        optimizer: Mapping[str, Any],
        *,
        scheduler: Mapping[str, Any] | None = None,
        classes: Sequence[str] | None = None,
        lr_encoder: float | None = None,
        window: int = 256,
        overlap: int = 64,
        tta: bool = False,
        ensemble: Sequence[str] = (),
        workers: int = 2,
        channels_last: bool = True,
        compile: bool = False,  # noqa: A002
        init: str | None = None,
        paint: Mapping[str, Any] | NetworkPainter | None = None,
    ) -> None:
        super().__init__()
        own = signature(type(self)).parameters
        self.save_hyperparameters(*own, logger=False)
        for name in [
            key for key, value in self.hparams.items() if isinstance(value, nn.Module | Decoder | NetworkPainter)
        ]:
            del self.hparams[name]  # checkpoints hold plain values
        if lr_encoder is not None and lr_encoder <= 0:
            msg = f"model.lr_encoder={lr_encoder}: expected a number above 0, or null."
            raise ConfigError(msg)
        self.classes = list(classes or ())
        check_class_names(self.classes, "model.classes")
        self.decoder = build(decoder, Decoder)  # type: ignore[type-abstract]
        self.decoder_node = dict(decoder) if isinstance(decoder, Mapping) else None
        channels = self.decoder.channels(len(self.classes))
        self.network_node = {**network, "channels": channels} if isinstance(network, Mapping) else None
        self.network = build(self.network_node or network, MapNetwork)  # type: ignore[arg-type]
        if dict(self.network.channels) != channels:
            msg = (
                f"model.network gives the maps {dict(self.network.channels)}, and model.decoder wants {channels} for "
                f"{len(self.classes)} classes."
            )
            raise ConfigError(msg)
        inner = window - 2 * self.network.margin
        if not 0 <= overlap < inner:
            msg = (
                f"model.overlap={overlap}: expected 0 or more and less than the {inner} px that the network gives for "
                f"model.window={window}."
            )
            raise ConfigError(msg)
        self.optimizer_node, self.scheduler_node, self.lr_encoder = optimizer, scheduler, lr_encoder
        self.window, self.overlap = window, overlap
        self.tta, self.ensemble = tta, list(ensemble)
        self.compiles, self.init = compile, init
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self._memory_format)
        self.painter = None if paint is None else build(paint, NetworkPainter)
        self.members: list[MapNetwork] = []  # of the ensemble, besides this one; a list, so no checkpoint holds them
        self.handover: Handover[tuple[Truth, Job]] = Handover(workers)
        self.evaluation = SegmentationEvaluation(self.classes)
        self._initialised = False

    # ------------------------------------------------------------------ what a subclass says

    @abstractmethod
    def terms(self, maps: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weighted terms of the loss by name; their sum is to be minimised.

        Args:
            maps: the raw maps of the network.
            targets: everything of the batch but the image, cropped to the size of the maps.
        """

    def load_start(self, stage: str) -> bool:
        """Load the initial weights; return whether there were any.

        Raises:
            ConfigError: if they do not fit, or give a test types with random weights.
        """
        if self.init is not None:
            anew = start_from(
                self.init, self.network, self.decoder, self.classes, self.network_node, self.data.mpp,
                "model.network" if "network" in self.hparams else "model",
            )  # fmt: skip
            if anew and stage != "fit":
                msg = (
                    f"model.init={self.init}: it has no weights for {', '.join(anew)}, so a test would show random "
                    "types. Train (stages=[fit,test]), or leave the types out: model.classes=[]."
                )
                raise ConfigError(msg)
            return True
        if stage != "fit":
            return False
        if self.network.backbone is not None:
            self.network.backbone.load_pretrained()
        return True

    # ------------------------------------------------------------------ use

    @property
    def mpp(self) -> float:
        """Pixel size of the data, um/px."""
        return required_mpp(self.data, type(self).__name__)

    @property
    def encoder(self) -> nn.Module:
        """The part that may be pretrained and frozen."""
        return nn.Identity() if self.network.backbone is None else self.network.backbone

    @property
    def pretrained(self) -> bool:
        """Whether training starts from weights that are worth keeping."""
        return self.init is not None or (self.network.backbone is not None and bool(self.network.backbone.weights))

    @property
    def requires_checkpoint(self) -> bool:
        """Whether evaluation without a checkpoint would use random weights."""
        return self.init is None

    @torch.no_grad()
    def predict_maps(self, x_bchw: Tensor, tta: bool = False) -> Tensor:
        """Return the joined maps of images of any size, (N, K, H, W) float32.

        Args:
            x_bchw: (N, 3, H, W) in [0, 1].
            tta: average over the eight flips and rotations by multiples of 90 degrees.
        """

        def one(window_bchw: Tensor) -> Tensor:
            window_bchw = self._in_format(window_bchw)
            return mean([self.decoder.join(network(window_bchw)) for network in (self.network, *self.members)])

        def views(window_bchw: Tensor) -> Tensor:
            return predict_views(one, window_bchw, self.decoder.turned_back) if tta else one(window_bchw)

        return predict_tiled(views, x_bchw, self.window, self.overlap, self.network.margin)

    def predict_nuclei(self, x_bchw: Tensor, tta: bool = False) -> list[Nuclei]:
        """Return the nuclei of each image; arguments as those of `predict_maps`."""
        mpp, (height, width) = self.mpp, x_bchw.shape[-2:]
        maps_bkhw = self._reduced_maps(x_bchw, tta)
        find, size = self.decoder.find, (height, width)
        return [find_and_vote(find, maps_khw, None, mpp, size)[0].nuclei for maps_khw in maps_bkhw]

    def _reduced_maps(self, x_bchw: Tensor, tta: bool) -> NDArray[np.float32]:
        return self.decoder.reduced(self.predict_maps(x_bchw, tta)).cpu().numpy()

    def exports(self) -> dict[str, Export]:
        """Return the network and its description for a bundle."""
        description = {
            "module": None if self.decoder_node is None else self.network_node,
            "decoder": self.decoder_node,
            "role": "segmenter",
            "stain_in": "H&E",
            "classes": self.classes,
            "value_range": [0.0, 1.0],
            "window": self.window,
            "overlap": self.overlap,
        }
        return {"segmenter": Export(self.network, description)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is needed to use the network, as in a bundle."""
        checkpoint["segmenter"] = {**self.exports()["segmenter"].info, "mpp": self.data.mpp}

    # ------------------------------------------------------------------ training

    def setup(self, stage: str) -> None:
        """Check that the data fits, and compile if asked.

        Raises:
            ConfigError: if the data has several pixel sizes or other classes than the model, or if batch normalisation
                cannot be synchronised.
        """
        if stage == "fit":
            check_sync_batchnorm(self)
        found = list(self.data.classes)
        # Without classes of its own the model ignores the data's, and data without classes judges nuclei only.
        if self.classes and found != self.classes and (found or stage == "fit"):
            msg = f"model.classes={self.classes} are not those of the data, {found}. Pass model.classes={found}."
            raise ConfigError(msg)
        required_mpp(self.data, type(self).__name__)
        self.evaluation = SegmentationEvaluation(self.classes if found else [])
        self.members = []
        if self.compiles:
            self.network.compile()

    def on_fit_start(self) -> None:
        """Load the initial weights, and the generator that paints."""
        self._start("fit")
        if self.painter is not None:
            self.painter.prepare(self.device)

    def on_validation_start(self) -> None:
        """Load the initial weights, if nothing has been trained."""
        self._start("validate")

    def _start(self, stage: str) -> None:
        """Load the initial weights, unless a checkpoint or an earlier stage has brought others."""
        if not self._initialised:
            self._initialised = self.trainer.ckpt_path is not None or self.load_start(stage)

    def on_test_start(self) -> None:
        """Load the initial weights, if nothing has been trained, and the other members of the ensemble."""
        self._start("test")
        members = [load_member(source, self.network, self.decoder, self.classes, self.mpp) for source in self.ensemble]
        self.members = [network.to(self.device).to(memory_format=self._memory_format) for network in members]

    def configure_optimizers(self) -> Any:
        """Return the optimiser, with a parameter group for the backbone, and the schedule of the remaining steps."""
        groups = parameter_groups(self.network, self.encoder, self.lr_encoder)
        optimizer = build(self.optimizer_node, Optimizer, params=groups)
        return optimizer if self.scheduler_node is None else scheduled(optimizer, self.scheduler_node, self.trainer)

    def on_train_start(self) -> None:
        """Check that the learning-rate cycle is as long as the training.

        Raises:
            ConfigError: if it would end earlier, because a continued run was made longer.
        """
        check_cycles(self.trainer)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch of crops.

        Raises:
            ConfigError: if the model has classes and the batch no types, or the batch lacks a target.
        """
        maps = self.network(self._in_format(self.seen(batch, batch_idx)))
        return self._logged(self.losses_of(maps, batch), len(batch["image"]))

    def seen(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Return the labelled images of a batch as the network sees them: some painted as IHC, if there is a painter.

        Which are drawn depends on seed, epoch and place in the batch of all processes together.
        """
        image_bchw = batch["image"]
        if self.painter is None or not self.painter.share:
            return image_bchw
        trainer = self.trainer
        place = (trainer.current_epoch, batch_idx, trainer.global_rank, trainer.world_size)
        drawn_b = self.painter.draw(len(image_bchw), *place).to(self.device)
        if "painted" in batch:
            drawn_b &= ~batch["painted"]
        made_bchw, painted_b = self.painter(image_bchw, drawn_b, self.mpp)
        n = len(image_bchw)
        self.log("train/painted_share", painted_b.float().mean(), batch_size=n)
        self.log("train/refused_share", (drawn_b & ~painted_b).float().mean(), batch_size=n)
        return made_bchw

    def losses_of(self, maps: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weighted terms of the loss of a labelled batch by name.

        Args:
            maps: the raw maps of its images.
            batch: as in training.

        Raises:
            ConfigError: if the model has classes and the batch no types, or the batch lacks a target.
        """
        if self.classes and "type" not in batch:
            msg = f"model.classes={self.classes}, but the training batches hold no types of nuclei. Pass [] for none."
            raise ConfigError(msg)
        size = next(iter(maps.values())).shape[-2:]
        labels = {
            key: value
            for key, value in batch.items()
            if key != "image" and isinstance(value, Tensor) and value.dim() > 1
        }
        targets = {key: centre_crop(value, *size) for key, value in labels.items()}
        try:
            return self.terms(maps, targets)
        except KeyError as error:
            msg = (
                f"The training batches hold {', '.join(batch)}, and {type(self).__name__} also needs {error}. Give the "
                "DataModule the decoder of the model: data.decoder=${model.decoder}."
            )
            raise ConfigError(msg) from error

    def _logged(self, losses: Mapping[str, Tensor], n: int) -> Tensor:
        """Return the sum of the terms of a batch of n, and log them."""
        loss = torch.stack(list(losses.values())).sum()
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=n)
        self.log_dict({f"train/loss_{name}": term.detach() for name, term in losses.items()}, batch_size=n)
        return loss

    # ------------------------------------------------------------------ evaluation

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> Scores:
        """Return the results of the images whose nuclei have been found by now, as `rows`."""
        return {"rows": self._evaluate(batch, tta=False, last=False)}

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> Scores:
        """Return the results of the images whose nuclei have been found by now, as `rows`; at the end all."""
        last = batch_idx + 1 == self.trainer.num_test_batches[0]
        return {"rows": self._evaluate(batch, tta=self.tta, last=last)}

    def _evaluate(self, batch: dict[str, Any], tta: bool, last: bool) -> list[dict[str, Any]]:
        """Predict a batch and hand its maps to the workers; return the results that are ready, or all if asked."""
        maps_bkhw = self._reduced_maps(batch["image"], tta)
        for truth, maps_khw in zip(truths(batch), maps_bkhw, strict=True):
            nbytes = maps_khw.nbytes + truth.image.nbytes + truth.nuclei.inst_hw.nbytes
            given = (self.decoder.find, maps_khw, None, self.mpp, truth.nuclei.inst_hw.shape)
            job = self.handover.submit(find_and_vote, *given, nbytes=nbytes)
            self.handover.add((truth, job), [job])
        return self._score(last)

    def _score(self, last: bool) -> list[dict[str, Any]]:
        mpp = self.mpp
        return [self.evaluation.update(truth, job.result()[0], mpp) for truth, job in self.handover.ready(last)]

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Log the test metrics, also as the row of a paper's table."""
        values = self._log_evaluation("test")
        if self.trainer.is_global_zero:
            log.info("As papers on PanNuke report it:\n%s", paper_row(values, self.classes))

    def _log_evaluation(self, stage: str) -> dict[str, Tensor]:
        self._score(last=True)
        values = self.evaluation.compute_and_reset(self.device)
        # The ranks agree already; without sync_dist the Trainer would warn of each key.
        self.log_dict({f"{stage}/{key}": value for key, value in values.items()}, sync_dist=True)
        return values

    def teardown(self, stage: str) -> None:
        """End the worker processes; the next stage starts its own."""
        self.handover.close()

    @property
    def cards(self) -> Mapping[str, Card]:
        """The name cards of the logged metrics: title, direction, protocol."""
        return self.evaluation.cards

    def panels(self, batch: dict[str, Any]) -> list[list[tuple[str, Tensor]]]:
        """Return, for each image of a batch, its pictures with their titles; (3, H, W) in [-1, 1]."""
        found = self.predict_nuclei(batch["image"], tta=self.tta and self.trainer.testing)
        tiles = zip(truths(batch), found, strict=True)
        shown = [pictures(truth, nuclei, self.classes) for truth, nuclei in tiles]
        return [[(title, _to_tensor(picture)) for title, picture in row.items()] for row in shown]

    def _in_format(self, x_bchw: Tensor) -> Tensor:
        return x_bchw.contiguous(memory_format=self._memory_format)


def _to_tensor(picture: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(picture.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)
