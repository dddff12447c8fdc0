"""A move that is cloned ends as one that is copied does; what cannot be cloned is left, and each byte counts once."""

import errno
from typing import Any

import numpy as np
import pytest

from cowtree import extents as ex
from cowtree.chain import gate
from cowtree.chain.view import Chain
from cowtree.errors import StorageFailed
from cowtree.execute import copier
from cowtree.execute.cloner import block_bytes, clone
from cowtree.monitor import Counting, Silent
from cowtree.plan.clone import PIECE_BYTES_MIN
from cowtree.steps import Move, by_target
from cowtree.storage.contract import Access
from cowtree.storage.encrypted import EncryptedFile
from cowtree.storage.faults import Fault, FaultyFiles
from cowtree.storage.memory import MemoryFiles
from cowtree.storage.part import Part
from cowtree.storage.passing import PassingFile
from cowtree.storage.recording import RecordingFiles, Wrote

LONG = PIECE_BYTES_MIN
SIZE = 8 * LONG
# One that nobody asks.
CIPHER: Any = object()


class Refusing(PassingFile):
    """Says that it can be cloned to, and then cannot; remembers what it was asked for."""

    def __init__(self, inner):
        super().__init__(inner)
        self.asked = []

    def clone(self, source, source_offset, offset, length):
        self.asked.append((source_offset, offset, length))
        return False


class Unread(PassingFile):
    """Must not be read."""

    def pread(self, offset, length):
        raise AssertionError("it was read")

    def preadv(self, offset, buffers):
        raise AssertionError("it was read")

    def prefetch(self, offset, length):
        raise AssertionError("it was asked for")


def chain_of(*contents: bytes) -> Chain:
    files = MemoryFiles({str(index): data for index, data in enumerate(contents)})
    layers = tuple(gate.open_layer(files, str(index), "raw") for index in range(len(contents)))
    return Chain(layers, (None,) * len(layers))


def new_target(data: bytes = b""):
    return MemoryFiles({"target": data}).open("target", Access.WRITE)


def with_file(chain: Chain, index: int, file) -> Chain:
    return chain.with_layer(index, chain.layers[index]._replace(file=file))


def one_piece(length: int = SIZE) -> Move:
    part = ex.single(0, length, ex.DATA)
    return Move(part, part.start)


def test_a_move_is_what_a_loop_over_its_pieces_does(seed: int):
    choose = np.random.default_rng(seed)
    contents = [choose.bytes(SIZE) for _ in range(3)]
    length = np.minimum(choose.integers(1, 5, 12) * LONG // 2 + choose.integers(0, 3, 12) * 512, SIZE // 2)
    target = np.cumsum(length + choose.integers(0, 3, 12) * 2048) - length
    host = (choose.integers(0, SIZE // 2, 12) // 2048 * 2048 + target) % (SIZE // 2)
    kind = np.where(choose.random(12) < 0.2, ex.ZERO, ex.DATA).astype(np.uint8)
    layer = choose.integers(0, 3, 12).astype(np.int16)
    move = by_target(ex.Extents(target, length, kind, layer, host), target)
    expected = bytearray(choose.bytes(4 * SIZE))
    file, counting = new_target(bytes(expected)), Counting()
    for at, count, is_data, number, start in zip(target, length, kind == ex.DATA, layer, host, strict=True):
        expected[at : at + count] = contents[number][start : start + count] if is_data else bytes(count)
    copier.copy(chain_of(*contents), move, file, counting)
    assert file.pread(0, file.size_bytes) == expected
    assert counting.moved_bytes == move.total_bytes


def test_what_is_cloned_is_not_read_and_not_asked_for():
    chain = chain_of(b"x" * SIZE)
    target, counting = new_target(), Counting()
    copier.copy(with_file(chain, 0, Unread(chain.top.file)), one_piece(), target, counting)
    assert target.pread(0, SIZE) == b"x" * SIZE
    assert counting.moved_bytes == SIZE


def test_short_pieces_are_left_alone():
    move = one_piece(LONG - 1)
    assert clone(chain_of(b""), move, new_target(), Silent()) is move


def test_a_refusal_is_the_last_question_to_this_layer_and_all_is_copied():
    chain = chain_of(b"a" * SIZE, b"b" * SIZE)
    starts = [index * SIZE for index in range(4)]
    parts = ex.concatenate([ex.single(at, at + LONG, ex.DATA, layer=at // SIZE % 2) for at in starts])
    target = Refusing(new_target())
    copier.copy(chain, Move(parts, parts.start), target, Silent())
    assert target.asked == [(0, 0, LONG), (0, SIZE, LONG)]
    assert [target.pread(at, LONG)[:1] for at in starts] == [b"a", b"b", b"a", b"b"]


def test_what_is_encrypted_or_lies_askew_is_copied():
    chain, target = chain_of(*[bytes(SIZE)] * 4), new_target()
    chain = with_file(chain, 1, EncryptedFile(chain.layers[1].file, CIPHER))
    chain = with_file(chain, 2, Part(chain.layers[2].file, 512, None))
    chain = with_file(chain, 3, Part(chain.layers[3].file, 8192, None))
    assert block_bytes(chain, target).tolist() == [4096, 0, 0, 4096]
    by_guest = chain.with_layer(0, chain.top._replace(guest_cipher=CIPHER))
    assert block_bytes(by_guest, target).tolist() == [0, 0, 0, 4096]
    assert block_bytes(chain, EncryptedFile(target, CIPHER)).tolist() == [0] * 4
    assert block_bytes(chain, Part(target, 512, None)).tolist() == [0] * 4
    assert block_bytes(chain, Part(target, 4096, None)).tolist() == [4096, 0, 0, 4096]


def test_parts_of_files_are_cloned_from_where_they_lie_to_where_they_lie():
    whole = bytes(range(1, 256)) * (SIZE // 255 + 1)
    chain, target = chain_of(whole[:SIZE]), new_target(b"#" * 4096)
    chain = with_file(chain, 0, Unread(Part(chain.top.file, 8192, LONG)))
    copier.copy(chain, one_piece(LONG), Part(target, 4096, None), Silent())
    assert target.pread(0, target.size_bytes) == b"#" * 4096 + whole[8192 : 8192 + LONG]


def test_the_bytes_behind_a_part_are_not_cloned():
    chain, target = chain_of(b"x" * SIZE), new_target(b"#" * SIZE)
    copier.copy(with_file(chain, 0, Part(chain.top.file, 0, LONG)), one_piece(), target, Silent())
    assert target.pread(0, SIZE) == (b"x" * LONG).ljust(SIZE, b"\0")


def test_a_clone_is_recorded_as_a_write_of_these_bytes():
    files = RecordingFiles(MemoryFiles({"source": b"ab" * SIZE, "target": b""}))
    layer = gate.open_layer(files, "source", "raw")
    target = files.open("target", Access.WRITE)
    copier.copy(Chain((layer,), (None,)), one_piece(), target, Silent())
    assert [each for each in files.log if isinstance(each, Wrote)] == [Wrote(2, 0, b"ab" * (SIZE // 2))]


@pytest.mark.parametrize("moment", ["before", "in the middle of", "after"])
def test_a_broken_disk_ends_the_move(moment: str):
    files = FaultyFiles(MemoryFiles({"source": b"x" * SIZE, "target": b""}), Fault(0, errno.EIO, moment))
    layer = gate.open_layer(files, "source", "raw")
    target = files.open("target", Access.WRITE)
    with pytest.raises(StorageFailed):
        copier.copy(Chain((layer,), (None,)), one_piece(), target, Silent())
    assert [call.name for call in files.calls] == ["clone"]
    assert target.size_bytes == {"before": 0, "in the middle of": SIZE // 2, "after": SIZE}[moment]
