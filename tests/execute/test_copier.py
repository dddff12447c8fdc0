"""Owns the proof that a move puts each byte where the plan says, and nothing anywhere else."""

import errno

import numpy as np
import pytest

from cowtree import extents as ex
from cowtree.chain import gate
from cowtree.chain.view import Chain
from cowtree.errors import StorageFailed
from cowtree.execute.copier import BATCH_BYTES, BATCHES_AHEAD, copy, write_pieces
from cowtree.monitor import Counting, Silent
from cowtree.steps import Move, by_target
from cowtree.storage.contract import Access, Storage
from cowtree.storage.memory import MemoryFiles
from cowtree.storage.passing import PassingFile

SIZE = 5 * BATCH_BYTES


class Watched(PassingFile):
    """Remembers writes and flushes; every flush may fail."""

    def __init__(self, inner: Storage, *, is_broken: bool = False) -> None:
        super().__init__(inner)
        self.writes: list[tuple[int, int]] = []
        self.flush_count = 0
        self.is_broken = is_broken

    def pwrite(self, offset, data):
        self.writes.append((offset, len(data)))
        super().pwrite(offset, data)

    def flush(self):
        self.flush_count += 1
        if self.is_broken:
            raise StorageFailed(path=self.path, action="flush", reason="Input/output error", errno=errno.EIO)


def raw_chain(*contents: bytes) -> Chain:
    files = MemoryFiles({str(index): data for index, data in enumerate(contents)})
    layers = tuple(gate.open_layer(files, str(index), "raw") for index in range(len(contents)))
    return Chain(layers, (None,) * len(layers))


def new_target(data: bytes = b"") -> Storage:
    return MemoryFiles({"target": data}).open("target", Access.WRITE)


def random_move(choose: np.random.Generator, layer_count: int) -> Move:
    """Pieces of some layers that go to places which do not overlap; some of them are zeroes."""
    borders = np.unique(choose.integers(0, SIZE, 60))
    length = np.minimum(np.diff(borders), choose.integers(1, SIZE // 2, len(borders) - 1))
    count = len(length)
    kind = np.where(choose.random(count) < 0.2, ex.ZERO, ex.DATA).astype(np.uint8)
    host = choose.integers(0, SIZE - int(length.max()), count)
    layer = choose.integers(0, layer_count, count).astype(np.int16)
    shuffled = choose.permutation(count)
    return by_target(ex.Extents(np.zeros(count, np.int64), length, kind, layer, host), borders[:-1][shuffled])


@pytest.mark.slow
def test_a_move_is_what_a_loop_over_its_pieces_does(seed: int):
    choose = np.random.default_rng(seed)
    contents = [choose.bytes(SIZE) for _ in range(3)]
    before = choose.bytes(SIZE)
    move = random_move(choose, 3)._replace()
    expected = bytearray(before.ljust(2 * SIZE, b"\0"))
    for length, kind, layer, host, at in zip(*move.source[1:], move.target_offset, strict=True):
        expected[at : at + length] = contents[layer][host : host + length] if kind == ex.DATA else bytes(length)
    target, counting = new_target(before), Counting()
    copy(raw_chain(*contents), move, target, counting)
    assert target.pread(0, 2 * SIZE) == expected
    assert counting.moved_bytes == move.total_bytes


def test_no_pieces_are_no_work():
    target = Watched(new_target())
    copy(raw_chain(b""), Move(ex.empty(), np.empty(0, np.int64)), target, Silent())
    assert (target.writes, target.flush_count) == ([], 0)


def test_neighbours_are_written_by_one_call():
    target = Watched(new_target())
    parts = ex.concatenate([ex.single(at, at + 512, ex.DATA, host_offset=9000 - at) for at in (0, 512, 1024, 4096)])
    copy(raw_chain(bytes(10000)), Move(parts, parts.start), target, Silent())
    assert target.writes == [(0, 1536), (4096, 512)]


def test_pieces_that_are_neighbours_only_in_the_file_are_written_apart():
    target = Watched(new_target())
    offset, position, length = (np.array(numbers, np.int64) for numbers in ([0, 4, 8], [4, 0, 8], [4, 4, 4]))
    write_pieces(target, offset, (position, length), memoryview(b"bbbbaaaacccc"))
    assert target.pread(0, 12) == b"aaaabbbbcccc"
    assert len(target.writes) == 3


def test_all_of_a_long_move_but_its_beginning_is_asked_for_ahead():
    class Asked(PassingFile):
        def prefetch(self, offset, length):
            asked.append((offset, offset + length))

    asked: list[tuple[int, int]] = []
    size = (2 * BATCHES_AHEAD + 1) * BATCH_BYTES
    chain = raw_chain(b"")
    layer = chain.top._replace(file=Asked(chain.top.file))
    part = ex.single(0, size, ex.DATA)
    copy(chain.with_layer(0, layer), Move(part, part.start), new_target(), Silent())
    assert sorted(asked)[0][0] == BATCHES_AHEAD * BATCH_BYTES
    assert sum(stop - start for start, stop in asked) == size - BATCHES_AHEAD * BATCH_BYTES


def test_a_full_disk_ends_the_move():
    class Full(PassingFile):
        def pwrite(self, offset, data):
            raise StorageFailed(path=self.path, action="write", reason="No space left on device", errno=errno.ENOSPC)

    part = ex.single(0, 512, ex.ZERO)
    with pytest.raises(StorageFailed, match="No space left"):
        copy(raw_chain(b""), Move(part, part.start), Full(new_target()), Silent())
