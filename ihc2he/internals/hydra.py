"""What is used of Hydra that it does not promise to keep: the error of a job, without the line that it prints."""

from __future__ import annotations

from typing import Any

from hydra.core.utils import JobReturn


def outcome(job: JobReturn) -> Any:
    """Return what a job has returned, or the exception that ended it.

    The public `return_value` raises that exception and writes on stderr.
    """
    return job._return_value
