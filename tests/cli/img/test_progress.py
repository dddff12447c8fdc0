"""Percentages on standard output, answers to SIGUSR1, and the limit on the rate."""

import os
import signal
import sys
import time

import pytest

from cowtree.cli.img.command import PROGRESS, QUIET, Command, Given, parse
from cowtree.cli.img.progress import RATE, Limiter, Progress, limited
from cowtree.errors import WrongUse
from cowtree.monitor import Counting

COMMAND = Command("move", "", (PROGRESS, QUIET, RATE), "", lambda given: 0)


def given(*words: str) -> Given:
    return parse(COMMAND, words, "qemu-img")


def test_steps_rewrite_one_line_and_the_end_ends_it(capsys: pytest.CaptureFixture[str]):
    with Progress(given("-p"), step_percent=1.0) as progress:
        progress.show(0)
        progress.expect(400)
        progress.advance(3)
        progress.advance(2)
        progress.advance(395)
        progress.show(100)
    steps = ["    (0.00/100%)", "    (1.25/100%)", "    (100.00/100%)", "\n"]
    assert capsys.readouterr().out == "\r".join(steps)


@pytest.mark.parametrize("words", [(), ("-q",), ("-p", "-q")])
def test_nothing_is_shown_unasked_or_in_quiet(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]):
    with Progress(given(*words), step_percent=1.0) as progress:
        progress.show(0)
        progress.expect(4)
        progress.advance(4)
        progress.show(100)
    assert capsys.readouterr() == ("", "")


def test_a_failure_ends_the_line(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(ZeroDivisionError), Progress(given("-p"), step_percent=1.0) as progress:
        progress.show(1 / 0)
    assert capsys.readouterr().out == "\n"


def test_the_percentage_stays_when_more_becomes_known():
    progress = Progress(given("-q"), step_percent=1.0)
    progress.show(0)
    progress.expect(10)
    progress.advance(9)
    progress.expect(90)
    assert progress.percent == 90.0
    progress.advance(86)
    assert progress.percent == 95.0


def test_a_signal_asks_how_far_it_is(capfd: pytest.CaptureFixture[str]):
    with Progress(given(), step_percent=1.0) as progress:
        progress.expect(8)
        progress.advance(1)
        os.kill(os.getpid(), signal.SIGUSR1)
    # One that comes when the work is done must not end the process.
    os.kill(os.getpid(), signal.SIGUSR1)
    assert capfd.readouterr() == ("", "    (12.50/100%)\n" * 2)


def test_a_signal_is_nothing_when_progress_is_shown(capfd: pytest.CaptureFixture[str]):
    with Progress(given("-p"), step_percent=1.0):
        os.kill(os.getpid(), signal.SIGUSR1)
    assert capfd.readouterr() == ("\n", "")


def test_the_work_goes_on_when_nobody_reads(monkeypatch: pytest.MonkeyPatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", closefd=False) as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        with Progress(given("-p"), step_percent=1.0) as progress:
            progress.show(0)
            progress.expect(10)
            progress.advance(5)
        monkeypatch.undo()
        assert progress.percent == 50.0
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)
    os.close(writer)


def test_a_limiter_keeps_the_rate_and_passes_on():
    counting = Counting()
    start_s = time.monotonic()
    limiter = Limiter(counting, 1000)
    limiter.expect(200)
    limiter.advance(50)
    limiter.advance(150)
    assert 0.2 <= time.monotonic() - start_s < 2
    assert (counting.total_bytes, counting.moved_bytes) == (200, 200)


def test_the_rate_is_read_as_qemu_reads_it():
    counting = Counting()
    assert limited(given(), counting) is counting
    assert limited(given("-r", "0"), counting) is counting
    assert isinstance(limited(given("-r", "1.5G"), counting), Limiter)
    with pytest.raises(WrongUse, match=r"^Invalid rate limit specified\. You may use k, M, G, T, P or E suffixes for"):
        limited(given("-r", "fast"), counting)
    with pytest.raises(WrongUse, match="Must be between 0 and 9223372036854775807"):
        limited(given("-r", "9999999E"), counting)
