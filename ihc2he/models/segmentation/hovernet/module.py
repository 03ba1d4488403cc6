"""HoVer-Net as a LightningModule: training, overlapping-window inference, and scoring of the nuclei it finds.

Shape suffixes: b = batch, c = colour, k = maps (nucleus, horizontal, vertical, then background and types), 2 =
horizontal and vertical, h, w = height, width. Images: (N, 3, H, W) floats in [0, 1].
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ihc2he.build import build
from ihc2he.errors import ConfigError
from ihc2he.internals.lightning import shares_batch_statistics
from ihc2he.losses.hover import check_msge_axis, check_terms, hover_losses
from ihc2he.metrics.fidelity import Card
from ihc2he.models.bundle import load_bundle
from ihc2he.models.segmentation.evaluation import Evaluation, Truth, paper_row, pictures, truths
from ihc2he.models.segmentation.hovernet.networks import HoverNet, centre_crop
from ihc2he.models.segmentation.hovernet.weights import load_reference
from ihc2he.models.task import Export, Task, required_mpp
from ihc2he.nuclei.postprocess import Nuclei, postprocess, submit_batch, worker_pool
from ihc2he.tiling.augmentation import mean, predict_views
from ihc2he.tiling.windows import predict_tiled

log = logging.getLogger(__name__)

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

HV_CHANNELS = (1, 2)  # among the maps that `predict_maps` returns
MAX_PENDING = 2**23  # px of tiles whose maps wait for the workers, some 0.5 GB; more would fill the memory
REFERENCE_LOSSES = {"np_ce": 1.0, "np_dice": 1.0, "hv_mse": 2.0, "hv_msge": 1.0, "nc_ce": 1.0, "nc_dice": 1.0}


class HoverNetSegmenter(Task):
    """Finds nuclei on H&E and says of which type they are.

    Batches are dicts. Training: `image`, `inst` (N, H, W) with 0 = background, `hv` (N, 2, H, W) and, with classes,
    `type` (N, H, W) with 0 = background. Evaluation: whole tiles, `hv` is not needed, and `name` and `group` (the
    tissue) are lists. The pixel size is the DataModule's.

    Args:
        encoder: node or module, see `ihc2he.models.segmentation.encoders`. A module is not saved in `hparams`.
        optimizer: node of a `torch.optim.Optimizer` without its parameters.
        scheduler: node of a learning-rate scheduler without its optimiser, stepped each epoch; None: constant.
        classes: names of the types, in the order of the DataModule; None or empty: nuclei have no types.
        mode: `same`, `fast` or `original`, see `HoverNet`.
        width: channels of the decoders' finest skip; 256 in the reference.
        losses: weight of each term, see `ihc2he.losses.hover.TERMS`.
        msge_axis: `aligned` or `cross`, see `ihc2he.losses.hover.msge_loss`.
        lr_encoder: learning rate of the encoder; the optimiser's own where None.
        weights: a published checkpoint of the reference to start from; None for the encoder's `weights`.
        keep_unmarked: see `ihc2he.nuclei.postprocess.segment`; the reference does not.
        window: px, the largest sides that are predicted at once; larger tiles are covered by overlapping windows.
        overlap: px, least overlap of windows, in which their maps are blended.
        tta: average the maps over the eight flips and quarter turns when testing.
        ensemble: bundles (folders or hub ids) of further segmenters, whose maps are averaged with this one's when
            testing.
        workers: processes that turn maps into nuclei beside the GPU; 0: a thread of this one.
        channels_last: memory format of the network.
        compile: compile the network in place.

    Raises:
        ConfigError: for an unknown mode, loss or axis, no loss at all, or an overlap that does not fit the window.
    """

    def __init__(
        self,
        encoder: Mapping[str, Any] | nn.Module,
        optimizer: Mapping[str, Any],
        scheduler: Mapping[str, Any] | None = None,
        classes: Sequence[str] | None = None,
        mode: str = "same",
        width: int = 256,
        losses: Mapping[str, float] | None = None,
        msge_axis: str = "aligned",
        lr_encoder: float | None = None,
        weights: str | None = None,
        keep_unmarked: bool = True,
        window: int = 256,
        overlap: int = 64,
        tta: bool = False,
        ensemble: Sequence[str] = (),
        workers: int = 2,
        channels_last: bool = True,
        compile: bool = False,  # noqa: A002
    ) -> None:
        super().__init__()
        self.losses = dict(REFERENCE_LOSSES if losses is None else losses)
        check_terms(self.losses)
        if lr_encoder is not None and lr_encoder <= 0:
            msg = f"model.lr_encoder={lr_encoder}: expected a number above 0, or null."
            raise ConfigError(msg)
        if negative := [name for name, weight in self.losses.items() if weight < 0]:
            msg = f"model.losses.{negative[0]}={self.losses[negative[0]]}: expected 0 or more."
            raise ConfigError(msg)
        check_msge_axis(msge_axis)
        self.save_hyperparameters(ignore=["encoder"] if isinstance(encoder, nn.Module) else [], logger=False)
        self.classes = list(classes or ())
        if not any(weight for term, weight in self.losses.items() if self.classes or not term.startswith("nc_")):
            msg = f"model.losses={self.losses}: nothing is left to train; give one term that applies a weight above 0."
            raise ConfigError(msg)
        self.network = HoverNet(encoder, len(self.classes), mode, width)
        if not 0 <= overlap < window - 2 * self.network.margin:
            msg = (
                f"model.overlap={overlap}: expected 0 or more and less than the {window - 2 * self.network.margin} px "
                f"that mode={mode} puts out for model.window={window}."
            )
            raise ConfigError(msg)
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self._memory_format)
        self.members: list[Any] = []  # of the ensemble, besides this one; no child, so no checkpoint holds them
        self.mpp = 0.25
        self._pool: Executor | None = None
        self._pending: deque[tuple[Truth, Future[Nuclei]]] = deque()
        self.evaluation = Evaluation(self.classes, self.mpp)
        self._initialised = False

    @property
    def encoder(self) -> nn.Module:
        """The part that may be pretrained and frozen."""
        return self.network.encoder

    @property
    def pretrained(self) -> bool:
        """Whether training starts from weights that are worth keeping."""
        return bool(self.hparams["weights"] or self.network.encoder.weights)

    @property
    def requires_checkpoint(self) -> bool:
        """Whether evaluation without a checkpoint would judge random weights."""
        return self.hparams["weights"] is None

    # ------------------------------------------------------------------ use

    @torch.no_grad()
    def predict_maps(self, x_bchw: Tensor, tta: bool = False) -> Tensor:
        """Return the maps of images of any size.

        Args:
            x_bchw: (N, 3, H, W) in [0, 1].
            tta: average over the eight flips and quarter turns.

        Returns:
            (N, K, H, W) float32: probability of nucleus, horizontal and vertical map, and with types the probability
            of background and of each type.
        """
        hp = self.hparams

        def one(window_bchw: Tensor) -> Tensor:
            window_bchw = self._in_format(window_bchw)
            return mean([joined(network(window_bchw)) for network in (self.network, *self.members)])

        def views(window_bchw: Tensor) -> Tensor:
            return predict_views(one, window_bchw, HV_CHANNELS) if tta else one(window_bchw)

        return predict_tiled(views, x_bchw, hp["window"], hp["overlap"], self.network.margin)

    def predict_nuclei(self, x_bchw: Tensor, tta: bool = False) -> list[Nuclei]:
        """Return the nuclei of each image; arguments as those of `predict_maps`."""
        maps_bkhw = self.predict_maps(x_bchw, tta).cpu().numpy()
        prob_bhw, hv_b2hw, types_bkhw = split(maps_bkhw)
        types = [None] * len(maps_bkhw) if types_bkhw is None else types_bkhw
        return [
            postprocess(*maps, self.mpp, self.hparams["keep_unmarked"])
            for maps in zip(prob_bhw, hv_b2hw, types, strict=True)
        ]

    def exports(self) -> dict[str, Export]:
        """Return what a bundle needs, by bundle name: the network and its description."""
        hp = self.hparams
        node = {
            "_target_": "ihc2he.models.segmentation.hovernet.networks.HoverNet",
            "encoder": hp.get("encoder"),
            "n_types": len(self.classes),
            "mode": hp["mode"],
            "width": hp["width"],
        }
        description = {
            "module": node if "encoder" in hp else None,
            "role": "segmenter",
            "stain_in": "H&E",
            "classes": self.classes,
            "value_range": [0.0, 1.0],
            "window": hp["window"],
            "overlap": hp["overlap"],
            "postprocessing": "ihc2he.nuclei.postprocess.postprocess",
            "keep_unmarked": hp["keep_unmarked"],
        }
        return {"segmenter": Export(self.network, description)}

    # ------------------------------------------------------------------ training

    def setup(self, stage: str) -> None:
        """Take pixel size and classes from the data, load what training starts from, and compile where asked.

        Raises:
            ConfigError: where the data's classes are not the model's, or batch normalisation cannot be synchronised.
            DataError: where weights do not fit.
        """
        if stage == "fit":
            self._check_sync_batchnorm()
        found = list(self.data.classes)
        # Without classes of its own the model ignores the data's, and data without classes judges nuclei only.
        if self.classes and found != self.classes and (found or stage == "fit"):
            msg = f"model.classes={self.classes} are not those of the data, {found}. Pass model.classes={found}."
            raise ConfigError(msg)
        self.mpp = required_mpp(self.data, "HoVer-Net")
        self.evaluation = Evaluation(self.classes if found else [], self.mpp)
        self.members = []
        weights = self.hparams["weights"]
        if not self._initialised and (weights or stage == "fit"):  # what training has changed must not be undone
            self._initialised = True
            if weights:
                load_reference(self.network, weights)
            else:
                self.network.encoder.load_pretrained()
        if self.hparams["compile"]:
            self.network.compile()

    def _check_sync_batchnorm(self) -> None:
        """Refuse what the Trainer would break: it replaces batch normalisation by class, whatever else a layer does."""
        if not shares_batch_statistics(self.trainer):
            return
        if self.trainer.strategy.root_device.type == "cpu":
            msg = "trainer.sync_batchnorm=true needs GPUs. Pass trainer=ddp_cpu, or trainer.sync_batchnorm=false."
            raise ConfigError(msg)
        for name, layer in self.named_modules():
            plain = isinstance(layer, nn.SyncBatchNorm) or type(layer).forward is nn.BatchNorm2d.forward
            if isinstance(layer, _BATCH_NORMS) and not plain:
                msg = (
                    f"trainer.sync_batchnorm=true would take away what {name}, a {type(layer).__name__}, does besides "
                    "normalising, such as its activation. Pass trainer.sync_batchnorm=false, or another encoder."
                )
                raise ConfigError(msg)

    def on_test_start(self) -> None:
        """Load the other members of the ensemble."""
        self.members = [self._member(source) for source in self.hparams["ensemble"]]

    def _member(self, source: str) -> nn.Module:
        network, info = load_bundle(source)
        own = {"classes": self.classes, "mpp": self.mpp, "value_range": [0.0, 1.0]}
        differing = [key for key, value in own.items() if info.get(key) != value]
        if differing or not isinstance(network, HoverNet) or network.margin != self.network.margin:
            found = {key: info.get(key) for key in differing}
            msg = f"model.ensemble: {source} cannot be averaged with this model: expected a HoVer-Net of the same mode "
            msg += f"with {own}, found a {type(network).__name__} with {found or 'another mode'}."
            raise ConfigError(msg)
        return network.to(self.device).to(memory_format=self._memory_format)

    def configure_optimizers(self) -> Any:
        """Return the optimiser, with a parameter group for the encoder, and the schedule."""
        hp = self.hparams
        encoder = list(self.encoder.parameters())
        known = {id(parameter) for parameter in encoder}
        rate = {} if hp["lr_encoder"] is None else {"lr": hp["lr_encoder"]}
        groups = [
            {"params": [parameter for parameter in self.parameters() if id(parameter) not in known]},
            {"params": encoder, **rate},
        ]
        optimizer = build(hp["optimizer"], Optimizer, params=groups)
        if hp["scheduler"] is None:
            return optimizer
        return [optimizer], [build(hp["scheduler"], LRScheduler, optimizer=optimizer)]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch of crops.

        Raises:
            ConfigError: where the model has classes and the batch no types.
        """
        if self.classes and "type" not in batch:
            msg = f"model.classes={self.classes}, but the training batches hold no types of nuclei. Pass [] for none."
            raise ConfigError(msg)
        maps = self.network(self._in_format(batch["image"]))
        size = maps["np"].shape[-2:]
        targets: dict[str, Tensor] = {
            key: centre_crop(batch[key], *size) for key in ("inst", "hv", "type") if key in batch
        }
        losses = hover_losses(maps, targets, self.losses, self.hparams["msge_axis"])
        loss = torch.stack(list(losses.values())).sum()
        n = len(batch["image"])
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=n)
        self.log_dict({f"train/loss_{name}": term.detach() for name, term in losses.items()}, batch_size=n)
        return loss

    # ------------------------------------------------------------------ evaluation

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Return the results of the images whose nuclei have been found meanwhile, as `rows`."""
        return {"rows": self._evaluate(batch, tta=False, last=False)}

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Return the results of the images whose nuclei have been found meanwhile, as `rows`; at the end all."""
        last = batch_idx + 1 == self.trainer.num_test_batches[0]
        return {"rows": self._evaluate(batch, tta=self.hparams["tta"], last=last)}

    def _evaluate(self, batch: dict[str, Any], tta: bool, last: bool) -> list[dict[str, Any]]:
        """Predict a batch and hand its maps to the workers; return the results that are there, or all where asked."""
        if self._pool is None:
            self._pool = worker_pool(self.hparams["workers"]) if self.hparams["workers"] else ThreadPoolExecutor(1)
        maps_bkhw = self.predict_maps(batch["image"], tta).cpu().numpy()
        promises = submit_batch(
            self._pool, *split(maps_bkhw), mpp=self.mpp, keep_unmarked=self.hparams["keep_unmarked"]
        )
        self._pending += zip(truths(batch), promises, strict=True)
        return self._score(at_most=0 if last else MAX_PENDING)

    def _score(self, at_most: int) -> list[dict[str, Any]]:
        """Score tiles in their order while they are ready, and wait for them where more than so many px are pending."""
        rows = []
        pending = sum(truth.nuclei.inst_hw.size for truth, _ in self._pending)
        while self._pending and (pending > at_most or self._pending[0][1].done()):
            truth, promise = self._pending.popleft()
            pending -= truth.nuclei.inst_hw.size
            rows.append(self.evaluation.update(truth, promise.result()))
        return rows

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Log the test metrics, also as the row of a paper's table."""
        values = self._log_evaluation("test")
        if self.trainer.is_global_zero:
            log.info("As papers on PanNuke report it:\n%s", paper_row(values, self.classes))

    def _log_evaluation(self, stage: str) -> dict[str, Tensor]:
        self._score(at_most=0)
        values = self.evaluation.compute_and_reset(self.device)
        # The ranks agree already; without sync_dist the Trainer would warn of each key.
        self.log_dict({f"{stage}/{key}": value for key, value in values.items()}, sync_dist=True)
        return values

    def teardown(self, stage: str) -> None:
        """End the worker processes; the next stage starts its own."""
        self._pending.clear()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    @property
    def cards(self) -> Mapping[str, Card]:
        """The name cards of the logged metrics: title, direction, protocol."""
        return self.evaluation.cards

    def panels(self, batch: dict[str, Any]) -> list[list[tuple[str, Tensor]]]:
        """Return, for each image of a batch, the pictures to look at with their titles; (3, H, W) in [-1, 1]."""
        found = self.predict_nuclei(batch["image"], tta=self.hparams["tta"] and self.trainer.testing)
        tiles = zip(truths(batch), found, strict=True)
        shown = [pictures(truth, nuclei, self.classes) for truth, nuclei in tiles]
        return [[(title, _to_tensor(picture)) for title, picture in row.items()] for row in shown]

    def _in_format(self, x_bchw: Tensor) -> Tensor:
        return x_bchw.contiguous(memory_format=self._memory_format)


def joined(maps: Mapping[str, Tensor]) -> Tensor:
    """Return a network's raw maps as one tensor of probabilities and HV maps, (N, K, H, W) float32."""
    parts = [maps["np"].float().softmax(1)[:, 1:], maps["hv"].float()]
    if "tp" in maps:
        parts.append(maps["tp"].float().softmax(1))
    return torch.cat(parts, 1)


def split(maps_bkhw: Any) -> tuple[Any, Any, Any]:
    """Return the nuclear probability, the HV maps and, or None, the probabilities of types of what `joined` gives."""
    return maps_bkhw[:, 0], maps_bkhw[:, 1:3], maps_bkhw[:, 3:] if maps_bkhw.shape[1] > 3 else None


def _to_tensor(picture: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(picture.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)
