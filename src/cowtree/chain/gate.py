"""The gate: the only place where a name found inside an image becomes an open file.

- A format is given, or declared by the overlay; only where neither says so is the magic number looked at. What was
  declared raw stays raw, whatever its first bytes are.
- Names inside images are inert text until `resolve_name`; addresses (`json:`, `nbd://`) are refused.
- A chain is at most 256 layers deep and holds each file once (device, inode).
- Every file is opened under QEMU's locks.

The standard library only, for `img info` passes through here.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from cowtree.errors import (
    BrokenHeader,
    ChainError,
    ChainTooDeep,
    ImageError,
    LoopInChain,
    MissingImage,
    NotAnImage,
    UnknownFeature,
)
from cowtree.qcow2 import header as qcow2
from cowtree.storage.contract import Access, FileSystem, Storage
from cowtree.units import SECTOR_BYTES

LAYER_COUNT_MAX = 256
HEADER_BYTES = 4096
RAW, QCOW2 = "raw", "qcow2"
FORMATS = (RAW, QCOW2)


class Layer(NamedTuple):
    """One open image of a chain. `header` is None for raw; `data` is the external data file, if it has one; `origin` is
    where its disk begins in the disk that is read: not 0 only when images are joined one behind the other.
    """

    path: str
    format: str
    file: Storage
    size_bytes: int
    header: qcow2.Header | None
    data: Storage | None
    was_probed: bool
    origin: int = 0

    @property
    def data_file(self) -> Storage:
        """Where guest data lies."""
        return self.data or self.file

    def close(self) -> None:
        """Give descriptors and locks back."""
        self.file.close()
        if self.data:
            self.data.close()


Opener = Callable[[FileSystem, str, str | None, str], Layer]


def has_protocol(name: str) -> bool:
    """Whether something like `file:` or `nbd:` stands in front."""
    return ":" in name.partition("/")[0]


def resolve_name(holder: str, name: str) -> str:
    """The path that a name inside the image `holder` means. As in QEMU a name is an address when a colon comes before
    the first slash, and one that starts with `file:` does not start from the holder's folder.
    Raises: ChainError when it is an address and not a file name.
    """
    if name.startswith("file:"):
        return name.removeprefix("file:")
    if has_protocol(name):
        raise ChainError(
            path=holder,
            reason=f"'{name}' is an address, not a file name",
            hint="cowtree img rebase -u -b BASE -F FORMAT {path}",
        )
    return os.path.join(os.path.dirname(holder), name)


def data_file_path(holder: str, name: str) -> str:
    """The path of the external data file that the image `holder` names. As in QEMU it starts from the folder of the
    process, not from that of the image.
    Raises: ChainError when it is an address and not a file name.
    """
    resolve_name(holder, name)
    return name.removeprefix("file:")


def name_for(files: FileSystem, holder: str, target: str, *, is_relative: bool) -> str:
    """The name by which the image `holder` finds the file `target`; relative if that is wanted and possible."""
    names = [os.path.abspath(target), os.path.join(os.getcwd(), target)]
    if is_relative:
        name = os.path.relpath(target, os.path.dirname(holder) or ".")
        names.insert(0, f"./{name}" if ":" in name.partition("/")[0] else name)
    # A path that is shortened by its words alone goes astray where it climbs out of a folder that is a link.
    return next((name for name in names[:-1] if is_same(files, resolve_name(holder, name), target)), names[-1])


def is_same(files: FileSystem, path: str, other: str) -> bool:
    """Whether two paths lead to the same file; not when one of them leads nowhere."""
    try:
        return files.identity(path) == files.identity(other)
    except MissingImage:
        return False


def open_layer(files: FileSystem, path: str, image_format: str | None = None, access: str = Access.READ) -> Layer:
    """Open one image alone, without what backs it; without a format its magic number decides.
    Raises: MissingImage, ImageLocked, NotAnImage, and what `header.parse` raises.
    """
    layer = open_alone(files, path, image_format, access)
    try:
        return (
            layer if layer.header is None else layer._replace(data=_open_data_file(files, layer, layer.header, access))
        )
    except BaseException:
        layer.close()
        raise


def open_alone(files: FileSystem, path: str, image_format: str | None = None, access: str = Access.READ) -> Layer:
    """Open one file and nothing that it names; guest data in an external file cannot be read through it.
    Raises: what `open_layer` raises.
    """
    if image_format is not None and image_format not in FORMATS:
        raise ChainError(path=path, reason=f"Unknown driver '{image_format}'", hint="-f raw or -f qcow2")
    file = files.open(path, access)
    try:
        found = image_format or probe(file)
        if found == RAW:
            size_bytes = -(-file.size_bytes // SECTOR_BYTES) * SECTOR_BYTES
            return Layer(path, RAW, file, size_bytes, None, None, image_format is None)
        header = read_header(path, file)
        size_bytes = header.size_bytes // SECTOR_BYTES * SECTOR_BYTES
        return Layer(path, QCOW2, file, size_bytes, header, None, image_format is None)
    except BaseException:
        file.close()
        raise


def probe(file: Storage) -> str:
    """Tell the format from the magic number."""
    return QCOW2 if qcow2.is_qcow2(file.pread(0, 4)) else RAW


def read_header(path: str, file: Storage) -> qcow2.Header:
    """Read and check the first cluster of a qcow2 image, as far as it is used."""
    data = file.pread(0, HEADER_BYTES)
    if not qcow2.is_qcow2(data):
        raise NotAnImage(path=path, format=QCOW2)
    while qcow2.wanted_bytes(data) > len(data):
        data = file.pread(0, max(qcow2.wanted_bytes(data), 2 * len(data)))
    return qcow2.parse(path, data, file.size_bytes)


def _open_data_file(files: FileSystem, layer: Layer, header: qcow2.Header, access: str) -> Storage | None:
    if not header.incompatible & qcow2.EXTERNAL_DATA_FILE:
        return None
    if header.data_file is None:
        raise BrokenHeader(path=layer.path, reason="'data-file' is required for this image")
    return files.open(data_file_path(layer.path, header.data_file), access)


def refuse_encryption(layer: Layer) -> None:
    """Refuse an image whose guest data cannot be read. Raises: UnknownFeature."""
    if layer.header and layer.header.crypt_method:
        raise UnknownFeature(path=layer.path, features="encryption")


def walk(
    files: FileSystem,
    path: str,
    image_format: str | None = None,
    access: str = Access.READ,
    opener: Opener = open_layer,
) -> Iterator[Layer]:
    """Open an image, then what backs it, layer by layer; whoever takes a layer closes it. What backs the image is
    opened for reading.
    Raises: what the opener raises, with the overlay among its facts; LoopInChain, ChainTooDeep.
    """
    layer = opener(files, path, image_format, access)
    seen = [files.identity(path)]
    yield layer
    below = Access.SHARED if access == Access.SHARED else Access.READ
    while layer.header is not None and layer.header.backing_file is not None:
        if len(seen) == LAYER_COUNT_MAX:
            raise ChainTooDeep(path=path, limit=LAYER_COUNT_MAX)
        layer = _open_backing(files, layer, layer.header, (seen, below, opener))
        yield layer


def _open_backing(
    files: FileSystem, overlay: Layer, header: qcow2.Header, how: tuple[list[tuple[int, int]], str, Opener]
) -> Layer:
    seen, access, opener = how
    path = resolve_name(overlay.path, header.backing_file or "")
    try:
        identity = files.identity(path)
        if identity not in seen:
            seen.append(identity)
            return opener(files, path, header.backing_format, access)
    except (ChainError, ImageError) as error:
        error.facts["overlay"] = overlay.path
        raise
    raise LoopInChain(path=overlay.path, backing=path)


def open_chain(
    files: FileSystem, path: str, image_format: str | None = None, access: str = Access.READ
) -> tuple[Layer, ...]:
    """Open an image and all that backs it, the top first; what backs it is opened for reading.
    Raises: what `walk` raises, UnknownFeature when guest data is encrypted.
    """
    layers: list[Layer] = []
    try:
        for layer in walk(files, path, image_format, access):
            layers.append(layer)
            refuse_encryption(layer)
    except BaseException:
        close_all(layers)
        raise
    return tuple(layers)


def close_all(layers: Iterable[Layer]) -> None:
    """Close every layer."""
    for layer in layers:
        layer.close()
