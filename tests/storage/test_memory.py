"""Files in memory: what tests ask of them beyond the contract."""

import errno
import random

import pytest

from cowtree.errors import MissingImage, StorageFailed
from cowtree.storage.contract import Access, Span
from cowtree.storage.memory import PAGE_BYTES, MemoryFiles, Pages
from cowtree.units import TIB


def test_initial_files_are_there_whole():
    files = MemoryFiles({"a": b"abc", "sub/../b": bytes(10000)})
    assert files.content("a") == b"abc"
    assert files.snapshot() == {"a": b"abc", "b": bytes(10000)}
    with pytest.raises(MissingImage):
        files.content("c")


def test_a_copy_is_a_world_of_its_own():
    files = MemoryFiles({"a": b"abc", "b": b"old"})
    holder = files.open("a", Access.WRITE)
    other = files.copy()
    file = other.open("a", Access.WRITE)
    file.pwrite(1, b"X" * 5000)
    other.unlink("b")
    assert files.snapshot() == {"a": b"abc", "b": b"old"}
    assert other.content("a") == b"a" + b"X" * 5000
    holder.close()


def test_who_has_a_file_open_is_known():
    files = MemoryFiles({"a": b"", "b": b""})
    file = files.open("./a", Access.READ)
    assert files.held() == ["./a"]
    assert files.copy().held() == []
    file.close()
    assert files.held() == []


def test_worlds_are_equal_by_names_and_bytes():
    files = MemoryFiles({"a": b"x", "b": bytes(5)})
    assert files.key() == MemoryFiles({"b": bytes(5), "a": b"x"}).key()
    for other in ({"a": b"x"}, {"a": b"x", "b": bytes(6)}, {"a": b"x", "c": bytes(5)}):
        assert files.key() != MemoryFiles(other).key()


def test_a_tebibyte_of_holes_is_walked_at_once():
    files = MemoryFiles()
    file = files.create("a", 0o600)
    file.truncate(TIB)
    for index in range(3):
        file.pwrite(index * TIB // 4, b"abc")
    assert [span.is_data for span in file.extents(0, TIB)] == [True, False] * 3
    file.write_zeroes(0, TIB)
    assert list(file.extents(0, TIB)) == [Span(0, TIB, is_data=False)]


@pytest.mark.parametrize("offset", [-1, -5000])
def test_negative_numbers_are_refused(offset):
    file = MemoryFiles().create("a", 0o600)
    for act in (lambda: file.pread(offset, 1), lambda: file.pwrite(offset, b"a"), lambda: file.truncate(offset)):
        with pytest.raises(StorageFailed) as caught:
            act()
        assert caught.value.facts["errno"] == errno.EINVAL


def test_arrays_with_the_same_bytes_have_the_same_key(seed):
    choose = random.Random(seed)
    model, pages = bytearray(), Pages()
    for _ in range(20):
        offset, length = choose.randrange(5 * PAGE_BYTES), choose.randrange(2 * PAGE_BYTES)
        data = choose.randbytes(length) if choose.random() < 0.5 else bytes(length)
        model.extend(bytes(max(offset + length - len(model), 0)))
        model[offset : offset + length] = data
        if any(data) or choose.random() < 0.5:
            pages.write(offset, data)
            pages.truncate(max(pages.size_bytes, offset + length))
        else:
            pages.zero(offset, length)
            pages.truncate(max(pages.size_bytes, offset + length))
    assert pages.read(0, pages.size_bytes) == model
    assert pages.key() == Pages(bytes(model)).key()
    model[choose.randrange(len(model))] ^= 1
    assert pages.key() != Pages(bytes(model)).key()
