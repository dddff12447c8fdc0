"""Owns a guest on a served disk: what it does at random, what it may see then, and what a stop may leave."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

from cowtree.chain.view import open_chain
from cowtree.errors import CowtreeError
from cowtree.images.check import trusted
from cowtree.images.create import create
from cowtree.live.disk import Disk
from cowtree.plan.create import NewImage
from cowtree.storage.contract import Access, FileSystem
from cowtree.storage.memory import MemoryFiles
from cowtree.units import SECTOR_BYTES

WRITE, ZERO, KEEP, TRIM, FLUSH = "write", "zero", "zero and keep", "trim", "flush"
VERBS: Final = (WRITE, WRITE, WRITE, WRITE, ZERO, KEEP, TRIM, FLUSH)
TOP: Final = "top"


class Act(NamedTuple):
    """One thing that a guest asks for."""

    verb: str
    offset: int = 0
    length: int = 0
    byte: int = 0
    is_durable: bool = False


def random_acts(choose: random.Random, size_bytes: int, count: int, unit: int = SECTOR_BYTES) -> list[Act]:
    """What a guest might do, at multiples of a unit, in pieces that are mostly small."""
    acts = []
    for _ in range(count):
        offset = choose.randrange(size_bytes // unit) * unit
        length = min(choose.randint(1, choose.choice((2, 20, 200))) * unit, size_bytes - offset)
        acts.append(Act(choose.choice(VERBS), offset, length, choose.randint(1, 255), choose.random() < 0.1))
    return acts


def act_on(disk: Disk, act: Act) -> None:
    """Do it."""
    if act.verb == WRITE:
        disk.write(act.offset, memoryview(bytes([act.byte]) * act.length), is_durable=act.is_durable)
    elif act.verb in (ZERO, KEEP):
        trims = act.verb == ZERO
        disk.write_zeroes(act.offset, act.length, may_trim=trims, is_fast=False, is_durable=act.is_durable)
    elif act.verb == TRIM:
        disk.trim(act.offset, act.length, is_durable=act.is_durable)
    else:
        disk.flush()


def act_on_array(model: bytearray, act: Act, disk: Disk) -> None:
    """Do the same to a plain array; what was trimmed is what the disk shows."""
    stop = act.offset + act.length
    if act.verb == TRIM:
        model[act.offset : stop] = disk.read(act.offset, act.length)
    elif act.verb != FLUSH:
        model[act.offset : stop] = bytes([act.byte if act.verb == WRITE else 0]) * act.length


@contextmanager
def serving(files: FileSystem, path: str = TOP, image_format: str = "qcow2") -> Iterator[Disk]:
    """The image as a disk for writing; it is mended first when it was not closed well. When the guest fails it is left
    as it is.
    """
    chain = open_chain(files, path, image_format, Access.WRITE)
    try:
        disk = Disk(trusted(chain, 0), is_read_only=False)
        yield disk
        disk.close()
    finally:
        chain.close()


class Guest:
    """Knows of each sector what may be read there now, and what may be there after a stop."""

    def __init__(self, content: bytes) -> None:
        sectors = [content[at : at + SECTOR_BYTES] for at in range(0, len(content), SECTOR_BYTES)]
        self.now = [{each} for each in sectors]
        self.later = [{each} for each in sectors]

    def do(self, disk: Disk, acts: Sequence[Act]) -> Iterator[Act]:
        """Do all of it, one after the other; yields each act that is done. What fails may have been done or not."""
        for act in acts:
            if act.verb != FLUSH:
                self.begin(act)
            try:
                act_on(disk, act)
            except CowtreeError:
                continue
            self.end(act)
            yield act

    def _sectors(self, act: Act) -> range:
        return range(act.offset // SECTOR_BYTES, -(-(act.offset + act.length) // SECTOR_BYTES))

    def begin(self, act: Act) -> None:
        """It has begun: a stop leaves what was there, or what comes."""
        coming = bytes([act.byte if act.verb == WRITE else 0]) * SECTOR_BYTES
        for sector in self._sectors(act):
            self.now[sector] = self.now[sector] | {coming}
            self.later[sector] = self.later[sector] | {coming}

    def end(self, act: Act) -> None:
        """It has come back: what was there before is gone, and after a flush for ever."""
        if act.verb in (WRITE, ZERO, KEEP):
            for sector in self._sectors(act):
                self.now[sector] = {bytes([act.byte if act.verb == WRITE else 0]) * SECTOR_BYTES}
        if act.verb == FLUSH:
            self.later = list(self.now)
        elif act.is_durable:
            # All that was done before is durable with it.
            self.later = list(self.now)

    def copy(self) -> "Guest":
        """What is known at this moment."""
        other = Guest(b"")
        other.now, other.later = list(self.now), list(self.later)
        return other

    def check(self, seen: bytes, *, is_stopped: bool) -> None:
        """Fail when a sector shows what it must not."""
        for sector, allowed in enumerate(self.later if is_stopped else self.now):
            found = seen[sector * SECTOR_BYTES : (sector + 1) * SECTOR_BYTES]
            assert found in allowed, f"sector {sector} shows {found[:8]!r}, not one of {[each[:8] for each in allowed]}"


def make(choose: random.Random, size_bytes: int, **given: object) -> MemoryFiles:
    """An image with a backing file, both with something in them."""
    files = MemoryFiles()
    bits = choose.randint(9, 14)
    create(files, NewImage("base", "qcow2", size_bytes, choose.randint(9, 12)))
    top = NewImage(TOP, "qcow2", size_bytes, bits, backing_file="base", backing_format="qcow2")
    create(files, top._replace(**given))  # type: ignore[arg-type]
    for path in ("base", TOP):
        with serving(files, path) as disk:
            for act in random_acts(choose, size_bytes, 6):
                act_on(disk, act._replace(verb=WRITE))
    return files
