"""What can be said of an image, or of each image of a chain, from its header alone. No data file is opened."""

import os
from collections.abc import Iterator
from typing import NamedTuple

from cowtree.chain import gate
from cowtree.chain.address import Address, has_protocol
from cowtree.chain.gate import Layer
from cowtree.chain.lists import read_bitmaps, read_snapshots
from cowtree.errors import ChainError
from cowtree.luks.header import Volume
from cowtree.qcow2.bitmaps import Bitmap
from cowtree.qcow2.header import Header
from cowtree.qcow2.snapshots import Snapshot
from cowtree.storage.contract import Access, FileSystem
from cowtree.units import SECTOR_BYTES


class ImageInfo(NamedTuple):
    """One image. `header` is None for raw; `own_size_bytes` is what its file takes on disk, None for what a server
    exports; `backing_path` is how the backing file would be opened from here, or None; `volume` says how guest data is
    encrypted.
    """

    path: str
    format: str
    size_bytes: int
    own_size_bytes: int | None
    header: Header | None
    snapshots: tuple[Snapshot, ...]
    bitmaps: tuple[Bitmap, ...]
    backing_path: str | None
    address: Address | None = None
    volume: Volume | None = None

    @property
    def is_encrypted(self) -> bool:
        """Whether guest data is secret."""
        return self.volume is not None or bool(self.header and self.header.crypt_method)


def image_info(files: FileSystem, path: str, image_format: str | None = None, access: str = Access.READ) -> ImageInfo:
    """Describe one image; what backs it is not opened.
    Raises: what `gate.open_alone` raises, BrokenTable, TruncatedImage.
    """
    return _describe(gate.open_alone(files, path, image_format, access))


def chain_info(
    files: FileSystem, path: str, image_format: str | None = None, access: str = Access.READ
) -> Iterator[ImageInfo]:
    """Describe an image and all that backs it, the top first, one open at a time.
    Raises: what `gate.walk` and `image_info` raise.
    """
    yield from map(_describe, gate.walk(files, path, image_format, access, gate.open_alone))


def _describe(layer: Layer) -> ImageInfo:
    """Describe a layer, and close it. Raises: ChainError when its address says of the backing file how it is opened."""
    try:
        for key in layer.address.options if layer.address and layer.address.has_backing else ():
            if key.split(".")[0] == "backing":
                reason = f"Block format '{layer.format}' does not support the option '{key}'"
                raise ChainError(path=layer.path, name=layer.name, reason=reason)
        header, is_remote = layer.header, bool(layer.address and layer.address.location)
        backing = header.backing_file if header else None
        return ImageInfo(
            path=layer.path,
            format=layer.format,
            size_bytes=layer.size_bytes,
            own_size_bytes=None if is_remote else os.stat(layer.path).st_blocks * SECTOR_BYTES,
            header=header,
            snapshots=read_snapshots(layer, header)[0] if header else (),
            bitmaps=read_bitmaps(layer, header)[1] if header else (),
            backing_path=_backing_path(layer.path, backing) if backing else None,
            address=layer.address,
            volume=layer.volume,
        )
    finally:
        layer.close()


def _backing_path(holder: str, name: str) -> str:
    """Where the backing file is looked for; an address stays as it is."""
    return name if has_protocol(name) else gate.resolve_name(holder, name)
