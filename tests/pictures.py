"""Owns images as pictures: one sign a cluster, one string a layer.

    A to Z  data          0  zeroes                          -  a hole: whatever lies below
    a to z  compressed    o  zeroes; the cluster is kept

A family of pictures becomes real images in memory, made by cowtree itself; what is seen and what a layer holds become
pictures again. The first layer of a family is its top.
"""

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cowtree import extents as ex
from cowtree.chain import gate, load
from cowtree.chain.view import Chain, layer_extents, open_chain, resolve
from cowtree.execute.read import fetch
from cowtree.execute.writer import LayerWriter
from cowtree.images import merge
from cowtree.images.create import create
from cowtree.plan.create import NewImage
from cowtree.plan.put import Wish
from cowtree.qcow2 import tables
from cowtree.storage.contract import Access, FileSystem
from cowtree.storage.memory import MemoryFiles
from tests import permits

CLUSTER_BITS = 9
CLUSTER_BYTES = 1 << CLUSTER_BITS


class Family(NamedTuple):
    """Images in memory; `names` from the top down."""

    files: MemoryFiles
    names: tuple[str, ...]
    formats: tuple[str, ...]

    @property
    def top(self) -> str:
        """The name of the topmost image."""
        return self.names[0]

    def seen(self, index: int = 0) -> str:
        """What the guest sees through a layer."""
        return see(self.files, self.names[index], self.formats[index])

    def held(self, index: int = 0) -> str:
        """What a layer itself holds."""
        return hold(self.files, self.names[index], self.formats[index])


def family(*layers: str, raw_base: bool = False, version: int = 3, base_cluster_bits: int = CLUSTER_BITS) -> Family:
    """Make images of pictures, the top first. In a base with larger clusters some signs lie in one cluster."""
    files = MemoryFiles()
    names = tuple(f"layer-{index}" for index in range(len(layers)))
    formats = tuple("raw" if raw_base and name == names[-1] else "qcow2" for name in names)
    for index in reversed(range(len(layers))):
        backing = (names[index + 1], formats[index + 1]) if index + 1 < len(layers) else (None, None)
        bits = CLUSTER_BITS if backing[0] else base_cluster_bits
        new = NewImage(names[index], formats[index], len(layers[index]) * CLUSTER_BYTES, bits, version)
        draw(files, new._replace(backing_file=backing[0], backing_format=backing[1]), layers[index])
    return Family(files, names, formats)


def draw(files: FileSystem, new: NewImage, picture: str) -> None:
    """Make one image that holds what the picture shows."""
    create(files, new)
    if new.format == "raw":
        file = files.open(new.path, Access.WRITE)
        for index, sign in enumerate(picture):
            if sign not in "-0":
                file.pwrite(index * CLUSTER_BYTES, sign.encode() * CLUSTER_BYTES)
        file.close()
        return
    inks = MemoryFiles({"ink": b"".join(sign.upper().encode() * CLUSTER_BYTES for sign in picture)})
    layer = gate.open_layer(files, new.path, "qcow2", Access.WRITE)
    ink = gate.open_layer(inks, "ink", "raw")
    writer = LayerWriter(Chain((layer, ink), (load.load_image(layer), None)), 0)
    signs = [(index * CLUSTER_BYTES, sign) for index, sign in enumerate(picture)]
    parts = [
        ex.single(at, at + CLUSTER_BYTES, ex.ZERO)
        if sign == "0"
        else ex.single(at, at + CLUSTER_BYTES, ex.DATA, layer=1, host_offset=at)
        for at, sign in signs
        if sign != "-"
    ]
    everything = ex.single(0, len(picture) * CLUSTER_BYTES, ex.DATA)
    writer.put(Wish(ex.concatenate(parts), ex.empty(), everything, True), 0, len(picture) * CLUSTER_BYTES)
    writer.finish()
    for at, sign in signs:
        if sign == "o" or sign.islower():
            _patch(writer, at, sign)
    layer.close()


def _patch(writer: LayerWriter, at: int, sign: str) -> None:
    """Turn one cluster of data into a kept cluster of zeroes, or into a compressed one."""
    image = writer.image
    assert image is not None
    held = load.load_tables(writer.file, image, at, at + CLUSTER_BYTES)
    column = at // CLUSTER_BYTES % image.geometry.l2_entry_count
    entry = held.entries[0, column]
    if sign == "o":
        entry |= tables.ZERO_FLAG
    else:
        host = int(entry & tables.HOST_OFFSET)
        packer = zlib.compressobj(wbits=-12)
        packed = packer.compress(sign.upper().encode() * CLUSTER_BYTES) + packer.flush()
        writer.file.pwrite(host, packed.ljust(CLUSTER_BYTES, b"\0"))
        entry = np.uint64(host) | tables.COMPRESSED_FLAG
    writer.file.pwrite(int(held.host_offset[0]) + 8 * column, tables.encode_words(np.array([entry])))


def view(files: FileSystem, path: str, image_format: str | None = None) -> bytes:
    """Every byte that the guest sees, as cowtree reads it."""
    chain = open_chain(files, path, image_format, Access.SHARED)
    try:
        data = bytearray(chain.size_bytes)
        seen = resolve(chain, 0, len(data))
        fetch(chain, seen, seen.start, memoryview(data))
        return bytes(data)
    finally:
        chain.close()


def see(files: FileSystem, path: str, image_format: str | None = None) -> str:
    """What the guest sees, as a picture; `?` for a cluster that is no sign."""
    data = view(files, path, image_format)
    clusters = [data[at : at + CLUSTER_BYTES] for at in range(0, len(data), CLUSTER_BYTES)]
    return "".join(_sign(set(cluster)) for cluster in clusters)


def _sign(found: set[int]) -> str:
    sign = chr(found.pop()) if len(found) == 1 else "?"
    return "0" if sign == "\0" else sign


def hold(files: FileSystem, path: str, image_format: str | None = None) -> str:
    """What one layer itself holds, as a picture."""
    chain = open_chain(files, path, image_format, Access.SHARED)
    try:
        shown = see(files, path, image_format)
        held = layer_extents(chain, 0, 0, chain.size_bytes)
        signs = ["-"] * len(shown)
        for start, length, kind in zip(held.start.tolist(), held.length.tolist(), held.kind.tolist(), strict=True):
            for index in range(start // CLUSTER_BYTES, -(-(start + length) // CLUSTER_BYTES)):
                names = {ex.ZERO: "0", ex.ALLOCATED: "o", ex.COMPRESSED: shown[index].lower()}
                signs[index] = names.get(kind, shown[index])
        return "".join(signs)
    finally:
        chain.close()


def commit(*, top: str, base: str, between: Sequence[str] = (), raw_base: bool = False) -> str:
    """Commit a top into a base, and show the base."""
    made = family(top, *between, base, raw_base=raw_base)
    permits.commit(made.files, made.top, into=permits.Into(made.names[-1]))
    return made.seen(-1)


def pull(*layers: str, base: int | None = None) -> str:
    """Pull into the top all that lies above the layer `base`, and show what the top then holds."""
    made = family(*layers)
    merge.pull(made.files, made.top, base=None if base is None else made.names[base])
    return made.held()


def rebase(*, top: str, old: str, new: str) -> str:
    """Move a top from one base to another, and show what the top then holds."""
    made = family(top, old)
    draw(made.files, NewImage("new", "qcow2", len(new) * CLUSTER_BYTES, CLUSTER_BITS), new)
    merge.rebase(made.files, made.top, backing=("new", "qcow2"))
    return made.held()
