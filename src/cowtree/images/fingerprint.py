"""A fast fingerprint of one layer: equal for a file and its copies, and nearly always another one when what the layer
holds has changed. It looks at samples, so it proves a change, and never that there was none.

    fingerprint  =  BLAKE2b-256(head map ... sample ...)
    head         =  "cowtree lineage 1", format, and the size of the disk
    map          =  of qcow2: for each table that holds something its number, and which of its clusters hold data,
                    zeroes or compressed data; of tables that take more than 4 MiB, a choice spread over all of them
    sample       =  up to 4 KiB of what 64 clusters hold, spread over all that hold something; of raw, of the file

Host offsets, counts and flags do not count: a snapshot, which changes no content, leaves the fingerprint as it was. Nor
do the holes of a raw file, which a copy may have elsewhere. Guest data is read as it stands, encrypted or compressed.
"""

# hashlib loads OpenSSL, which takes longer than all that is done here.
from _blake2 import blake2b
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cowtree.chain import load
from cowtree.chain.gate import Layer
from cowtree.extents import COMPRESSED, DATA, ZERO, Offsets
from cowtree.qcow2 import tables
from cowtree.qcow2.geometry import Geometry
from cowtree.qcow2.header import Header
from cowtree.qcow2.lineage import FINGERPRINT_BYTES
from cowtree.qcow2.tables import Entries, Tables
from cowtree.storage.contract import Storage

HEAD: Final = b"cowtree lineage 1\0"
SAMPLE_COUNT: Final = 64
SAMPLE_BYTES: Final = 4096
TABLE_BYTES_MAX: Final = 4 << 20
TABLE_COUNT_MAX: Final = 256
_SECTOR_REST: Final = 511


def fingerprint(layer: Layer) -> bytes:
    """Compute the fingerprint of an open layer, apart from what backs it.
    Raises: StorageFailed, and TruncatedImage when its tables lie outside the file.
    """
    digest = blake2b(HEAD, digest_size=FINGERPRINT_BYTES)
    digest.update(f"{layer.format}\0{layer.size_bytes}\0".encode())
    if layer.header is None:
        offsets = _places_in_file(layer.file.size_bytes)
        for data in _samples(layer.file, offsets, np.full(len(offsets), SAMPLE_BYTES)):
            digest.update(data)
        return digest.digest()
    held = _tables(layer, layer.header)
    said, which = _map(layer.header.geometry, held)
    chosen = held.entries.ravel()[which[_spread(len(which), SAMPLE_COUNT)]]
    for data in (*said, *_clusters(layer, layer.header.geometry, chosen)):
        digest.update(data)
    return digest.digest()


def _spread(count: int, wanted: int) -> Offsets:
    """Up to so many of the numbers from 0 to `count`, spread evenly, the first and the last one among them."""
    chosen = min(count, wanted)
    return np.arange(chosen, dtype=np.int64) * (count - 1) // max(chosen - 1, 1)


def _places_in_file(size_bytes: int) -> Offsets:
    """Where a raw file is looked at: spread evenly, and at the powers of two, where file systems begin."""
    count = -(-size_bytes // SAMPLE_BYTES)
    powers = (1 << power for power in range(max(count - 1, 0).bit_length()))
    # Not numpy's own union, whose first call imports more than `img create` does in all.
    chosen = {*_spread(count, SAMPLE_COUNT).tolist(), *powers}
    return np.array(sorted(chosen), np.int64) * SAMPLE_BYTES


def _tables(layer: Layer, header: Header) -> Tables:
    """The L2 tables that are looked at."""
    geometry = header.geometry
    l1 = load.read_table(layer, "the active L1 table", header.l1_table_offset, header.l1_entry_count)
    offsets = tables.table_offsets(l1)
    index = np.flatnonzero(offsets)
    index = index[_spread(len(index), min(TABLE_BYTES_MAX >> geometry.cluster_bits, TABLE_COUNT_MAX))]
    data = load.read_clusters(layer.file, geometry, offsets[index])
    return tables.decode(geometry, index, offsets[index], data)


def _map(geometry: Geometry, held: Tables) -> tuple[list[bytes], Offsets]:
    """What the tables say of guest clusters, and which of their entries lead to bytes. One table after the other: what
    that takes in memory then stays in the processor.
    """
    said, which = [], [np.empty(0, np.int64)]
    for row, (number, entries) in enumerate(zip(held.l1_index.tolist(), held.entries, strict=True)):
        kind = tables.classify(geometry, entries) if geometry.has_data_file else _kinds(geometry, entries)
        which.append(np.flatnonzero((kind == DATA) | (kind == COMPRESSED)) + row * len(entries))
        if geometry.has_subclusters:
            kind = np.concatenate((kind, held.bitmaps[row].view(np.uint8)))
        if kind.any():
            said.append(number.to_bytes(8, "big") + kind.tobytes())
    return said, np.concatenate(which)


def _kinds(geometry: Geometry, entries: Entries) -> NDArray[np.uint8]:
    """As `tables.classify`, but that a cluster which is kept for zeroes is no more than zeroes; ten times as fast."""
    kind: NDArray[np.uint8] = np.where((entries & tables.HOST_OFFSET) != 0, np.uint8(DATA), np.uint8(0))
    known = tables.COMPRESSED_FLAG if geometry.has_subclusters else tables.COMPRESSED_FLAG | tables.ZERO_FLAG
    flags = entries & known
    if flags.any():
        kind[flags != 0] = ZERO
        kind[(flags & tables.COMPRESSED_FLAG) != 0] = COMPRESSED
    return kind


def _clusters(layer: Layer, geometry: Geometry, chosen: Entries) -> Iterator[bytes]:
    """Samples of what these entries lead to."""
    packed = (chosen & tables.COMPRESSED_FLAG) != 0
    start, length = tables.compressed_location(geometry, (chosen & tables.DESCRIPTOR).astype(np.int64))
    # What lies behind a compressed cluster in its last sector is not its own.
    length = np.clip(length - _SECTOR_REST, 1, SAMPLE_BYTES)
    plain = (chosen & tables.HOST_OFFSET).astype(np.int64)
    room = min(SAMPLE_BYTES, geometry.cluster_size_bytes)
    for file, which_of in ((layer.file, packed), (layer.data_file, ~packed)):
        offset = np.where(packed, start, plain)[which_of]
        yield from _samples(file, offset, np.where(packed, length, room)[which_of])


def _samples(file: Storage, offset: Offsets, length: Offsets) -> Iterator[bytes]:
    places = list(zip(offset.tolist(), length.tolist(), strict=True))
    for each in places:
        file.prefetch(*each)
    for each in places:
        yield file.pread(*each)
