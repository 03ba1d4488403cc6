"""The command line: `python -m ihc2he.train experiment=NAME [key=value ...]`.

Composes the configuration, checks it, and hands it to the runner. Imports neither torch nor Lightning, so that
`--help`, `--cfg job` and typos get a quick answer.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ihc2he import config, explain, typed
from ihc2he.errors import ConfigError, Ihc2heError
from ihc2he.internals.matplotlib import load
from ihc2he.internals.optuna import no_trial_succeeded

EXPECTED = (Ihc2heError, HydraException, OmegaConfBaseException, OSError)
FULL_ERROR = os.environ.get("HYDRA_FULL_ERROR") == "1"  # the user wants tracebacks


_started = False  # whether a configuration was composed; errors before that are about the configuration


def run(cfg: DictConfig) -> float | None:
    """Check one composed configuration and run its stages; return the metric that a sweep optimises."""
    global _started  # noqa: PLW0603
    _started = True
    try:
        if not cfg.model:
            msg = "Nothing to run: pass experiment=NAME. `python -m ihc2he.train` without arguments lists them."
            raise ConfigError(msg)
        with _full_error(FULL_ERROR):  # what this process starts asks the user's own wish
            plain = cast(
                "dict[str, Any]", OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True, enum_to_str=True)
            )
            load()  # before torchmetrics does
            typed.restore_texts(plain, HydraConfig.get().overrides.task)
            config.preflight(plain)

            from ihc2he import launching, runner

            launching.pin_job_for_ddp_children()
            return runner.run(plain)
    except EXPECTED as error:
        if FULL_ERROR or HydraConfig.get().mode == RunMode.MULTIRUN:  # a sweep records it and continues
            raise
        _exit(error)


def main() -> None:
    """Run the command line; a user's mistake gives one line on stderr.

    Exit status: 2 for a mistake in the configuration, 1 for anything else.
    """
    global _started  # noqa: PLW0603
    _started = False
    explain.write_what_is_possible()
    folders, rest = typed.parse_options(sys.argv[1:])
    try:
        config.register()
        if not rest:
            print(explain.experiments([*folders, config.config_dir()]))
            return
        explain.warn_shadowed(folders, config.config_dir())
        sys.argv[1:] = typed.as_typed(sys.argv[1:])
        with _full_error(True):  # Hydra then raises instead of printing
            hydra.main(version_base="1.3", config_path=str(config.config_dir()), config_name="train")(run)()
    except EXPECTED as error:
        if FULL_ERROR:
            raise
        _exit(error)
    except Exception as error:
        if FULL_ERROR or (_started and not no_trial_succeeded(error)):
            raise
        if no_trial_succeeded(error):
            _exit(ConfigError("No trial of the study succeeded; sweep.csv in the folder of the sweep says why."))
        cause = explain.unreadable_file(sys.argv) or f"{explain.one_line(error)} ({type(error).__name__}). Check it."
        given = " ".join(sys.argv[1:])[:300]
        _exit(ConfigError(f"The configuration cannot be composed: {cause} Given: {given}"))


def _exit(error: Exception) -> NoReturn:
    print(f"ihc2he: {explain.one_line(error)}", file=sys.stderr)
    sys.exit(2 if isinstance(error, ConfigError | HydraException | OmegaConfBaseException) else 1)


@contextmanager
def _full_error(wanted: bool) -> Iterator[None]:
    before = os.environ.pop("HYDRA_FULL_ERROR", None)
    if wanted:
        os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        os.environ.pop("HYDRA_FULL_ERROR", None)
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


if __name__ == "__main__":
    main()
