"""Which layers of a disk a job works on."""

import threading

import pytest

from cowtree.errors import Refused
from cowtree.live.claims import Claims


def test_two_jobs_that_do_not_touch_run_at_once():
    claims = Claims()
    with claims.hold(frozenset({1, 2}), threading.Event()), claims.hold(frozenset({3}), threading.Event()):
        with pytest.raises(Refused), claims.hold(frozenset({2, 4}), threading.Event()):
            pass
        with claims.hold(frozenset({4}), threading.Event()):
            pass
    with claims.hold(frozenset({2, 4}), threading.Event()):
        pass


def test_the_end_stops_every_job_and_waits_for_it():
    claims, stop, said = Claims(), threading.Event(), list[str]()
    begun = threading.Event()

    def job() -> None:
        with claims.hold(frozenset({1}), stop):
            begun.set()
            stop.wait(10)
            said.append("job")

    thread = threading.Thread(target=job)
    thread.start()
    begun.wait(10)
    claims.end()
    said.append("end")
    thread.join(10)
    assert said == ["job", "end"]
    with pytest.raises(Refused), claims.hold(frozenset({1}), threading.Event()):
        pass
