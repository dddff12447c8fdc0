"""Structures on disk, written down as the specification prints them: offset, type, name.

A table that contradicts itself fails at import. Integers are big-endian. The standard library only, because the
start-up of `cowtree img info` pays for every import.
"""

import struct
from typing import NamedTuple

_CODES = {">u1": "B", ">u2": "H", ">u4": "I", ">u8": "Q"}

Field = tuple[int, str, str]


class Record(NamedTuple):
    """A fixed structure; `unpack` gives its fields by name, `pack` takes them back."""

    layout: struct.Struct
    names: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        """Length of the structure in bytes."""
        return self.layout.size

    def unpack(self, data: bytes, offset: int = 0) -> dict[str, int | bytes]:
        """Read the structure at `offset`; the caller has checked that it is all there."""
        return dict(zip(self.names, self.layout.unpack_from(data, offset), strict=True))

    def integers(self, data: bytes, offset: int = 0) -> dict[str, int]:
        """Read the structure's integers only."""
        return {name: value for name, value in self.unpack(data, offset).items() if isinstance(value, int)}

    def pack(self, **values: int | bytes) -> bytes:
        """Turn named fields into bytes."""
        return self.layout.pack(*(values[name] for name in self.names))


def record(*fields: Field, size: int) -> Record:
    """Check a table of (offset, type, name) against its own offsets and compile it.
    Types: `>u1` to `>u8` are integers, `Sn` is n bytes.
    Raises: ValueError when an offset or the size contradicts the types before it.
    """
    code, position = ">", 0
    for offset, kind, name in fields:
        if offset != position:
            raise ValueError(f"{name} is declared at {offset}, but the fields before it end at {position}")
        code += f"{int(kind[1:])}s" if kind[0] == "S" else _CODES[kind]
        position = struct.calcsize(code)
    if position != size:
        raise ValueError(f"the fields fill {position} bytes, not {size}")
    return Record(struct.Struct(code), tuple(name for _, _, name in fields))


def bits(first: int, last: int) -> int:
    """The mask of bits `first` to `last`, both included, as the specification counts."""
    return (1 << (last + 1)) - (1 << first)
