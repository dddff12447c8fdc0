"""How far a merge is, and how it is held back: lines, speed, time."""

import time

import pytest

from cowtree.cli.domain.merge import COMMANDS
from cowtree.cli.domain.merge_watch import Limited, Lines, TimeIsUp, bytes_per_s, watched
from cowtree.cli.domain.words import parse
from cowtree.errors import WrongUse
from cowtree.monitor import Counting, Silent


def given(*words):
    return parse(COMMANDS["blockpull"], ["vm", "vda", *words])


def test_percent_never_go_back_and_end_at_a_hundred(capsys):
    lines = Lines("Block Pull", is_wanted=True)
    for expected, moved in ((100, 5), (0, 60), (900, 5), (0, 900), (0, 30)):
        lines.expect(expected)
        lines.advance(moved)
    lines.end()
    lines.end()
    shown = [f"\rBlock Pull: [{percent:3} %]" for percent in (5, 65, 97, 99, 100)]
    assert capsys.readouterr().err == "".join(shown)


def test_nothing_is_shown_that_nobody_wants(capsys):
    lines = Lines("Block Pull", is_wanted=False)
    lines.expect(1)
    lines.advance(1)
    lines.end()
    assert capsys.readouterr().err == ""


def test_a_speed_is_held_and_all_is_passed_on(monkeypatch):
    now_s = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    monkeypatch.setattr(time, "sleep", lambda length_s: now_s.__setitem__(0, now_s[0] + length_s))
    counting = Counting()
    limited = Limited(counting, 100, None)
    limited.expect(250)
    for _ in range(5):
        limited.advance(50)
    assert now_s[0] == pytest.approx(2.5)
    assert (counting.total_bytes, counting.moved_bytes) == (250, 250)


def test_time_is_up_even_while_it_waits():
    begin_s = time.monotonic()
    with pytest.raises(TimeIsUp):
        Limited(Silent(), 1, 0.2).advance(1000)
    assert time.monotonic() - begin_s < 5


@pytest.mark.parametrize(
    ("words", "speed"),
    [((), 0), (("--bandwidth", "4"), 4 << 20), (("--bandwidth", "4M", "--bytes"), 4 << 20), (("512", "--bytes"), 512)],
)
def test_speeds_are_in_mebibytes_or_bytes(words, speed):
    assert bytes_per_s(given(*words)) == speed


@pytest.mark.parametrize("words", [("--bandwidth", "4M"), ("--bandwidth", "-1"), ("--bandwidth", "x", "--bytes")])
def test_speeds_that_are_none_are_refused(words):
    with pytest.raises(WrongUse, match="malformed or out of range"):
        bytes_per_s(given(*words))


def test_no_time_at_all_is_refused_and_what_ends_well_is_done(capsys):
    with pytest.raises(WrongUse, match="invalid timeout"), watched(given("--timeout", "0"), "x"):
        pass
    with watched(given("--verbose", "--timeout", "60"), "x") as monitor:
        monitor.expect(2)
        monitor.advance(1)
    assert capsys.readouterr().err == "\rx: [ 50 %]\rx: [100 %]"
