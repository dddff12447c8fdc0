"""Carrying out steps on one file, in their order."""

from collections.abc import Iterable

from cowtree.chain.view import Chain
from cowtree.execute.copier import copy
from cowtree.monitor import Monitor
from cowtree.steps import Allocate, Flush, Move, Step, Truncate, Write, Zero
from cowtree.storage.contract import Storage


def run(steps: Iterable[Step], target: Storage, chain: Chain, monitor: Monitor) -> None:
    """Carry out the steps on `target`; data of moves is read through the layers of `chain`.
    Raises: StorageFailed. What was flushed before stays.
    """
    for step in steps:
        match step:
            case Write(offset, data):
                target.pwrite(offset, data)
            case Zero(offset, length):
                target.write_zeroes(offset, length)
            case Allocate(offset, length):
                target.allocate(offset, length)
            case Move():
                copy(chain, step, target, monitor)
            case Truncate(size_bytes):
                target.truncate(size_bytes)
            case Flush():
                target.flush()
