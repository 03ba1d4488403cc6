"""The folder of a run: who may write to it, cleaning up after a failed start, and what may continue the run.

Imports neither torch nor Lightning, because Hydra loads it for every command line.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ihc2he.config import moved
from ihc2he.errors import ConfigError
from ihc2he.files import exclusive

log = logging.getLogger(__name__)

LOCK = ".lock"
# Arguments of models and data that do not change the weights of the next step: lengths, speed, paths of files, and how
# results are evaluated.
FREE = {
    "n_epochs", "n_epochs_decay", "T_max", "compile", "channels_last", "workers", "num_workers", "root", "path",
    "store", "download", "rebuild", "weights", "eval_batch_size", "metrics", "features", "window", "overlap", "tta",
    "ensemble", "init",
}  # fmt: skip
BINDING = ("seed", "model", "data")  # keys of the root that decide what is learned
OF_A_LAUNCH = ("ckpt_path", "out", "paths", "stages")  # of a command, not of the run
RESTORED = ("model.optimizer", "model.scheduler", "model.lr_")  # settings that a checkpoint contains
SHOWN = 5  # number of differences in a message

_found: dict[Path, set[Path]] = {}  # files in a folder before this process wrote anything; absent: no folder


class NoteFolder(Callback):
    """Records the files in a run's folder before Hydra makes the folder or a log in it."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Record the files."""
        try:
            folder = Path(config.hydra.run.dir)
        except OmegaConfBaseException:  # Hydra finds and reports it next
            return
        if folder.is_dir():
            _found[folder.resolve()] = set(folder.iterdir())


class Difference(NamedTuple):
    """A key with another value than in the run's configuration.

    Attributes:
        key: dotted.
        was: value of the run.
        now: value of this command.
        binds: whether a continuation of the run must keep it.
    """

    key: str
    was: Any
    now: Any
    binds: bool

    def __str__(self) -> str:
        return f"{self.key}={self.was}, not {self.now}"


@contextmanager
def alone_in(folder: Path, cfg: Mapping[str, Any]) -> Iterator[None]:
    """Lock a run's folder against other runs; clean up if the run could not start.

    Raises:
        ConfigError: if the folder has a run that is not to be continued, or that is still running.
    """
    busy = f"{folder}: another process is writing this run. Wait for its end, or choose another hydra.run.dir."
    try:
        with exclusive(folder / LOCK, busy):
            if (folder / "run.json").exists() and cfg["ckpt_path"] is None:
                msg = f"{folder} already holds a run. Continue it with ckpt_path=auto, or choose another hydra.run.dir."
                raise ConfigError(msg)
            for left in folder.glob("checkpoints/.*.part.ckpt"):  # of a run that was killed while writing
                left.unlink()
            yield
    finally:
        if not (folder / "run.json").exists():  # it could not start
            _tidy(folder)


def _tidy(folder: Path) -> None:
    """Delete the lock and the logs that this process made in a folder, and the folder if it made it too."""
    before = {path.name for path in _found.get(folder.resolve(), ())}
    root = logging.getLogger()
    for handler in list(root.handlers):  # what is logged later must not open a file that is deleted here
        if isinstance(handler, logging.FileHandler) and Path(handler.baseFilename).parent.resolve() == folder.resolve():
            root.removeHandler(handler)
            handler.close()
    for path in list(folder.iterdir()):
        if path.name not in before and (path.name == LOCK or path.suffix == ".log"):
            path.unlink(missing_ok=True)
    if folder.resolve() not in _found and not any(folder.iterdir()):
        folder.rmdir()


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Return the differences between the configurations of a run and of a command that continues it.

    Keys of a command and paths in the run's own folder are left out. A key that only one of the two has, such as one of
    another version of this package, does not bind.

    >>> [str(found) for found in differences({"seed": 1, "tags": []}, {"seed": 2, "tags": []})]
    ['seed=1, not 2']
    """
    return list(_differ(_relative(was), _relative(now), ""))


def _relative(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration without the keys of a command, and with a short name for its own folder in paths."""
    own = str(cfg.get("paths", {}).get("output_dir", ""))

    def plain(node: Any) -> Any:
        if isinstance(node, Mapping):
            return {str(key): moved(value) if key == "_target_" else plain(value) for key, value in node.items()}
        if isinstance(node, list | tuple):
            return [plain(value) for value in node]
        return node.replace(own, "RUN") if own and isinstance(node, str) else node

    return {key: plain(value) for key, value in cfg.items() if key not in OF_A_LAUNCH}


def _differ(was: Mapping[str, Any], now: Mapping[str, Any], start: str) -> Iterator[Difference]:
    for key in dict.fromkeys([*was, *now]):
        path = f"{start}.{key}" if start else key
        before, after = was.get(key), now.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _differ(before, after, path)
        elif before != after:
            binds = path.partition(".")[0] in BINDING and key not in FREE and key in was and key in now
            yield Difference(path, before, after, binds)


def check_continuation(folder: Path, cfg: Mapping[str, Any], checkpoint: str, trains: bool) -> list[str]:
    """Return what a command changes in the run of its folder or checkpoint, and log it.

    Args:
        folder: of this command.
        cfg: its configuration.
        checkpoint: that it starts from.
        trains: whether it continues training; an evaluation may change anything.

    Raises:
        ConfigError: if it continues training in the run's own folder with another seed, model or data, or in the folder
            of another run.
    """
    home = Path(checkpoint).resolve().parent.parent  # of RUN/checkpoints/NAME.ckpt
    own = home == folder.resolve()
    if trains and not own and (folder / "run.json").is_file():
        msg = f"{folder} has another run than ckpt_path={checkpoint}. Choose another hydra.run.dir."
        raise ConfigError(msg)
    if not (own or trains) or not (home / "config.yaml").is_file():
        return []
    found = differences(OmegaConf.to_container(OmegaConf.load(home / "config.yaml")), cfg)  # type: ignore[arg-type]
    binding = [difference for difference in found if difference.binds]
    if binding and own and trains:
        msg = (
            f"{folder}: this run was started with {_listed(binding)}. Continue it with these values; or "
            f"start another run from its checkpoint, in another folder: ckpt_path={checkpoint}"
        )
        raise ConfigError(msg)
    if found:
        log.warning("Different from the run of %s: %s.", checkpoint, _listed(found))
        kept = [one.key for one in found if one.key.startswith(RESTORED)]
        if kept and trains:
            names = ", ".join(kept)
            log.warning("The checkpoint contains the state of the optimisers, so the run's own %s is used.", names)
    return [str(difference) for difference in found]


def _listed(found: list[Difference]) -> str:
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return "; ".join(str(difference) for difference in found[:SHOWN]) + more


def earlier_record(folder: Path) -> dict[str, Any] | None:
    """Return the content of a folder's `run.json`; None, after a warning, if it cannot be read; None without one."""
    file = folder / "run.json"
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read (%s), so the earlier record of the run is lost.", file, error)
        return None
    return found if isinstance(found, dict) else None


def joined(earlier: dict[str, Any] | None, record: dict[str, Any], trains: bool) -> dict[str, Any]:
    """Return the content of `run.json`: the record of this command, combined with the earlier record in the folder.

    Args:
        earlier: record in the folder; None without one.
        record: of this command.
        trains: a command that trains replaces the earlier record, which is kept under `earlier`; one that does not
            train is added under `afterwards`.

    >>> joined({"status": "finished"}, {"status": "running"}, trains=False)
    {'status': 'finished', 'afterwards': [{'status': 'running'}]}
    >>> joined({"status": "interrupted"}, {"status": "running"}, trains=True)
    {'status': 'running', 'earlier': [{'status': 'interrupted'}]}
    """
    if earlier is None:
        return record
    if not trains:
        return {**earlier, "afterwards": [*earlier.get("afterwards", []), record]}
    last = {key: value for key, value in earlier.items() if key != "earlier"}
    return {**record, "earlier": [*earlier.get("earlier", []), last]}
