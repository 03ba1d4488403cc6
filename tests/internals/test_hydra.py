import pytest
from hydra.core.utils import JobReturn, JobStatus

from ihc2he.internals.hydra import outcome


def test_the_outcome_of_a_job_is_its_value_or_its_error(capsys):
    done, failed = JobReturn(), JobReturn()
    done.return_value, done.status = 0.5, JobStatus.COMPLETED
    failed.return_value, failed.status = ValueError("no"), JobStatus.FAILED
    assert outcome(done) == done.return_value == 0.5
    assert str(outcome(failed)) == "no"
    assert capsys.readouterr().err == ""
    with pytest.raises(ValueError, match="no"):
        failed.return_value  # noqa: B018  # raises, and prints: what `outcome` is there to avoid
    assert capsys.readouterr().err
