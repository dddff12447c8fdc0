"""Carrying out steps on one file, in their order."""

from collections.abc import Iterable

from cowtree.chain.view import Chain
from cowtree.monitor import Monitor
from cowtree.steps import Allocate, Flush, Move, Step, Truncate, Write, Zero
from cowtree.storage.contract import Storage


def run(steps: Iterable[Step], target: Storage, chain: Chain, monitor: Monitor, data: Storage | None = None) -> None:
    """Carry out the steps on `target`; data of moves is read through the layers of `chain`, and goes to `data` when
    guest data does not lie in `target` itself.
    Raises: StorageFailed. What was flushed before stays.
    """
    payload = data or target
    for step in steps:
        match step:
            case Write(offset, content):
                target.pwrite(offset, content)
            case Zero(offset, length, is_data):
                (payload if is_data else target).write_zeroes(offset, length)
            case Allocate(offset, length):
                target.allocate(offset, length)
            case Move():
                from cowtree.execute.copier import copy  # noqa: PLC0415  its threads would be loaded for nothing

                copy(chain, step, payload, monitor)
            case Truncate(size_bytes):
                target.truncate(size_bytes)
            case Flush():
                if payload is not target:
                    payload.flush()
                target.flush()
