"""A classifier of tiles: training, test, and grades of a user's images.

Shape suffixes: b = batch, c = channels, h, w = height, width, k = classes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ihc2he.build import build
from ihc2he.datainfo import check_class_names
from ihc2he.errors import ConfigError, require_setting
from ihc2he.metrics.cards import Card
from ihc2he.metrics.grading import count
from ihc2he.models.bundle import load_bundle
from ihc2he.models.classification.attention import available, grad_cam, overlaid
from ihc2he.models.classification.drawing import confusion_picture, reliability_picture
from ihc2he.models.classification.evaluation import CARDS, GradingEvaluation
from ihc2he.models.classification.networks import TileClassifier, mixed
from ihc2he.models.task import Export, Ranking, Scores, Task
from ihc2he.tiling.resampling import resample
from ihc2he.tiling.windows import window_starts

log = logging.getLogger(__name__)

ROLE = "classifier"


class Grade(NamedTuple):
    """What is found on an image.

    Attributes:
        name: of the image.
        probabilities: by class; empty if it could not be graded.
        error: why not, or "".
    """

    name: str
    probabilities: dict[str, float]
    error: str = ""


class Classifier(Task):
    """Gives each tile one of several classes, in their order.

    A batch has `image` (N, 3 or 6, H, W) in [-1, 1], `label` (N,), and the lists `name` and `case`. For a prediction it
    has the lists `name`, `image` (HxWx3 uint8), `mpp` and `error`: each image is resampled to the pixel size of the
    training and covered by tiles of its size, whose probabilities are averaged.

    Args:
        encoder: node of an encoder, see `TileClassifier`.
        optimizer: node of a `torch.optim.Optimizer` without its parameters.
        classes: their names in order, as in the data.
        scheduler: node of a learning-rate scheduler without its optimiser, stepped each epoch; None: constant.
        stains: number of stains in an image.
        lr_encoder: learning rate of the encoder; None: the optimiser's.
        dropout: share of the features that are dropped in training.
        class_weights: weigh the loss of each class by the inverse of its frequency.
        label_smoothing: share of the target that is spread over all classes.
        mixup: alpha of mixup; 0: none.
        compile: compile the network in place.
        init: bundle of a trained classifier to start from, a folder or hub id; its network replaces `encoder`.

    Raises:
        ConfigError: for a value outside its range, or a bundle of something else.
    """

    def __init__(
        self,
        encoder: Mapping[str, Any],
        optimizer: Mapping[str, Any],
        classes: Sequence[str] | Sequence[str | int] | None,
        *,
        scheduler: Mapping[str, Any] | None = None,
        stains: int = 1,
        lr_encoder: float | None = None,
        dropout: float = 0.2,
        class_weights: bool = False,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        compile: bool = False,  # noqa: A002
        init: str | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        require_setting("model", "label_smoothing", label_smoothing, 0 <= label_smoothing < 1, "from 0 to below 1")
        require_setting("model", "mixup", mixup, mixup >= 0, "0 or more")
        require_setting("model", "stains", stains, stains in (1, 2), "1 or 2")
        if classes is None:
            msg = "model.classes=null: expected the names of the classes in their order. Pass data.classes=[low,high]."
            raise ConfigError(msg)
        self.classes = [str(name) for name in classes]
        check_class_names(self.classes, "model.classes")
        self.network_node: dict[str, Any] = {
            "_target_": "ihc2he.models.classification.networks.TileClassifier",
            "encoder": encoder,
            "classes": len(self.classes),
            "stains": stains,
            "dropout": dropout,
        }
        self.trained: dict[str, Any] = {}  # mpp and size of the training
        if init is None:
            self.network = build(self.network_node, TileClassifier)
        else:
            self.network = self._from_bundle(init)
        self.optimizer_node, self.scheduler_node, self.lr_encoder = optimizer, scheduler, lr_encoder
        self.class_weights, self.label_smoothing, self.mixup = class_weights, label_smoothing, mixup
        self.compiles, self.init = compile, init
        self.evaluation = GradingEvaluation(self.classes)
        self._weight_k: Tensor | None = None
        self._started = False
        self._tables: dict[str, list[dict[str, Any]]] = {}
        self._figures: dict[str, NDArray[np.uint8]] = {}

    def _from_bundle(self, source: str) -> TileClassifier:
        network, info = load_bundle(source)
        if not isinstance(network, TileClassifier):
            msg = f"model.init={source}: a bundle of a {info.get('role')}, expected one of a {ROLE}."
            raise ConfigError(msg)
        if info["classes"] != self.classes or network.stains != self.network_node["stains"]:
            found = f"model.classes=[{','.join(info['classes'])}] model.stains={network.stains}"
            msg = f"model.init={source}: was trained for other classes or stains. Pass {found}."
            raise ConfigError(msg)
        self.network_node = info["module"]
        self.trained = {"mpp": info["mpp"], "size": info["size"]}
        return network

    # ------------------------------------------------------------------ use

    @property
    def encoder(self) -> nn.Module:
        """The part that may be pretrained and frozen."""
        encoder: nn.Module = self.network.encoder
        return encoder

    @property
    def pretrained(self) -> bool:
        """Whether training starts from weights that are worth keeping."""
        return self.init is not None or bool(self.network.encoder.weights)

    @property
    def requires_checkpoint(self) -> bool:
        """Whether evaluation without a checkpoint would use random weights."""
        return self.init is None

    @property
    def cards(self) -> Mapping[str, Card]:
        """The name cards of the logged metrics."""
        return CARDS

    @property
    def tables(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """`intervals.csv`: the metrics of the last test with 95 % intervals over cases."""
        return self._tables

    @property
    def figures(self) -> Mapping[str, NDArray[np.uint8]]:
        """The confusion matrix and the reliability curve of the last test."""
        return self._figures

    @property
    def ranking(self) -> Ranking:
        """The worst tile is the one whose true class has the least probability."""
        return Ranking("p_true", "higher")

    def exports(self) -> dict[str, Export]:
        """Return the network and its description for a bundle."""
        description = {
            "module": self.network_node,
            "role": ROLE,
            "classes": self.classes,
            "value_range": [-1.0, 1.0],
            "size": self.data.size or self.trained.get("size"),
        }
        return {ROLE: Export(self.network, description)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is needed for a prediction."""
        checkpoint[ROLE] = {"mpp": self.data.mpp, "size": self.data.size}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take what is needed for a prediction."""
        self.trained = checkpoint[ROLE]

    # ------------------------------------------------------------------ training

    def setup(self, stage: str) -> None:
        """Check that the data fits, and compile if asked.

        Raises:
            ConfigError: if the data has other classes or stains than the model.
        """
        if stage == "predict":
            if self.network.stains != 1:
                msg = "model.stains=2: a prediction is given images of one stain. Train a classifier of one stain."
                raise ConfigError(msg)
            return
        found = list(self.data.classes)
        if found != self.classes:
            msg = f"model.classes={self.classes} are not those of the data, {found}. Pass model.classes={found}."
            raise ConfigError(msg)
        if self.data.channels != 3 * self.network.stains:
            msg = f"model.stains={self.network.stains}: the images have {self.data.channels // 3}. Pass that number."
            raise ConfigError(msg)
        if self.class_weights and stage == "fit":
            count_k = torch.tensor(self.data.class_counts, dtype=torch.float32).clamp(min=1)
            self._weight_k = count_k.sum() / (len(count_k) * count_k)
        if self.compiles:
            self.network.compile()

    def on_fit_start(self) -> None:
        """Load the encoder's pretrained weights, unless a checkpoint or a bundle has brought others."""
        if not self._started and self.init is None and self.trainer.ckpt_path is None:
            self.network.encoder.load_pretrained()
        self._started = True

    def configure_optimizers(self) -> Any:
        """Return the optimiser, with a parameter group for the encoder, and its schedule."""
        groups = [
            {"params": [*self.network.head.parameters()]},
            {"params": [*self.encoder.parameters()], **({} if self.lr_encoder is None else {"lr": self.lr_encoder})},
        ]
        optimizer = build(self.optimizer_node, Optimizer, params=groups)
        if self.scheduler_node is None:
            return optimizer
        return [optimizer], [build(self.scheduler_node, LRScheduler, optimizer=optimizer)]

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        x_bchw, label_b = batch["image"], batch["label"]
        if self.mixup:
            x_bchw, other_b, share = mixed(x_bchw, self.mixup)
            logits_bk = self.network(x_bchw)
            loss = share * self._loss(logits_bk, label_b) + (1 - share) * self._loss(logits_bk, label_b[other_b])
        else:
            logits_bk = self.network(x_bchw)
            loss = self._loss(logits_bk, label_b)
        right = (logits_bk.detach().argmax(1) == label_b).float().mean()
        self.log_dict({"train/loss": loss.detach(), "train/accuracy": right}, prog_bar=True, batch_size=len(label_b))
        return loss

    def _loss(self, logits_bk: Tensor, label_b: Tensor) -> Tensor:
        weight_k = None if self._weight_k is None else self._weight_k.to(logits_bk)
        return F.cross_entropy(logits_bk, label_b, weight_k, label_smoothing=self.label_smoothing)

    # ------------------------------------------------------------------ evaluation

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> Scores:
        """Return a row for each tile."""
        return {"rows": self.evaluation.update(self.network(batch["image"]), batch)}

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics."""
        values, _, _ = self.evaluation.compute_and_reset()
        self.log_dict({f"val/{key}": value for key, value in values.items()}, sync_dist=True)

    def on_test_epoch_end(self) -> None:
        """Log the test metrics, and make their intervals and pictures."""
        values, confusion, rows = self.evaluation.compute_and_reset()
        self.log_dict({f"test/{key}": value for key, value in values.items()}, sync_dist=True)
        self._tables = {"intervals.csv": self.evaluation.interval_rows(rows)}
        prob_nk = np.array([[row[f"p {kind}"] for kind in self.classes] for row in rows])
        label_n = np.array([self.classes.index(row["group"]) for row in rows])
        bins_k3 = count(prob_nk, label_n, [row["name"] for row in rows]).total()["bins"]
        self._figures = {
            "confusion": confusion_picture(confusion.numpy(), self.classes),
            "reliability": reliability_picture(bins_k3, values["ece"]),
        }

    def panels(self, batch: dict[str, Any]) -> list[list[tuple[str, Tensor]]]:
        """Return each stain of each tile, and where it speaks for the class that was found, by Grad-CAM."""
        x_bchw = batch["image"]
        with torch.no_grad():
            found = self.network(x_bchw).argmax(1).tolist()
        cams = grad_cam(self.network, x_bchw, found) if available() else None
        shown = []
        for i, (kind, true) in enumerate(zip(found, batch["label"].tolist(), strict=True)):
            title = (
                f"{self.classes[kind]}, right" if kind == true else f"{self.classes[kind]}, true {self.classes[true]}"
            )
            row = []
            for s, stain_chw in enumerate(x_bchw[i].split(3)):
                row.append((title if s == 0 else "", stain_chw))
                if cams is not None:
                    row.append(("Grad-CAM", overlaid(stain_chw, cams[i, s])))
            shown.append(row)
        return shown

    # ------------------------------------------------------------------ prediction

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[Grade]:
        """Return the grade of each image."""
        images = zip(batch["name"], batch["image"], batch["mpp"], batch["error"], strict=True)
        return [self._grade(name, image, mpp, error) for name, image, mpp, error in images]

    def _grade(self, name: str, image: NDArray[np.uint8] | None, mpp: float, error: str | None) -> Grade:
        if image is None:
            return Grade(name, {}, error or "could not be read")
        own, size = self.trained["mpp"], self.trained["size"]
        image = resample(image, mpp, own)
        height, width = image.shape[:2]
        if min(height, width) < size:
            return Grade(name, {}, f"{width * own:.0f} x {height * own:.0f} um, expected {size * own:.0f} um or more")
        prob_k = torch.stack([self._probabilities(window) for window in _windows(image, size)]).mean(0)
        return Grade(name, dict(zip(self.classes, prob_k.tolist(), strict=True)))

    def _probabilities(self, window: NDArray[np.uint8]) -> Tensor:
        x_bchw = torch.from_numpy(window.transpose(2, 0, 1)[None].copy()).to(self.device).float() / 127.5 - 1
        prob_k: Tensor = self.network(x_bchw)[0].float().softmax(0).cpu()
        return prob_k


def _windows(image: NDArray[np.uint8], size: int) -> Iterable[NDArray[np.uint8]]:
    """Yield tiles that cover an image."""
    for top in window_starts(image.shape[0], size, 0):
        for left in window_starts(image.shape[1], size, 0):
            yield image[top : top + size, left : left + size]
