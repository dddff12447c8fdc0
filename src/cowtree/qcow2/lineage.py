"""What an overlay keeps of its base as that was when the overlay was made: a header extension of cowtree's own.

    0-63    the record
    64-     format of the backing file, a zero byte, name of the backing file: the link that the record is about

A record counts only as long as the header still names that link: another tool that relinks an overlay keeps the
extension, as it keeps every one that it does not know. What somebody else or a later version wrote counts for nothing.
A record never takes room that a longer backing file name may need one day.
"""

from typing import Final, NamedTuple

from cowtree.errors import Refused
from cowtree.qcow2 import header as qcow2
from cowtree.qcow2.geometry import round_up
from cowtree.qcow2.header import Extension, Header
from cowtree.qcow2.header_writes import rewrite, without_extension
from cowtree.qcow2.image import Image
from cowtree.records import record
from cowtree.steps import Step

# "cowt".
LINEAGE: Final = 0x636F7774
VERSION: Final = 1
RECORD: Final = record(
    (0, ">u1", "version"),
    (1, "S7", "reserved"),
    (8, ">u8", "size_bytes"),
    (16, ">u8", "mtime_ns"),
    (24, ">u8", "ctime_ns"),
    (32, "S32", "fingerprint"),
    size=64,
)
FINGERPRINT_BYTES: Final = 32
_64_BITS: Final = (1 << 64) - 1


class BaseRecord(NamedTuple):
    """A base as it was: where its file ended, when it was changed, and a fingerprint of its content. Times are taken
    modulo 2^64 nanoseconds since 1970; a ctime of 0 tells nothing.
    """

    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    fingerprint: bytes


def pack(known: BaseRecord) -> bytes:
    """The record as it is kept."""
    return RECORD.pack(
        version=VERSION,
        reserved=b"",
        size_bytes=known.size_bytes & _64_BITS,
        mtime_ns=known.mtime_ns & _64_BITS,
        ctime_ns=known.ctime_ns & _64_BITS,
        fingerprint=known.fingerprint,
    )


def parse(data: bytes) -> BaseRecord | None:
    """Read a record; None when it is not one of ours."""
    if len(data) < RECORD.size_bytes or data[0] != VERSION:
        return None
    fields = RECORD.integers(data)
    start = RECORD.size_bytes - FINGERPRINT_BYTES
    fingerprint = bytes(data[start : RECORD.size_bytes])
    return BaseRecord(fields["size_bytes"], fields["mtime_ns"], fields["ctime_ns"], fingerprint)


def link_of(header: Header) -> bytes:
    """The link that a record of this overlay is about."""
    return (header.extension(qcow2.BACKING_FORMAT) or b"") + b"\0" + header.backing_name_bytes


def find_record(header: Header) -> tuple[BaseRecord | None, str | None]:
    """The record that an overlay keeps of its base, or why what it keeps is of no use."""
    data = header.extension(LINEAGE)
    if data is None:
        return None, None
    known = parse(data)
    if known is None:
        return None, "what it keeps of its base was written by a newer cowtree, or is damaged"
    if data[RECORD.size_bytes :] != link_of(header):
        return None, "it was given another base since it noted what its base was"
    return known, None


def with_record(header: Header, known: BaseRecord | None) -> Header:
    """The header with a record of the base that it names, or without one: also when there would be no room for it."""
    bare = header._replace(extensions=without_extension(header.extensions, LINEAGE))
    if known is None or not has_room(header):
        return bare
    new = Extension(LINEAGE, pack(known) + link_of(bare))
    # Behind all others, where QEMU puts what it does not know.
    return bare._replace(extensions=(*bare.extensions, new))


def has_room(header: Header) -> bool:
    """Whether an overlay's header can keep a record of its base."""
    others = without_extension(header.extensions, LINEAGE)
    own_bytes = qcow2.EXTENSION.size_bytes + round_up(RECORD.size_bytes + len(link_of(header)), 8)
    used = header.header_length + sum(len(qcow2.pack_extension(each)) for each in others) + own_bytes
    spare = qcow2.EXTENSION.size_bytes + qcow2.BACKING_NAME_BYTES_MAX
    return bool(header.backing_name_bytes) and used + spare <= 1 << header.cluster_bits


def record_steps(image: Image, cluster: bytes, known: BaseRecord | None) -> list[Step]:
    """Steps that let the overlay keep this record, or none, and change nothing else; `cluster` is its first cluster as
    it stands. No steps when it is so already, or when there is no room.
    """
    header = with_record(image.header, known)
    if header == image.header:
        return []
    try:
        return rewrite(image, cluster, header._replace(autoclear=header.autoclear & qcow2.KNOWN_AUTOCLEAR))
    except Refused:
        return []
