"""Inflating and deflating clusters: one cluster at a time, never more than a cluster of output."""

import zlib

from cowtree.errors import BrokenCluster
from cowtree.qcow2.header import ZSTD

# A raw deflate stream with a window of at most 4 KiB is what QEMU writes; larger windows are read as well.
_DEFLATE_WINDOW_BITS = -15
# What every zstd decoder must take; a frame that asks for more memory is refused.
_ZSTD_WINDOW_BYTES_MAX = 8 << 20
_WRITTEN_WINDOW_BITS = -12
_DEFLATE_MEMORY_LEVEL = 9


def inflate(path: str, data: bytes, *, compression_type: int, cluster_size_bytes: int) -> bytes:
    """Expand one compressed cluster; `data` may go on behind it, up to the end of its last sector.
    Raises: BrokenCluster when the stream is damaged or ends before the cluster is full.
    """
    try:
        plain = (_inflate_zstd if compression_type == ZSTD else _inflate_zlib)(data, cluster_size_bytes)
    except ValueError as error:
        raise BrokenCluster(path=path, reason=f"a compressed cluster cannot be inflated: {error}") from error
    if len(plain) < cluster_size_bytes:
        reason = f"a compressed cluster holds {len(plain)} bytes, not {cluster_size_bytes}"
        raise BrokenCluster(path=path, reason=reason)
    return plain


def _inflate_zlib(data: bytes, size_bytes: int) -> bytes:
    try:
        return zlib.decompressobj(_DEFLATE_WINDOW_BITS).decompress(data, size_bytes)
    except zlib.error as error:
        raise ValueError(error) from error


def _inflate_zstd(data: bytes, size_bytes: int) -> bytes:
    import zstandard  # noqa: PLC0415  only images with zstd clusters pay for it

    try:
        with zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES_MAX).stream_reader(data) as reader:
            return reader.read(size_bytes)
    except zstandard.ZstdError as error:
        raise ValueError(error) from error


def deflate(data: bytes | memoryview, compression_type: int) -> bytes:
    """Compress one cluster, to the same bytes as QEMU. May be longer than the cluster: then store that instead."""
    if compression_type == ZSTD:
        import zstandard  # noqa: PLC0415  only images with zstd clusters pay for it

        return zstandard.ZstdCompressor().compress(data)
    stream = zlib.compressobj(
        level=zlib.Z_DEFAULT_COMPRESSION, wbits=_WRITTEN_WINDOW_BITS, memLevel=_DEFLATE_MEMORY_LEVEL
    )
    return stream.compress(data) + stream.flush()
