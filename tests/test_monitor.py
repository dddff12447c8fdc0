"""Owns the proof that every monitor takes what the contract promises, and that the counting one adds up."""

import inspect

import pytest

from cowtree.cli.img.progress import Progress
from cowtree.cli.progress import Bar
from cowtree.monitor import Counting, Monitor, Silent


def test_counting_adds_up_what_is_expected_and_what_is_moved():
    monitor = Counting()
    monitor.expect(100)
    monitor.advance(30)
    monitor.expect(50)
    monitor.advance(40)
    assert (monitor.total_bytes, monitor.moved_bytes) == (150, 70)


def test_silence_keeps_nothing():
    monitor = Silent()
    monitor.expect(100)
    monitor.advance(30)
    assert not vars(monitor)


@pytest.mark.parametrize("form", [Silent, Counting, Progress, Bar])
def test_every_form_takes_what_the_contract_promises(form: type):
    for name in ("expect", "advance"):
        assert inspect.signature(getattr(form, name)) == inspect.signature(getattr(Monitor, name))
