"""Owns files that are wrapped one and all, so that wrappers of a single file are tried by the tests of the contract."""

from cowtree.luks.ciphers import SectorCipher
from cowtree.luks.header import Suite
from cowtree.storage.contract import Storage, Times
from cowtree.storage.encrypted import EncryptedVolume
from cowtree.storage.part import Part
from cowtree.storage.passing import PassingFiles

HEAD_BYTES = 4096
CIPHER = SectorCipher(Suite("aes-128", "cbc"), bytes(range(16)))


class PartFiles(PassingFiles):
    """Files that are taken from a byte in their middle on."""

    def open(self, path: str, access: str) -> Storage:
        return Part(self.inner.open(path, access), HEAD_BYTES, None)

    def create(self, path: str, mode: int) -> Storage:
        return Part(self.inner.create(path, mode), HEAD_BYTES, None)

    def times(self, path: str) -> Times:
        times = self.inner.times(path)
        return times._replace(size_bytes=max(times.size_bytes - HEAD_BYTES, 0))


class EncryptedFiles(PassingFiles):
    """Files that are volumes: each ends with a sector, and has no holes."""

    def open(self, path: str, access: str) -> Storage:
        return EncryptedVolume(self.inner.open(path, access), CIPHER, HEAD_BYTES)

    def create(self, path: str, mode: int) -> Storage:
        return EncryptedVolume(self.inner.create(path, mode), CIPHER, HEAD_BYTES)
