"""Owns the proof that a move puts each byte where the plan says, and nothing anywhere else."""

import numpy as np

from cowtree import extents as ex
from cowtree.chain import gate
from cowtree.chain.view import Chain
from cowtree.errors import StorageFailed
from cowtree.steps import Move, by_target
from cowtree.storage.contract import Access
from cowtree.storage.memory import MemoryFiles
from cowtree.storage.passing import PassingFile


class WriteLog(PassingFile):
    """Remembers each write."""

    def __init__(self, inner):
        super().__init__(inner)
        self.writes = []

    def pwrite(self, offset, data):
        self.writes.append((offset, len(data)))
        super().pwrite(offset, data)


class FullDisk(PassingFile):
    """Takes so many writes and then none."""

    def __init__(self, inner, count):
        super().__init__(inner)
        self.count = count

    def pwrite(self, offset, data):
        self.count -= 1
        if self.count < 0:
            raise StorageFailed(path=self.path, action="write", reason="No space left on device")
        super().pwrite(offset, data)


def raw_chain(*contents: bytes) -> Chain:
    files = MemoryFiles({f"layer-{index}": data for index, data in enumerate(contents)})
    return Chain(
        tuple(gate.open_layer(files, f"layer-{i}", "raw") for i in range(len(contents))), (None,) * len(contents)
    )


def target_of(data: bytes):
    files = MemoryFiles({"target": data})
    return files, files.open("target", Access.WRITE)


def random_move(choose: np.random.Generator, layer_count: int, size: int) -> Move:
    """Pieces of some layers that go to places which do not overlap."""
    borders = np.unique(choose.integers(0, size, 40))
    lengths = np.minimum(np.diff(borders), choose.integers(1, size // 8, len(borders) - 1))
    parts = Extents_of(choose, layer_count, size, lengths)
    return by_target(parts, borders[:-1])


def Extents_of(choose, layer_count, size, lengths):
    count = len(lengths)
    host = choose.integers(0, size - lengths.max(), count)
    kind = np.where(choose.random(count) < 0.2, ex.ZERO, ex.DATA).astype(np.uint8)
    return ex.Extents(
        np.zeros(count, np.int64), lengths, kind, choose.integers(0, layer_count, count).astype(np.int16), host
    )
