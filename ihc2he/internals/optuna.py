"""Private parts of Optuna that are used here: texts of its errors."""

from __future__ import annotations

_NO_TRIAL = ("Record does not exist.", "No trials are completed yet.")


def no_trial_succeeded(error: BaseException) -> bool:
    """Return whether an error means that a study has no trial with a value."""
    return str(error) in _NO_TRIAL
