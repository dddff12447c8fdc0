"""Requests in flight."""

import threading
import time

from cowtree.live.traffic import IDLE, Traffic


def in_thread(act) -> threading.Thread:
    """Start something beside the test."""
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


def test_what_is_let_go_waits_for_the_requests_that_began_before():
    traffic, entered, leave = Traffic(), threading.Event(), threading.Event()

    def request() -> None:
        slot = traffic.enter()
        entered.set()
        leave.wait(10)
        slot[0] = IDLE

    thread = in_thread(request)
    entered.wait(10)
    turn = traffic.let_go()
    assert not traffic.has_passed(turn)
    leave.set()
    thread.join(10)
    assert traffic.has_passed(turn)


def test_a_request_that_begins_later_keeps_nobody_waiting():
    traffic, entered, leave = Traffic(), threading.Event(), threading.Event()
    turn = traffic.let_go()

    def request() -> None:
        traffic.enter()
        entered.set()
        leave.wait(10)

    thread = in_thread(request)
    entered.wait(10)
    assert traffic.has_passed(turn)
    leave.set()
    thread.join(10)


def test_who_asks_does_not_wait_for_itself():
    traffic = Traffic()
    traffic.enter()
    assert traffic.has_passed(traffic.let_go())


def test_a_drain_waits_for_requests_and_holds_new_ones():
    traffic, said, leave = Traffic(), list[str](), threading.Event()
    slot_is_taken = threading.Event()

    def first() -> None:
        slot = traffic.enter()
        slot_is_taken.set()
        leave.wait(10)
        said.append("first ends")
        slot[0] = IDLE

    def second() -> None:
        traffic.enter()
        said.append("second begins")

    threads = [in_thread(first)]
    slot_is_taken.wait(10)
    threading.Timer(0.05, leave.set).start()
    with traffic.drain():
        said.append("drained")
        threads.append(in_thread(second))
        time.sleep(0.05)
        said.append("drain ends")
    for thread in threads:
        thread.join(10)
    assert said == ["first ends", "drained", "drain ends", "second begins"]


def test_to_wait_past_holds_nobody():
    traffic, entered, leave, said = Traffic(), threading.Event(), threading.Event(), list[str]()

    def request() -> None:
        slot = traffic.enter()
        entered.set()
        leave.wait(10)
        said.append("request ends")
        slot[0] = IDLE

    def wait() -> None:
        traffic.wait_past()
        said.append("waited")

    thread = in_thread(request)
    entered.wait(10)
    waiting = in_thread(wait)
    time.sleep(0.02)
    traffic.enter()[0] = IDLE
    said.append("another ended")
    leave.set()
    thread.join(10)
    waiting.join(10)
    assert said == ["another ended", "request ends", "waited"]
