"""Stopping at a safe point: Ctrl-C and SIGTERM end an operation between two steps, with a sentence."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stopping() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does while the block runs: every moment of a merge is a safe one."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
