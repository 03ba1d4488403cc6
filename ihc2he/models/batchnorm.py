"""Whether the processes of a training can share the statistics of its batch normalisation."""

from __future__ import annotations

from lightning.pytorch import LightningModule
from torch import nn

from ihc2he.errors import ConfigError
from ihc2he.internals.lightning import shares_batch_statistics

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def check_sync_batchnorm(module: LightningModule) -> None:
    """Refuse layers that the Trainer would break: it replaces every batch normalisation, subclasses included.

    Args:
        module: with its Trainer; nothing is checked where that does not synchronise.

    Raises:
        ConfigError: without GPUs, or for a layer that does more than normalise.
    """
    if not shares_batch_statistics(module.trainer):
        return
    if module.trainer.strategy.root_device.type == "cpu":
        msg = "trainer.sync_batchnorm=true needs GPUs. Pass trainer=ddp_cpu, or trainer.sync_batchnorm=false."
        raise ConfigError(msg)
    for name, layer in module.named_modules():
        plain = isinstance(layer, nn.SyncBatchNorm) or type(layer).forward is nn.BatchNorm2d.forward
        if isinstance(layer, _BATCH_NORMS) and not plain:
            msg = (
                f"trainer.sync_batchnorm=true would replace {name}, a {type(layer).__name__}, which does more than "
                "normalise; its activation, for instance, would be lost. Pass trainer.sync_batchnorm=false, or another "
                "encoder."
            )
            raise ConfigError(msg)
