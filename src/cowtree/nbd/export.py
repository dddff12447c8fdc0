"""What a server serves: the contract between the protocol and whatever holds the bytes."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from cowtree.nbd import wire


class Blocks(NamedTuple):
    """Of which lengths and offsets must be multiples, which are best, and how much may be asked for. Units: bytes."""

    minimum: int = 1
    preferred: int = 4096
    maximum: int = wire.PAYLOAD_BYTES_MAX


class Export(Protocol):
    """A disk under a name. All ranges lie inside it: whoever calls has seen to that.

    Several threads call at once. After `flush` all that was written before by anybody survives a power loss. Every
    failure is a CowtreeError; its fact `errno` tells the client which.
    """

    @property
    def description(self) -> str:
        """What it is, for people."""

    @property
    def size_bytes(self) -> int:
        """How large it is."""

    @property
    def is_read_only(self) -> bool:
        """Whether nothing can be written."""

    @property
    def blocks(self) -> Blocks:
        """Its block sizes."""

    @property
    def contexts(self) -> Sequence[str]:
        """The names of what `status` can be asked for."""

    def read(self, offset: int, length: int) -> bytes | bytearray | memoryview:
        """Read exactly so much."""

    def write(self, offset: int, data: memoryview, *, is_durable: bool) -> None:
        """Write all of it."""

    def write_zeroes(self, offset: int, length: int, *, may_trim: bool, is_fast: bool, is_durable: bool) -> None:
        """Let a range read as zeroes, with space of its own unless it may be trimmed. Raises: an error with ENOTSUP
        when it is to be fast and cannot.
        """

    def trim(self, offset: int, length: int, *, is_durable: bool) -> None:
        """Nobody needs what is there."""

    def cache(self, offset: int, length: int) -> None:
        """It is read soon."""

    def flush(self) -> None:
        """Make everything durable."""

    def status(self, context: str, offset: int, length: int) -> Sequence[tuple[int, int]]:
        """What a context says of a range: lengths and flags, in order, from the offset on; it may end early."""


def transmission_flags(export: Export) -> int:
    """What is told of an export when it is opened."""
    flags = wire.HAS_FLAGS | wire.SEND_FLUSH | wire.SEND_DF | wire.CAN_MULTI_CONN | wire.SEND_CACHE
    if export.is_read_only:
        return flags | wire.READ_ONLY
    return flags | wire.SEND_FUA | wire.SEND_TRIM | wire.SEND_WRITE_ZEROES | wire.SEND_FAST_ZERO
