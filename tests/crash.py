"""Owns how a whole operation is stopped everywhere: killed, failed, and cut from its power.

A trial runs an operation on fresh copies of the same files in memory. What a stop leaves must pass the trial's check;
then the operation is run again, and must come to its end. Equal states are judged once.
"""

import errno
import itertools
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from cowtree import extents as ex
from cowtree.chain import gate
from cowtree.chain.load import load_image
from cowtree.chain.view import Chain, open_chain, resolve, through_snapshot
from cowtree.errors import StorageFailed
from cowtree.execute.read import pages
from cowtree.execute.writer import LayerWriter
from cowtree.images.check import check, open_to_check, repair_counts
from cowtree.images.create import temporary_name
from cowtree.plan.put import Wish
from cowtree.storage.contract import Access, FileSystem
from cowtree.storage.faults import AFTER, BEFORE, MIDDLE, Call, Fault, FaultyFiles, Killed
from cowtree.storage.memory import MemoryFiles
from cowtree.storage.powercut import durable_states, find_undurable
from cowtree.storage.recording import Event, RecordingFiles

Operation = Callable[[FileSystem], object]
Check = Callable[[MemoryFiles, bool], None]

# What may be done in part.
LONG_CALLS: Final = ("pwrite", "clone")
ERRORS: Final = (errno.ENOSPC, errno.EIO)


class Stopped(NamedTuple):
    """What was left when an operation ended, well or not."""

    files: MemoryFiles
    log: list[Event]
    calls: list[Call]
    error: BaseException | None


class Trial:
    """One operation, the files that it starts from, and what must hold in every state: `check(files, is_done)` raises
    when something is wrong; it may change the files.
    """

    def __init__(self, initial: Mapping[str, bytes], operation: Operation, check: Check) -> None:
        self.initial = dict(initial)
        self.states: list[tuple[str, MemoryFiles]] = []
        self.operation = operation
        self.check = check
        self._judged: set[tuple[object, ...]] = set()

    def run(self, fault: Fault | None = None) -> Stopped:
        """Run the operation from the start, with a fault."""
        inner = MemoryFiles(self.initial)
        recording = RecordingFiles(inner)
        faulty = FaultyFiles(recording, fault)
        error: BaseException | None = None
        try:
            self.operation(faulty)
        except (StorageFailed, Killed) as caught:
            error = caught
        assert not inner.held(), f"{fault}: still open: {inner.held()}"
        return Stopped(inner, recording.log, faulty.calls, error)

    def judge(self, files: MemoryFiles, how: str, *, is_done: bool = False) -> None:
        """Check a state; unless the operation is done, run it again to its end and check that."""
        key = (is_done, *files.key())
        if key in self._judged:
            return
        self._judged.add(key)
        self.states.append((how, files.copy()))
        try:
            self.check(files.copy(), is_done)
            if not is_done:
                again = files.copy()
                how += "\nand then it is run again"
                self.operation(again)
                self.check(again, True)
        except Exception as error:
            raise AssertionError(how) from error

    def from_here(self, files: MemoryFiles) -> "Trial":
        """The same trial from another start, which a stop has left."""
        return Trial(files.snapshot(), self.operation, self.check)

    def sample(self, count: int, seed: int = 0) -> list[tuple[str, MemoryFiles]]:
        """Some of the states that were judged, for checks that take their time."""
        return random.Random(seed).sample(self.states, min(count, len(self.states)))


def run_through(trial: Trial) -> Stopped:
    """Run the operation without a fault: it ends well, and all that it did is durable."""
    ended = trial.run()
    assert ended.error is None, ended.error
    assert not find_undurable(ended.log), find_undurable(ended.log)
    trial.judge(ended.files, "it ends well", is_done=True)
    return ended


def kill_everywhere(trial: Trial) -> None:
    """Kill the operation before and after every call that changes something, and in the middle of every long one."""
    calls = run_through(trial).calls
    for number, call in enumerate(calls):
        moments = [BEFORE] + [MIDDLE] * (call.name in LONG_CALLS) + [AFTER] * (number == len(calls) - 1)
        for moment in moments:
            stopped = trial.run(Fault(number, moment=moment))
            assert isinstance(stopped.error, Killed), f"call {number} was not made again: {call}"
            trial.judge(stopped.files, f"killed {moment} call {number} of {len(calls)}: {call}")


def fail_everywhere(trial: Trial) -> None:
    """Let every call that changes something fail: with a full disk and a broken one, once and for ever; writes also
    when they were half done. What a power cut leaves after a failed flush must be right, too.
    """
    calls = run_through(trial).calls
    for fault in itertools.chain.from_iterable(map(_faults, itertools.count(), calls)):
        stopped = trial.run(fault)
        how = f"{fault} of {len(calls)}: {calls[fault.call]}"
        if stopped.error is None:
            assert not find_undurable(stopped.log), how
        else:
            assert isinstance(stopped.error, StorageFailed), how
            assert stopped.error.facts["errno"] == fault.code, how
        trial.judge(stopped.files, how, is_done=stopped.error is None)
        if calls[fault.call].name == "flush":
            for state in durable_states(trial.initial, stopped.log, 0):
                trial.judge(state.files, f"{how}\n{state.how}")


def _faults(number: int, call: Call) -> Iterator[Fault]:
    for code, is_sticky in itertools.product(ERRORS, (False, True)):
        for moment in [BEFORE] + [MIDDLE] * (call.name in LONG_CALLS):
            yield Fault(number, code, moment, is_sticky)


def cut_power_everywhere(trial: Trial, seed: int = 0) -> None:
    """Cut the power after every event: see `powercut`."""
    log = run_through(trial).log
    for state in durable_states(trial.initial, log, seed):
        trial.judge(state.files, state.how)


def stop_everywhere(trial: Trial, seed: int = 0) -> None:
    """All of it."""
    kill_everywhere(trial)
    fail_everywhere(trial)
    cut_power_everywhere(trial, seed)


def trial_of_new(initial: Mapping[str, bytes], operation: Operation, made: Sequence[str]) -> Trial:
    """A trial of what makes new files: each of them is there whole or as it was before, and nothing else changes.
    The first one is never there without the others.
    """
    files = MemoryFiles(initial)
    operation(files)
    whole = files.snapshot()
    leftovers = {os.path.normpath(temporary_name(name)) for name in made}

    def check(files: MemoryFiles, is_done: bool) -> None:
        found = files.snapshot()
        if is_done:
            assert found == whole
        for name in found.keys() | initial.keys() | whole.keys():
            if name in leftovers:
                continue
            assert found.get(name) in (initial.get(name), whole.get(name) if name in made else initial.get(name)), name
        if found.get(made[0]) != initial.get(made[0]):
            assert all(found.get(name) == whole[name] for name in made)

    return Trial(initial, operation, check)


def guest_view(files: FileSystem, path: str, image_format: str | None = None) -> bytes:
    """What the guest sees through the chain. For small images."""
    chain = open_chain(files, path, image_format)
    try:
        return read_all(chain)
    finally:
        chain.close()


def snapshot_views(files: FileSystem, path: str) -> dict[str, bytes]:
    """What each internal snapshot of an image holds itself; zeroes where it leaves it to a backing file."""
    layer = gate.open_layer(files, path, gate.QCOW2)
    try:
        image = load_image(layer)
        alone = Chain((layer,), (image,))
        found = image.snapshots if image else ()
        return {each.name: read_all(through_snapshot(alone, [(each.id, None)])) for each in found}
    finally:
        layer.close()


def read_all(chain: Chain) -> bytes:
    """All that a chain shows."""
    seen, everything = resolve(chain, 0, chain.size_bytes), ex.one_range(0, chain.size_bytes)
    return b"".join(bytes(page.data) for page in pages(chain, seen, everything))


def assert_sound(files: FileSystem, path: str, *, is_done: bool) -> None:
    """Fail when a qcow2 image has a wrong table, count or flag; when all is done also for a leak or a dirty bit."""
    layer = open_to_check(files, path, gate.QCOW2)
    try:
        said: list[str] = []
        report = check(layer, tell=lambda finding: said.extend(finding.sentences()))
    finally:
        layer.close()
    assert report is not None
    assert report.failure is None, report.failure
    assert not report.internal_error_count, said
    assert not report.corruption_count, said
    if is_done:
        assert report.is_clean, said
        assert layer.header is not None
        assert not layer.header.is_dirty


def write_more(files: FileSystem, path: str, patches: Mapping[int, bytes]) -> None:
    """Write bytes to guest offsets through the top of a chain, as a guest would. Counts are trusted as they are, but
    where a dirty bit says not to.
    """
    chain = open_chain(files, path, gate.QCOW2, Access.WRITE)
    source = MemoryFiles({"patch": patched(bytes(chain.size_bytes), patches)})
    raw = gate.open_layer(source, "patch", gate.RAW)
    try:
        image = chain.images[0]
        if image and image.header.is_dirty:
            chain = chain.with_image(0, repair_counts(chain.top, image))
        shown, count = resolve(chain, 0, chain.size_bytes), len(chain.layers)
        wanted = ex.concatenate(
            [ex.single(at, at + len(data), ex.DATA, layer=count, host_offset=at) for at, data in patches.items()]
        )
        writer = LayerWriter(Chain((*chain.layers, raw), (*chain.images, None)), 0)
        writer.put(Wish(wanted, shown, shown, count > 1), 0, chain.size_bytes)
        writer.finish()
    finally:
        chain.close()
        raw.close()


def patched(data: bytes, patches: Mapping[int, bytes]) -> bytes:
    """The bytes with some of them replaced."""
    changed = bytearray(data)
    for offset, patch in patches.items():
        changed[offset : offset + len(patch)] = patch
    return bytes(changed)
