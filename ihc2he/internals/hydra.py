"""Private parts of Hydra that are used here: the error of a job, without the line that Hydra prints."""

from __future__ import annotations

from typing import Any

from hydra.core.utils import JobReturn


def outcome(job: JobReturn) -> Any:
    """Return the result of a job, or the exception that ended it.

    The public `return_value` raises that exception and writes on stderr.
    """
    return job._return_value
