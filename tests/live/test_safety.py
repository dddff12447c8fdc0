"""Safety of a served disk: stopped at every change of a file, cut from power, failed; see `docs/architecture.md`."""

import errno
import random
from typing import Final, NamedTuple

import pytest

from cowtree.errors import StorageFailed
from cowtree.images import snapshot
from cowtree.storage.faults import AFTER, BEFORE, MIDDLE, Call, Fault, FaultyFiles, Killed
from cowtree.storage.memory import MemoryFiles
from cowtree.storage.powercut import durable_states
from cowtree.storage.recording import Event, RecordingFiles
from tests.crash import LONG_CALLS, assert_sound, guest_view, snapshot_views
from tests.live.guests import TOP, Guest, act_on, make, random_acts, serving

SIZE_BYTES: Final = 96 << 10
ACT_COUNT: Final = 12
# So many stops are tried for each seed, chosen at random.
KILL_COUNT: Final = 15
STATE_COUNT: Final = 40
FAULT_COUNT: Final = 8


class Trial(NamedTuple):
    """Files to start from, and what the guest does."""

    files: MemoryFiles
    seed: int

    def run(self, files: MemoryFiles, fault: Fault | None = None) -> "Ended":
        """Let the guest do it all, with a fault."""
        recording = RecordingFiles(files)
        faulty = FaultyFiles(recording, fault)
        guest = Guest(guest_view(files, TOP))
        moments = [(0, guest.copy())]
        try:
            with serving(faulty) as disk:
                for _ in guest.do(disk, random_acts(random.Random(self.seed), SIZE_BYTES, ACT_COUNT)):
                    moments.append((len(recording.log), guest.copy()))
                disk.flush()
                guest.later = list(guest.now)
        except (Killed, StorageFailed):
            pass
        return Ended(files, recording.log, faulty.calls, guest, moments)


class Ended(NamedTuple):
    """What is left, and what the guest knew after how many events."""

    files: MemoryFiles
    log: list[Event]
    calls: list[Call]
    guest: Guest
    moments: list[tuple[int, Guest]]


def started(seed: int) -> Trial:
    """An image over a backing file; some have internal snapshots, subclusters, wide or narrow counts, version 2."""
    choose = random.Random(seed)
    kind = seed % 4
    given: dict[str, object] = {}
    if kind == 1:
        given = {"has_subclusters": True, "cluster_bits": 14}
    elif kind == 2:
        given = {"version": 2}
    files = make(choose, SIZE_BYTES, **given)
    if kind in (0, 2):
        snapshot.create(files, TOP, "qcow2", name="before")
    return Trial(files, seed)


def judge(files: MemoryFiles, guest: Guest, before: dict[str, bytes]) -> None:
    """After a stop: what was flushed is there, snapshots are as they were, and the image is mended and works on."""
    guest.check(guest_view(files, TOP), is_stopped=True)
    assert_sound(files, TOP, is_done=False)
    assert snapshot_views(files, TOP) == before
    seen = bytearray(guest_view(files, TOP))
    with serving(files) as disk:
        for act in random_acts(random.Random(1), SIZE_BYTES, 4):
            act_on(disk, act)
        seen[:] = disk.read(0, SIZE_BYTES)
    assert guest_view(files, TOP) == seen
    assert snapshot_views(files, TOP) == before
    assert_sound(files, TOP, is_done=True)


@pytest.mark.slow
@pytest.mark.soak
def test_a_stop_anywhere_leaves_what_was_flushed(seed: int):
    trial = started(seed)
    before = snapshot_views(trial.files, TOP)
    ended = trial.run(trial.files.copy())
    judge(ended.files.copy(), ended.guest, before)
    faults = [
        Fault(number, moment=moment)
        for number, call in enumerate(ended.calls)
        for moment in [BEFORE] + [MIDDLE] * (call.name in LONG_CALLS) + [AFTER] * (number + 1 == len(ended.calls))
    ]
    for fault in random.Random(seed).sample(faults, min(len(faults), KILL_COUNT)):
        stopped = trial.run(trial.files.copy(), fault)
        try:
            judge(stopped.files, stopped.guest, before)
        except Exception as error:
            raise AssertionError(f"{fault} of {len(ended.calls)}: {ended.calls[fault.call]}") from error


@pytest.mark.slow
@pytest.mark.soak
def test_a_power_cut_anywhere_leaves_what_was_flushed(seed: int):
    trial = started(seed)
    before = snapshot_views(trial.files, TOP)
    ended = trial.run(trial.files.copy())
    marks = [number for number, _ in ended.moments]
    states = list(durable_states(trial.files.snapshot(), ended.log, seed, marks))
    for state in random.Random(seed).sample(states, min(len(states), STATE_COUNT)):
        # What comes next may have begun: so much of it may be there as the guest knows of when it has ended.
        known = [index for index, number in enumerate(marks) if number <= state.number][-1]
        guest = ended.moments[known][1]
        coming = ended.moments[known + 1][1] if known + 1 < len(ended.moments) else ended.guest
        guest.later = [old | new for old, new in zip(guest.later, coming.now, strict=True)]
        try:
            judge(state.files, guest, before)
        except Exception as error:
            raise AssertionError(state.how) from error


@pytest.mark.slow
@pytest.mark.soak
def test_whatever_fails_the_guest_sees_what_it_wrote(seed: int):
    trial = started(seed)
    before = snapshot_views(trial.files, TOP)
    count = len(trial.run(trial.files.copy()).calls)
    choose = random.Random(seed)
    for number in choose.sample(range(count), min(count, FAULT_COUNT)):
        code, moment = choose.choice((errno.ENOSPC, errno.EIO)), choose.choice((BEFORE, MIDDLE))
        fault = Fault(number, code, moment, choose.random() < 0.5)
        files = trial.files.copy()
        try:
            failed = trial.run(files, fault)
            judge(failed.files, failed.guest, before)
        except Exception as error:
            raise AssertionError(fault) from error
