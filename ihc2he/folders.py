"""The folder of a run: who may write in it, what a start that failed leaves, and what continues the run in it.

Imports neither torch nor Lightning, since Hydra loads it for every command line.
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
# Arguments of models and data that leave the weights of the next step as they would have been: lengths, speed, places
# of files, and how results are judged.
FREE = {
    "n_epochs", "n_epochs_decay", "T_max", "compile", "channels_last", "workers", "num_workers", "root", "path",
    "store", "download", "rebuild", "weights", "eval_batch_size", "metrics", "features", "window", "overlap", "tta",
    "ensemble",
}  # fmt: skip
BINDING = ("seed", "model", "data")  # keys of the root that decide what is learned
OF_A_LAUNCH = ("ckpt_path", "out", "paths", "stages")  # which belong to a command, not to the run
RESTORED = ("model.optimizer", "model.scheduler", "model.lr_")  # settings that a checkpoint brings
SHOWN = 5  # differences that are named

_found: dict[Path, set[Path]] = {}  # what was in a folder before this process had written anything; absent: no folder


class NoteFolder(Callback):
    """Notes what a run's folder holds before Hydra makes it, or a log in it."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note the files."""
        try:
            folder = Path(config.hydra.run.dir)
        except OmegaConfBaseException:  # which Hydra meets next, and tells
            return
        if folder.is_dir():
            _found[folder.resolve()] = set(folder.iterdir())


class Difference(NamedTuple):
    """A key whose value is not that of the run's configuration.

    Attributes:
        key: dotted.
        was: value of the run.
        now: value of this command.
        binds: whether a continuation of the run must not change it.
    """

    key: str
    was: Any
    now: Any
    binds: bool

    def __str__(self) -> str:
        return f"{self.key}={self.was}, not {self.now}"


@contextmanager
def alone_in(folder: Path, cfg: Mapping[str, Any]) -> Iterator[None]:
    """Keep every other run out of a run's folder; a start that leaves no record leaves nothing of its own there.

    Raises:
        ConfigError: where the folder holds a run that is not to be continued, or that is going on.
    """
    busy = f"{folder}: another process is writing this run. Wait for its end, or choose another hydra.run.dir."
    try:
        with exclusive(folder / LOCK, busy):
            if (folder / "run.json").exists() and cfg["ckpt_path"] is None:
                msg = f"{folder} already holds a run. Continue it with ckpt_path=auto, or choose another hydra.run.dir."
                raise ConfigError(msg)
            for left in folder.glob("checkpoints/.*.part.ckpt"):  # of a run that was killed while it wrote
                left.unlink()
            yield
    finally:
        if not (folder / "run.json").exists():  # it could not start
            _tidy(folder)


def _tidy(folder: Path) -> None:
    """Delete the lock and the logs that this process has made in a folder, and the folder if it made that too."""
    before = {path.name for path in _found.get(folder.resolve(), ())}
    for path in list(folder.iterdir()):
        if path.name not in before and (path.name == LOCK or path.suffix == ".log"):
            path.unlink(missing_ok=True)
    if folder.resolve() not in _found and not any(folder.iterdir()):
        folder.rmdir()


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Return in what the configuration of a run and that of a command which continues it differ.

    What belongs to a command is left out, and so are paths into the run's own folder. A key that only one of the two
    has, as those of another version of this package, does not bind.

    >>> [str(found) for found in differences({"seed": 1, "tags": []}, {"seed": 2, "tags": []})]
    ['seed=1, not 2']
    """
    return list(_differ(_relative(was), _relative(now), ""))


def _relative(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration without what belongs to a command, and with paths into its own folder by a short name."""
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
    """Return what a command changes of the run that its folder or its checkpoint's holds; say so.

    Args:
        folder: of this command.
        cfg: its configuration.
        checkpoint: from which it starts.
        trains: whether it goes on training; what is only judged may differ in anything.

    Raises:
        ConfigError: where it trains on in the run's own folder and changes what the run learns, or what it learns from;
            or in the folder of another run.
    """
    home = Path(checkpoint).resolve().parent.parent  # of RUN/checkpoints/NAME.ckpt
    own = home == folder.resolve()
    if trains and not own and (folder / "run.json").is_file():
        msg = f"{folder} holds another run than the one of ckpt_path={checkpoint}. Choose another hydra.run.dir."
        raise ConfigError(msg)
    if not (own or trains) or not (home / "config.yaml").is_file():
        return []
    found = differences(OmegaConf.to_container(OmegaConf.load(home / "config.yaml")), cfg)  # type: ignore[arg-type]
    binding = [difference for difference in found if difference.binds]
    if binding and own and trains:
        msg = (
            f"{folder}: this run was begun with {_listed(binding)}. Continue it with the values of its begin; or "
            f"begin another run from its checkpoint, in another folder: ckpt_path={checkpoint}"
        )
        raise ConfigError(msg)
    if found:
        log.warning("Other than in the run of %s: %s.", checkpoint, _listed(found))
        kept = [one.key for one in found if one.key.startswith(RESTORED)]
        if kept and trains:
            log.warning("A checkpoint brings the state of the optimisers, so the run's own %s holds.", ", ".join(kept))
    return [str(difference) for difference in found]


def _listed(found: list[Difference]) -> str:
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return "; ".join(str(difference) for difference in found[:SHOWN]) + more


def earlier_record(folder: Path) -> dict[str, Any] | None:
    """Return what `run.json` of a folder says, or None without one; one that cannot be read is said, and lost."""
    file = folder / "run.json"
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read (%s), so what it said of the run until now is lost.", file, error)
        return None
    return found if isinstance(found, dict) else None


def joined(earlier: dict[str, Any] | None, record: dict[str, Any], trains: bool) -> dict[str, Any]:
    """Return the content of `run.json`: the record of this command together with what the folder's run had said.

    Args:
        earlier: of the folder's run; None without one.
        record: of this command.
        trains: a command that trains takes the place of the earlier, which is kept below `earlier`; one that does not
            is added below `afterwards`.

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
