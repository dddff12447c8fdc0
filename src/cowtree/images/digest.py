"""A digest of what the guest sees: the same for any format, chain, cluster size and layout of holes.

    digest  =  "cowtree1:" and, in hexadecimal, SHA-256(size record record ...)
    size    =  the size of the guest's disk in bytes, as 8 bytes, big-endian
    record  =  one for each chunk that holds a byte other than zero, in order:
               the chunk's number, from 0, as 8 bytes, big-endian, and SHA-256(the chunk)
    chunk   =  64 KiB of the disk; the last one ends where the disk ends

So holes cost nothing, and chunks can be hashed side by side. A raw file's disk ends with its last sector of 512 bytes,
which reads as zeroes past the end of the file.
"""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np

from cowtree import extents as ex
from cowtree.chain.view import Chain, open_chain, windows
from cowtree.execute.read import Page, ahead, pages
from cowtree.extents import Ranges
from cowtree.images import map as mapping
from cowtree.monitor import Monitor, Silent
from cowtree.storage.contract import FileSystem

PREFIX: Final = "cowtree1:"
CHUNK_BYTES: Final = 1 << 16
THREAD_COUNT: Final = 2


def digest(files: FileSystem, path: str, image_format: str | None = None, monitor: Monitor | None = None) -> str:
    """Compute the digest of the disk that is seen through an image and all that backs it.
    Raises: what opening and reading raise.
    """
    chain = open_chain(files, path, image_format)
    try:
        return chain_digest(chain, monitor)
    finally:
        chain.close()


def chain_digest(chain: Chain, monitor: Monitor | None = None, within: Ranges | None = None) -> str:
    """Compute the digest of the disk that is seen through an open chain; `within` are sorted ranges of whole chunks,
    and all others then count as zeroes.
    """
    monitor = monitor or Silent()
    hollow = mapping.hollow_layers(chain)
    whole = hashlib.sha256(chain.size_bytes.to_bytes(8, "big"))
    with ThreadPoolExecutor(THREAD_COUNT) as threads:
        for start, stop in windows(chain, chain.size_bytes):
            seen = mapping.data(chain, start, stop, hollow)
            chunks = _whole_chunks(seen.ranges, stop)
            if within is not None:
                chunks = ex.intersect(chunks, within)
            monitor.expect(chunks.total_bytes)
            for page in ahead(pages(chain, seen, chunks)):
                for records in threads.map(lambda part: b"".join(_records(*part)), _split(page)):
                    whole.update(records)
                monitor.advance(len(page.data))
    return PREFIX + whole.hexdigest()


def _whole_chunks(ranges: Ranges, size_bytes: int) -> Ranges:
    """The chunks that some range touches."""
    start, stop = ranges.start // CHUNK_BYTES, -(-ranges.stop // CHUNK_BYTES)
    merged = ex.merge_ranges(Ranges(start * CHUNK_BYTES, stop * CHUNK_BYTES))
    return merged._replace(stop=np.minimum(merged.stop, size_bytes))


def _split(page: Page) -> list[tuple[list[int], memoryview]]:
    """The numbers and bytes of a page's chunks, in as many parts as there are threads."""
    count = -(-len(page.data) // CHUNK_BYTES)
    numbers = page.guest_offset(np.arange(count) * CHUNK_BYTES) // CHUNK_BYTES
    step = -(-count // THREAD_COUNT)
    return [
        (numbers[first : first + step].tolist(), page.data[first * CHUNK_BYTES : (first + step) * CHUNK_BYTES])
        for first in range(0, count, step)
    ]


def _records(numbers: list[int], data: memoryview) -> Iterator[bytes]:
    for index, number in enumerate(numbers):
        chunk = data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
        if np.frombuffer(chunk, np.uint8).any():
            yield number.to_bytes(8, "big") + hashlib.sha256(chunk).digest()
