"""Stopping at a safe point: Ctrl-C and SIGTERM end an operation between two steps, with a sentence."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

UNCHANGED: Final = "stopped before anything was changed"


@contextmanager
def stopping(told: str | None = None) -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does while the block runs: every moment of a merge is a safe one. What is `told` then
    is how things stand, if the same command would not simply go on.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(*([told] if told else [])) from None
    finally:
        signal.signal(signal.SIGTERM, before)
