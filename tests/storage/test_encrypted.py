"""Encrypted files against an array of plain bytes."""

import random

import pytest

from cowtree.luks.ciphers import SectorCipher
from cowtree.luks.header import Suite
from cowtree.storage.contract import Access
from cowtree.storage.encrypted import EncryptedFile, EncryptedVolume
from cowtree.storage.memory import MemoryFiles

CIPHER = SectorCipher(Suite(), bytes(range(64)))


@pytest.fixture
def inner():
    return MemoryFiles({"a": b"h" * 4096}).open("a", Access.WRITE)


def test_a_volume_holds_what_was_written(seed, inner):
    choose, model, volume = random.Random(seed), bytearray(), EncryptedVolume(inner, CIPHER, 4096)
    for _ in range(20):
        offset, length = choose.randrange(6000), choose.randrange(1, 3000)
        data = choose.choice([choose.randbytes(length), bytes(length)])
        model.extend(bytes(max(-(-(offset + length) // 512) * 512 - len(model), 0)))
        model[offset : offset + length] = data
        if any(data):
            volume.pwrite(offset, data)
        else:
            volume.write_zeroes(offset, length)
        assert volume.size_bytes == len(model)
        assert volume.pread(0, len(model) + 700) == bytes(model) + bytes(700)
    volume.truncate(1024)
    volume.truncate(4096)
    assert volume.pread(0, 4096) == bytes(model[:1024]).ljust(4096, b"\0")
    assert inner.pread(0, 4096) == b"h" * 4096


def test_what_is_cut_off_inside_a_sector_does_not_come_back(inner):
    volume = EncryptedVolume(inner, CIPHER, 4096)
    volume.pwrite(0, b"x" * 1024)
    volume.truncate(700)
    assert volume.pread(0, volume.size_bytes) == b"x" * 700 + bytes(324)
    volume.truncate(2000)
    assert volume.pread(0, volume.size_bytes) == b"x" * 700 + bytes(1348)


def test_no_plain_byte_reaches_the_file(inner):
    EncryptedFile(inner, CIPHER).pwrite(1000, b"secret" * 1000)
    assert b"secret" not in inner.pread(0, inner.size_bytes)


def test_all_of_it_is_data(inner):
    volume = EncryptedVolume(inner, CIPHER, 4096)
    volume.allocate(0, 2048)
    assert [tuple(span) for span in volume.extents(0, 1 << 20)] == [(0, 2048, True)]
    assert volume.pread(0, 2048) == bytes(2048)
