"""The hand-over to worker processes: order, bounds, failures, and an end."""

import operator
import threading

import pytest

from ihc2he.models.handover import Handover


@pytest.mark.parametrize("workers", [0, 1])
def test_items_come_back_in_order_with_their_results(workers):
    handover = Handover(workers)
    for i in range(5):
        handover.add(i, jobs := [handover.submit(operator.mul, i, 3, nbytes=1) for _ in range(2)])
    assert [job.result() for job in jobs] == [12, 12]
    assert list(handover.ready(last=True)) == [0, 1, 2, 3, 4]
    assert len(handover) == 0
    handover.close()
    assert handover.pool is None
    assert handover.submit(operator.mul, 2, 3, nbytes=1).result() == 6  # it starts anew
    handover.close()


def test_no_item_overtakes_another_and_what_is_ready_is_not_waited_for():
    handover, gate = Handover(0), threading.Event()
    handover.add("slow", [handover.submit(gate.wait, 10, nbytes=1)])
    handover.add("quick", [])
    assert list(handover.ready()) == []
    gate.set()
    assert list(handover.ready(last=True)) == ["slow", "quick"]
    handover.close()


def test_no_more_waits_than_may_and_what_is_done_is_let_go():
    handover, gate = Handover(0, most=3), threading.Event()
    jobs = [handover.submit(gate.wait, 10, nbytes=1) for _ in range(3)]
    handover.wait()
    assert handover.nbytes == 3
    jobs.append(handover.submit(gate.wait, 10, nbytes=1))
    gate.set()
    handover.wait()
    assert handover.nbytes <= 3
    assert jobs[0].done()
    [job.result() for job in jobs]
    handover.wait()
    assert handover.nbytes == 0
    handover.close()


def test_a_failure_reaches_the_caller():
    handover = Handover(0)
    job = handover.submit(operator.truediv, 1, 0, nbytes=1)
    with pytest.raises(ZeroDivisionError):
        job.result()
    with pytest.raises(ZeroDivisionError):
        handover.wait()
    handover.close()


def test_after_its_end_nothing_is_left():
    handover, gate = Handover(0), threading.Event()
    for name in "ab":
        handover.add(name, [handover.submit(gate.wait, 10, nbytes=5)])
    gate.set()
    handover.close()
    assert (len(handover), handover.nbytes, list(handover.ready(last=True))) == (0, 0, [])
