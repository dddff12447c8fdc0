"""The gate: the only place where a name found inside an image becomes an open file.

- A format is given, or declared by the overlay; only where neither says so is the magic number looked at. What was
  declared raw stays raw, whatever its first bytes are.
- Names inside images are inert text until `resolve_name`. `json:{...}` inside an image and the address of an export are
  followed only when the files say so (`follows_addresses`); all other addresses are refused.
- A chain is at most 256 layers deep and holds each file once (device, inode).
- Every file is opened under QEMU's locks.

The standard library only, for `img info` passes through here.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from cowtree.chain.address import (
    Address,
    Window,
    from_options,
    has_protocol,
    is_json,
    name_of,
    options_of,
    parse,
    plain_name,
)
from cowtree.errors import (
    BrokenHeader,
    ChainError,
    ChainTooDeep,
    ImageError,
    Locked,
    LoopInChain,
    MissingImage,
    NotAnImage,
    PlacedError,
)
from cowtree.luks import header as luks
from cowtree.qcow2 import header as qcow2
from cowtree.storage import foreign
from cowtree.storage.contract import Access, FileSystem, Storage
from cowtree.storage.encrypted import EncryptedFile, EncryptedVolume, SectorCipher
from cowtree.storage.part import Part
from cowtree.units import SECTOR_BYTES

if TYPE_CHECKING:
    from cowtree.extents import Known

LAYER_COUNT_MAX = 256
HEADER_BYTES = 4096
RAW, QCOW2, LUKS = "raw", "qcow2", "luks"
NO_EXPORTS = "What an NBD server exports cannot be opened by its address"
FORMATS = (RAW, QCOW2, LUKS, *foreign.FORMATS)


class Layer(NamedTuple):
    """One open image of a chain. `header` is that of a qcow2 image, `data` where guest data lies if not in `file`, in
    an external data file or under a cipher; `origin` is where its disk begins in the disk that is read: not 0 only when
    images are joined one behind the other. `volume` says how guest data is encrypted, and nobody can read it before
    `is_unlocked`. The old way of encryption goes by guest offsets: `guest_cipher`. `address` is how it was called.
    With `salvage` what cannot be read is zeroes: it is told the offset of each such sector of the disk, and why.
    `known` is what its tables say when they were read before.
    """

    path: str
    format: str
    file: Storage
    size_bytes: int
    header: qcow2.Header | None
    data: Storage | None
    was_probed: bool
    origin: int = 0
    volume: luks.Volume | None = None
    guest_cipher: SectorCipher | None = None
    is_unlocked: bool = False
    address: Address | None = None
    salvage: Callable[[int, str], None] | None = None
    known: "Known | None" = None

    @property
    def name(self) -> str:
        """The name by which it is opened again, together with its format."""
        return self.address.name if self.address else self.path

    @property
    def host_offset(self) -> int:
        """Where the part of the file that is the image begins."""
        if self.address is None:
            return 0
        own = self.address.window.offset if self.format == RAW else 0
        return own + sum(each.offset for each in self.address.inner)

    @property
    def is_encrypted(self) -> bool:
        """Whether guest data is secret."""
        return self.format == LUKS or bool(self.header and self.header.crypt_method)

    @property
    def key_option(self) -> str:
        """What the name of the key is given as."""
        return "key-secret" if self.format == LUKS else "encrypt.key-secret"

    @property
    def volume_place(self) -> tuple[int, int]:
        """Where the header of the encryption begins in the file, and how long it and the key slots are."""
        if self.header is not None:
            return self.header.encryption_header or (0, 0)
        return 0, self.volume.payload_offset if self.volume else 0

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


def locate(holder: str, name: str) -> str:
    """The name by which what the image `holder` calls `name` is opened from here. As in QEMU a name is an address when
    a colon comes before the first slash, and an address does not start from the holder's folder.
    """
    return name if has_protocol(name) else plain_name(os.path.join(os.path.dirname(holder), name))


def resolve_name(holder: str, name: str) -> str:
    """The path that a name inside the image `holder` means.
    Raises: ChainError when it is an address and not a file name.
    """
    try:
        address = parse(locate(holder, name))
    except ChainError:
        raise _no_file(holder, name) from None
    if address.location:
        raise _no_file(holder, name)
    return address.path


def _no_file(holder: str, name: str) -> ChainError:
    """What says that the name inside an image is not followed."""
    reason = f"'{name}' is an address, not a file name"
    return ChainError(path=holder, reason=reason, hint="cowtree img rebase -u -b BASE -F FORMAT {path}")


def refuse_address(holder: str, name: str) -> None:
    """Refuse a name inside an image that is more than a file name, with or without `file:`. Raises: ChainError."""
    if has_protocol(name) and not name.startswith("file:"):
        raise _no_file(holder, name)


def data_file_path(holder: str, name: str) -> str:
    """The path of the external data file that the image `holder` names. As in QEMU it starts from the folder of the
    process, not from that of the image.
    Raises: ChainError when it is an address and not a file name.
    """
    if is_json(name):
        raise _no_file(holder, name)
    return resolve_name(holder, name) if has_protocol(name) else name


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


def open_layer(files: FileSystem, name: str, image_format: str | None = None, access: str = Access.READ) -> Layer:
    """Open one image alone, without what backs it; without a format its magic number decides.
    Raises: MissingImage, ImageLocked, NotAnImage, and what `header.parse` raises.
    """
    layer = open_alone(files, name, image_format, access)
    try:
        if layer.header is not None:
            layer = layer._replace(data=_open_data_file(files, layer, layer.header, access))
        return _with_key(files, layer)
    except BaseException as error:
        layer.close()
        if isinstance(error, PlacedError):
            error.facts.setdefault("name", name)
        raise


def open_readable(files: FileSystem, name: str, image_format: str | None = None, access: str = Access.READ) -> Layer:
    """The same, but refused when guest data is encrypted and there is no key: QEMU opens such images for nothing but
    `info`.
    Raises: what `open_layer` raises, Locked.
    """
    layer = open_layer(files, name, image_format, access)
    try:
        refuse_encryption(layer)
    except Locked:
        layer.close()
        raise
    return layer


def open_alone(files: FileSystem, name: str, image_format: str | None = None, access: str = Access.READ) -> Layer:
    """Open one file and nothing that it names; guest data in an external file cannot be read through it.
    Raises: what `open_layer` raises.
    """
    address = parse(name)
    wanted = address.format if image_format is None else image_format
    if wanted is not None and wanted not in FORMATS:
        raise ChainError(path=address.path, reason=f"Unknown driver '{wanted}'", name=name, hint="-f raw or -f qcow2")
    if address.is_read_only and access == Access.WRITE:
        raise ChainError(path=name, reason="Block node is read-only", hint="the same without read-only")
    try:
        file = open_file(files, address, Access.SHARED if address.is_shared and access == Access.READ else access)
        try:
            layer = _layer_over(_parts(address, address.inner, file), address, wanted)
            return _open_foreign(files, layer, access) if layer.format in foreign.FORMATS else layer
        except BaseException:
            file.close()
            raise
    except PlacedError as error:
        error.facts.setdefault("name", name)
        raise


def open_file(files: FileSystem, address: Address, access: str) -> Storage:
    """The file of an image, or the export where addresses are followed. Raises: ChainError where they are not, and what
    `files.open` raises.
    """
    if not address.location:
        return files.open(address.path, access)
    if not files.follows_addresses:
        hint = "./{name} for a file of this name, or a copy in a local file"
        raise ChainError(path=address.path, name=address.name, reason=NO_EXPORTS, hint=hint)
    try:
        return files.open(address.location, access)
    except PlacedError as error:
        error.facts.setdefault("name", address.name)
        raise


def _layer_over(file: Storage, address: Address, wanted: str | None) -> Layer:
    """Read what the format keeps beside guest data."""
    path, found = address.path, wanted or probe(file)
    address.check(found)
    layer = Layer(path, found, file, 0, None, None, wanted is None, address=address)
    if found == QCOW2:
        header = read_header(path, file)
        layer = layer._replace(size_bytes=header.size_bytes // SECTOR_BYTES * SECTOR_BYTES, header=header)
        return layer._replace(volume=_read_volume(layer))
    if found == RAW:
        layer = layer._replace(file=_parts(address, (address.window,), file))
    end = layer.file.size_bytes
    if found == LUKS:
        layer = layer._replace(volume=_read_volume(layer))
        end -= layer.volume_place[1]
        if end < 0:
            raise BrokenHeader(path=path, reason="Could not refresh total sector count: Input/output error")
    return layer._replace(size_bytes=-(-end // SECTOR_BYTES) * SECTOR_BYTES)


def _open_foreign(files: FileSystem, layer: Layer, access: str) -> Layer:
    """The disk in another hypervisor's image, which nobody writes. Raises: what `foreign.open_disk` raises."""
    if access == Access.WRITE:
        hint = "cowtree img convert -O qcow2 {path} COPY, and write to the copy"
        raise ChainError(path=layer.path, reason="Block node is read-only", hint=hint)
    disk = foreign.open_disk(files, layer.file, layer.format, access)
    return layer._replace(file=disk, size_bytes=disk.size_bytes)


def _parts(address: Address, windows: tuple[Window, ...], file: Storage) -> Storage:
    """What is seen of a file through windows, the innermost first. Raises: ChainError."""
    for window in windows:
        offset, size_bytes, end = window.offset, window.size_bytes, file.size_bytes
        reason = None
        if offset > end:
            reason = f"Offset ({offset}) cannot be greater than size of the containing file ({end})"
        elif size_bytes is not None and end - offset < size_bytes:
            reason = (
                f"The sum of offset ({offset}) and size ({size_bytes}) has to be smaller or equal to the "
                f" actual size of the containing file ({end})"
            )
        elif size_bytes is not None and size_bytes % SECTOR_BYTES:
            reason = f"Specified size is not multiple of {SECTOR_BYTES}"
        if reason is not None:
            raise ChainError(path=address.name, reason=reason)
        if window != (0, None):
            file = Part(file, offset, size_bytes)
    return file


def probe(file: Storage) -> str:
    """Tell the format from the magic number."""
    data = file.pread(0, foreign.PROBE_BYTES)
    if luks.is_luks(data):
        return LUKS
    return QCOW2 if qcow2.is_qcow2(data) else foreign.probe(data) or RAW


def _read_volume(layer: Layer) -> luks.Volume | None:
    """Read the header of the encryption, if there is one. Raises: BrokenHeader."""
    if layer.header is not None:
        return _read_inner_volume(layer.path, layer.file, layer.header)
    return luks.parse(layer.path, layer.file.pread(0, luks.HEADER_BYTES)) if layer.format == LUKS else None


def _read_inner_volume(path: str, file: Storage, header: qcow2.Header) -> luks.Volume | None:
    """The same of a qcow2 image. Raises: BrokenHeader."""
    data, is_luks = header.extension(qcow2.ENCRYPTION), qcow2.CRYPT_NAMES.get(header.crypt_method) == LUKS
    if data is None:
        return None
    expected = qcow2.ENCRYPTION_HEADER.size_bytes
    offset, length = header.encryption_header or (0, 0)
    rules = (
        (is_luks, "CRYPTO header extension only expected with LUKS encryption method"),
        (len(data) == expected, f"CRYPTO header extension size {len(data)}, but expected size {expected}"),
        (length >= luks.HEADER_BYTES, "Request for data outside of extension header"),
    )
    for holds, reason in rules:
        if not holds:
            raise BrokenHeader(path=path, reason=reason)
    return luks.parse(path, file.pread(offset, luks.HEADER_BYTES))


def read_header(path: str, file: Storage) -> qcow2.Header:
    """Read and check the first cluster of a qcow2 image, as far as it is used."""
    data = file.pread(0, HEADER_BYTES)
    if not qcow2.is_qcow2(data):
        raise NotAnImage(path=path, format=QCOW2)
    while qcow2.wanted_bytes(data) > len(data):
        data = file.pread(0, max(qcow2.wanted_bytes(data), 2 * len(data)))
    return qcow2.parse(path, data, file.size_bytes)


def _open_data_file(files: FileSystem, layer: Layer, header: qcow2.Header, access: str) -> Storage | None:
    given = layer.address.data_file if layer.address else {}
    if not header.incompatible & qcow2.EXTERNAL_DATA_FILE:
        if given:
            reason = "'data-file' can only be set for images with an external data file"
            raise ChainError(path=layer.name, reason=reason)
        return None
    if given:
        if given.get("driver") not in (None, RAW):
            given = {**given, "driver": "file"}
        elif "filename" in given:
            given = {"driver": "file", **given}
        address = from_options(layer.name, given)
        return _parts(address, (*address.inner, address.window), open_file(files, address, access))
    if header.data_file is None:
        raise BrokenHeader(path=layer.path, reason="'data-file' is required for this image")
    return files.open(data_file_path(layer.path, header.data_file), access)


def unlock(files: FileSystem, layer: Layer, key_secret: str) -> Layer:
    """The same layer, whose guest data can be read and written, by the secret of this name.
    Raises: Locked when it does not fit, BrokenHeader.
    """
    from cowtree.chain import unlock as keys  # noqa: PLC0415 # numpy and ciphers are for encrypted images alone

    if not layer.is_encrypted:
        return layer
    secret = keys.passphrase(files, layer.path, key_secret)
    if layer.header and qcow2.CRYPT_NAMES[layer.header.crypt_method] == "aes":
        return layer._replace(guest_cipher=keys.legacy_cipher(secret), is_unlocked=True)
    if layer.volume is None:
        raise BrokenHeader(path=layer.path, reason="Missing CRYPTO header for crypt method 2")
    _, key = keys.VolumeFile(layer.path, layer.file, layer.volume_place, layer.volume).find_key(secret)
    cipher = keys.volume_cipher(layer.volume, key)
    if layer.format == LUKS:
        file = EncryptedVolume(layer.file, cipher, layer.volume.payload_offset)
        return layer._replace(file=file, is_unlocked=True)
    return layer._replace(data=EncryptedFile(layer.data_file, cipher), is_unlocked=True)


def _with_key(files: FileSystem, layer: Layer) -> Layer:
    """The same layer, unlocked when its address names a secret. Raises: what `unlock` raises."""
    secret = layer.address.key_secret if layer.address else None
    try:
        return layer if secret is None else unlock(files, layer, secret)
    except Locked as error:
        error.facts.setdefault("name", layer.name)
        raise


def check_key(files: FileSystem, layer: Layer) -> None:
    """Refuse an encrypted image without the key to it. Raises: Locked, BrokenHeader."""
    if layer.is_unlocked:
        return
    if layer.volume is None:
        layer = layer._replace(volume=_read_volume(layer))
    refuse_encryption(_with_key(files, layer))


def refuse_encryption(layer: Layer) -> None:
    """Refuse an image whose guest data nobody can read without a key. Raises: Locked."""
    if layer.is_encrypted and not layer.is_unlocked:
        option, reason = layer.key_option, f"Parameter '{layer.key_option}' is required for cipher"
        raise Locked(path=layer.path, name=layer.name, reason=reason, option=option)


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
    seen = [files.identity(layer.path)]
    yield layer
    below = access if access in (Access.SHARED, Access.PROBE) else Access.READ
    while (backing := _backing_of(files, layer)) is not None:
        if len(seen) == LAYER_COUNT_MAX:
            raise ChainTooDeep(path=path, limit=LAYER_COUNT_MAX)
        layer = _open_backing(files, layer, backing, (seen, below, opener))
        yield layer


def _backing_of(files: FileSystem, layer: Layer) -> tuple[str, str | None] | None:
    """The name and the format of what backs a layer: what its address says counts more than what the image says.
    Raises: ChainError.
    """
    header, address = layer.header, layer.address
    if header is None or (address and not address.has_backing):
        return None
    given = address.backing if address else {}
    name, image_format = header.backing_file, header.backing_format
    if address and isinstance(node := address.options.get("backing"), str):
        reason = f"Could not open backing file: Cannot find device='{node}' nor node-name='{node}'"
        raise ChainError(path=layer.name, reason=reason)
    if name is not None and "file.filename" not in given:
        if not files.follows_addresses:
            refuse_address(layer.path, name)
        name = locate(layer.path, name)
        driver = given.get("driver", image_format)
        return (name_of({**options_of(name), **given}) if given else name), None if driver is None else str(driver)
    if not given:
        return None
    return name_of(given), None if "driver" in given else image_format


def _open_backing(
    files: FileSystem, overlay: Layer, backing: tuple[str, str | None], how: tuple[list[tuple[int, int]], str, Opener]
) -> Layer:
    seen, access, opener = how
    name, image_format = backing
    try:
        path = parse(name).path
        identity = files.identity(path)
        if identity not in seen:
            seen.append(identity)
            return opener(files, name, image_format, access)
    except (ChainError, ImageError) as error:
        error.facts["overlay"] = overlay.name
        raise
    raise LoopInChain(path=overlay.path, backing=path)


def open_chain(
    files: FileSystem, path: str, image_format: str | None = None, access: str = Access.READ
) -> tuple[Layer, ...]:
    """Open an image and all that backs it, the top first; what backs it is opened for reading.
    Raises: what `walk` raises, Locked when guest data is encrypted and there is no key.
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
