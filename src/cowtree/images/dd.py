"""Copying whole blocks of one disk into a new image, as dd does: `skip` blocks are left out of the first `count`."""

from typing import Final, NamedTuple

from cowtree.chain import gate
from cowtree.images.convert import DEFAULT_MANNER, Manner, convert
from cowtree.monitor import Monitor
from cowtree.plan.create import NewImage
from cowtree.qcow2.geometry import round_up
from cowtree.storage.contract import FileSystem
from cowtree.units import SECTOR_BYTES

BLOCK_BYTES: Final = 512


class Blocks(NamedTuple):
    """Which blocks are copied; without a count all up to the end. The last one may be a part of a block."""

    block_bytes: int = BLOCK_BYTES
    block_count: int | None = None
    skip: int = 0

    def span(self, size_bytes: int) -> tuple[int, int]:
        """The bytes of a disk of this size that are copied; it ends before it starts when all is skipped and more.
        Source: QEMU counts from the start of the disk, and not from the first block that it copies.
        """
        stop = size_bytes if self.block_count is None else min(self.block_count * self.block_bytes, size_bytes)
        return self.skip * self.block_bytes, stop


def dd(
    files: FileSystem,
    source: tuple[str, str | None],
    new: NewImage,
    blocks: Blocks,
    how: tuple[Manner, Monitor | None] = (DEFAULT_MANNER, None),
) -> bool:
    """Copy the blocks of `source` (path, format or None) into a new image, whose size they make.
    Returns: whether the disk was long enough to skip so many; if not, the new one is empty.
    Raises: what `convert` raises.
    """
    manner, monitor = how
    layers = gate.open_chain(files, *source, manner.access)
    gate.close_all(layers)
    start, stop = blocks.span(layers[0].size_bytes)
    new = new._replace(size_bytes=round_up(max(stop - start, 0), SECTOR_BYTES))
    convert(files, [source], new, manner._replace(span=(min(start, stop), stop), sparse_bytes=0), monitor)
    return start <= stop
