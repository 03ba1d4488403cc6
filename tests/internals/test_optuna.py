import pytest

from ihc2he.internals.optuna import no_trial_succeeded


def test_a_study_without_a_success_says_so():
    optuna = pytest.importorskip("optuna")
    study = optuna.create_study(storage="sqlite:///:memory:")
    with pytest.raises((KeyError, ValueError), match=r"Record|trials") as caught:
        study.best_trial  # noqa: B018
    assert no_trial_succeeded(caught.value)
    with pytest.raises((KeyError, ValueError), match=r"Record|trials") as caught:
        optuna.create_study().best_trial  # noqa: B018
    assert no_trial_succeeded(caught.value)
    assert not no_trial_succeeded(ValueError("another"))
