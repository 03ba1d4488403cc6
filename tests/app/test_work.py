"""Sessions, the queue, and the command line."""

import socket
import threading
import time
from types import SimpleNamespace

import pytest

pytest.importorskip("uvicorn", reason='needs uvicorn: pip install "ihc2he[app]"')

from ihc2he.app import tuning
from ihc2he.app.__main__ import main
from ihc2he.app.tuning import Tuning
from ihc2he.app.work import KEPT, Queue, Sessions, StoppedError
from ihc2he.errors import ConfigError


def test_jobs_wait_for_each_other_and_can_be_stopped():
    queue, gate = Queue(), threading.Event()

    def first(job):
        gate.wait(5)
        job.say(1, 2)
        return "made"

    jobs = [queue.add(first), queue.add(lambda job: "second"), queue.add(lambda job: "third")]
    deadline = time.monotonic() + 5
    while jobs[0].state == "waiting" and time.monotonic() < deadline:
        time.sleep(0.005)
    assert [queue.before(job) for job in jobs] == [0, 0, 1]
    jobs[1].stop()
    gate.set()
    while jobs[2].state in ("waiting", "running") and time.monotonic() < deadline:
        time.sleep(0.005)
    assert [job.state for job in jobs] == ["done", "stopped", "done"]
    assert (jobs[0].result, jobs[0].done, jobs[0].total) == ("made", 1, 2)
    with pytest.raises(StoppedError):
        jobs[1].say(0, 1)


def test_at_the_end_running_jobs_are_stopped_too():
    queue, gate, running = Queue(), threading.Event(), threading.Event()
    jobs = [queue.add(lambda job: running.set() or gate.wait(5))]
    assert running.wait(5)
    jobs.append(queue.add(lambda job: "second"))
    queue.close()
    gate.set()
    assert [job.state for job in jobs] == ["stopped", "stopped"]


@pytest.mark.parametrize(
    ("error", "said"),
    [(ConfigError("Too large."), "Too large."), (ZeroDivisionError("x"), "The program failed (ZeroDivisionError: x).")],
)
def test_a_failed_job_says_why(error, said):
    def fail(job):
        raise error

    queue = Queue()
    job = queue.add(fail)
    queue._pool.shutdown()
    assert (job.state, job.error) == ("failed", said)


def test_a_session_keeps_few_things_and_ends_after_a_time():
    sessions = Sessions(keep_minutes=1)
    key, one = sessions.get(None)
    assert sessions.get(key) == (key, one)
    assert sessions.get("made up")[0] != "made up"
    for number in range(KEPT + 2):
        one.keep(one.images, str(number), number)
    assert list(one.images) == [str(number) for number in range(2, KEPT + 2)]
    one.seen -= 61
    sessions.sweep()
    assert sessions.get(key)[0] != key


def test_the_quietest_session_ends_where_memory_is_short():
    sessions = Sessions(keep_minutes=1)
    keys = []
    for age in (2, 3, 1):
        key, one = sessions.get(None)
        one.seen -= age
        one.images["a"] = SimpleNamespace(nbytes=10)
        keys.append(key)
    sessions.trim(most=20)
    assert len(sessions) == 2
    assert sessions.get(keys[1])[0] != keys[1]
    assert sessions.get(keys[2])[0] == keys[2]


def test_a_training_that_does_not_end_by_itself_is_ended(tmp_path, monkeypatch):
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(99)"
    )
    monkeypatch.setattr(tuning, "command", lambda *_: ["-c", deaf])
    monkeypatch.setattr(tuning, "_GRACE_S", 0.1)
    monkeypatch.setattr(tuning, "tiles", lambda _: [{"um_per_px": "0.5"}])
    training = Tuning(tmp_path, None, tmp_path / "run")
    while "deaf" not in (tmp_path / "run" / "output.txt").read_text():
        time.sleep(0.02)
    training.stop()
    assert training.status()["state"] == "failed"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prot=1"], "'prot=1' is not a name=value that ihc2he.app accepts. Did you mean 'port'?"),
        (["port=x"], "port=x is not a whole number."),
        (["port=70000"], "upload_mb=256 and keep_minutes=30 have to be above 0, port=70000 0 to 65535."),
        (["path=nowhere"], "path=nowhere: there is no such folder."),
        (["weights=nowhere"], "nowhere"),
    ],
)
def test_mistakes_end_in_one_line_and_status_2(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1


def test_a_port_that_is_taken_is_named(capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main([f"port={port}"]) == 2
    assert capsys.readouterr().err.startswith(f"host=127.0.0.1 port={port}: cannot be served there (")
