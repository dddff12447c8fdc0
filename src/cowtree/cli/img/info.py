"""`cowtree img info`: what the header of an image says. Without numpy: no other command is called as often."""

import time
from typing import cast

from cowtree.chain.drivers import FILE_DRIVERS
from cowtree.cli.img import qobject
from cowtree.cli.img.command import (
    FORMAT,
    IMAGE_OPTS,
    OBJECT,
    OUTPUT,
    SHARE,
    Command,
    Given,
    Option,
    want_json,
    want_names,
)
from cowtree.cli.img.source import access_of, files_of, source_of
from cowtree.images.info import ImageInfo, chain_info, image_info
from cowtree.luks.header import STRIPE_COUNT, Slot, Volume
from cowtree.qcow2 import header as qcow2
from cowtree.qcow2.bitmaps import Bitmap
from cowtree.qcow2.header import Header
from cowtree.qcow2.snapshots import Snapshot
from cowtree.units import format_size

CHAIN = Option(("--backing-chain",), "describe all that backs it as well")


def run(given: Given) -> int:
    """Print what the header says, of one image or of its chain."""
    (name,) = want_names(given, 1, "Expecting one image file name")
    is_json = want_json(given)
    source, access = source_of(given, name), access_of(given)
    if given.has("--backing-chain"):
        found = list(chain_info(files_of(given), *source, access))
        print(qobject.dumps([to_object(each) for each in found]) if is_json else "\n\n".join(map(to_text, found)))
    else:
        info = image_info(files_of(given), *source, access)
        print(qobject.dumps(to_object(info)) if is_json else to_text(info))
    return 0


def to_text(info: ImageInfo) -> str:
    """An image for people, without the last line end."""
    lines = [
        f"image: {_shown_name(info)}",
        f"file format: {_shown_format(info)}",
        f"virtual size: {format_size(info.size_bytes)} ({info.size_bytes} bytes)",
        f"disk size: {'unavailable' if info.own_size_bytes is None else format_size(info.own_size_bytes)}",
    ]
    header, specific = info.header, _specific_of(info)
    if header is None and specific is None:
        return "\n".join(lines)
    if info.is_encrypted:
        lines.append("encrypted: yes")
    if header is not None:
        lines += _header_lines(info, header)
    return "\n".join([*lines, "Format specific information:", *_lines_of(specific, 1)])


def _header_lines(info: ImageInfo, header: Header) -> list[str]:
    """What the header of a qcow2 image says, but for what is specific to the format."""
    lines = []
    lines.append(f"cluster_size: {1 << header.cluster_bits}")
    if header.is_dirty:
        lines.append("cleanly shut down: no")
    if header.backing_file is not None:
        is_same = header.backing_file == info.backing_path
        lines.append(
            f"backing file: {header.backing_file}" + ("" if is_same else f" (actual path: {info.backing_path})")
        )
        if header.backing_format is not None:
            lines.append(f"backing file format: {header.backing_format}")
    if info.snapshots:
        lines += ["Snapshot list:", SNAPSHOT_HEAD, *map(snapshot_line, info.snapshots)]
    return lines


def _shown_name(info: ImageInfo) -> str:
    """The path, unless that alone does not lead to the same bytes."""
    full = info.address.full_options(info.format) if info.address and not _is_bare(info) else None
    return info.path if full is None else f"json:{qobject.dumps_line(cast(qobject.Value, full))}"


def _shown_format(info: ImageInfo) -> str:
    return str(info.address.options["driver"]) if info.address and _is_bare(info) else info.format


def _is_bare(info: ImageInfo) -> bool:
    """Whether a file was opened without a format."""
    return bool(info.address and info.address.options.get("driver") in FILE_DRIVERS)


SNAPSHOT_HEAD = f"{'ID':<10}{'TAG':<17}{'VM SIZE':>8}{'DATE':>20}{'VM CLOCK':>13}{'ICOUNT':>11}"


def snapshot_line(snapshot: Snapshot) -> str:
    """One line of the list of internal snapshots."""
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(snapshot.time_s))
    seconds, ns = divmod(snapshot.vm_clock_ns, 10**9)
    clock = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{ns // 10**6:03}"
    count = "" if snapshot.icount is None else str(_signed(snapshot.icount))
    size = format_size(snapshot.vm_state_bytes)
    return f"{_pad(snapshot.id, 9)} {_pad(snapshot.name, 16)} {size:>8}{moment:>20}{clock:>13}{count:>11}"


def _pad(text: str, byte_count: int) -> str:
    """Fill up a column as C does, which counts bytes."""
    return text + " " * (byte_count - len(text.encode("utf-8", "surrogateescape")))


def _signed(number: int) -> int:
    """A number of 64 bits as QEMU shows it."""
    return number - (1 << 64) if number >> 63 else number


def _lines_of(value: qobject.Value, depth: int) -> list[str]:
    """An object or list as QEMU indents it for people."""
    pairs: list[tuple[str, qobject.Value]]
    if isinstance(value, dict):
        pairs = [(key.replace("-", " "), each) for key, each in qobject.ordered(value)]
    elif isinstance(value, list):
        pairs = [(f"[{index}]", each) for index, each in enumerate(value)]
    else:
        return []
    lines = []
    for key, each in pairs:
        lines.append(f"{'    ' * depth}{key}:" + ("" if isinstance(each, dict | list) else f" {_plain(each)}"))
        lines += _lines_of(each, depth + 1)
    return lines


def _plain(value: qobject.Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def to_object(info: ImageInfo) -> qobject.Value:
    """An image for programs."""
    found: dict[str, qobject.Value] = {
        "virtual-size": info.size_bytes,
        "filename": _shown_name(info),
        "format": _shown_format(info),
        # Of what a server exports nothing more is known.
        **({} if info.own_size_bytes is None else {"actual-size": info.own_size_bytes, "dirty-flag": False}),
    }
    header, specific = info.header, _specific_of(info)
    if specific is not None:
        found["format-specific"] = {"type": info.format, "data": specific}
    if info.is_encrypted:
        found["encrypted"] = True
    if header is None:
        return found
    found |= {"cluster-size": 1 << header.cluster_bits, "dirty-flag": header.is_dirty}
    if header.backing_file is not None:
        found |= {"full-backing-filename": info.backing_path, "backing-filename": header.backing_file}
        if header.backing_format is not None:
            found["backing-filename-format"] = header.backing_format
    if info.snapshots:
        found["snapshots"] = [_snapshot_object(each) for each in info.snapshots]
    return found


def _specific_of(info: ImageInfo) -> qobject.Value:
    """What only images of this format have; None where there is nothing of that kind."""
    if info.header is not None:
        return _specific(info.header, info)
    return None if info.volume is None else _volume_object(info.volume)


def _volume_object(volume: Volume) -> dict[str, qobject.Value]:
    suite = volume.suite
    is_hashed = suite.iv_generator == "essiv"
    return {
        "cipher-alg": suite.cipher,
        "cipher-mode": suite.mode,
        "ivgen-alg": suite.iv_generator,
        **({"ivgen-hash-alg": suite.iv_hash} if is_hashed else {}),
        "hash-alg": suite.hash_name,
        "payload-offset": volume.payload_offset,
        "master-key-iters": volume.digest_iteration_count,
        "uuid": volume.uuid,
        "slots": [_slot_object(each) for each in volume.slots],
    }


def _slot_object(slot: Slot) -> qobject.Value:
    used: dict[str, qobject.Value] = {"iters": slot.iteration_count, "stripes": STRIPE_COUNT} if slot.is_active else {}
    return {"active": slot.is_active, **used, "key-offset": slot.offset}


def _specific(header: Header, info: ImageInfo) -> qobject.Value:
    found: dict[str, qobject.Value] = {
        "compat": "0.10" if header.version < 3 else "1.1",
        "compression-type": qcow2.COMPRESSION_NAMES[header.compression_type],
        "refcount-bits": header.geometry.refcount_bits,
    }
    if header.version >= 3:
        found |= {
            "lazy-refcounts": bool(header.compatible & qcow2.LAZY_REFCOUNTS),
            "corrupt": header.is_corrupt,
            "extended-l2": header.geometry.has_subclusters,
        }
    if info.bitmaps:
        found["bitmaps"] = [_bitmap_object(each) for each in info.bitmaps]
    if header.data_file is not None:
        found["data-file"] = header.data_file
    if header.incompatible & qcow2.EXTERNAL_DATA_FILE:
        found["data-file-raw"] = bool(header.autoclear & qcow2.AUTOCLEAR_RAW_DATA)
    if header.crypt_method:
        about = _volume_object(info.volume) if info.volume else {}
        found["encrypt"] = {"format": qcow2.CRYPT_NAMES[header.crypt_method], **about}
    return found


def _bitmap_object(bitmap: Bitmap) -> qobject.Value:
    flags: list[qobject.Value] = [
        name for name, is_set in (("in-use", bitmap.is_in_use), ("auto", bitmap.is_auto)) if is_set
    ]
    return {"flags": flags, "name": bitmap.name, "granularity": 1 << bitmap.granularity_bits}


def _snapshot_object(snapshot: Snapshot) -> qobject.Value:
    seconds, ns = divmod(snapshot.vm_clock_ns, 10**9)
    found: dict[str, qobject.Value] = {
        "id": snapshot.id,
        "name": snapshot.name,
        "vm-state-size": _signed(snapshot.vm_state_bytes),
        "date-sec": snapshot.time_s,
        "date-nsec": snapshot.time_ns,
        "vm-clock-sec": seconds,
        "vm-clock-nsec": ns,
    }
    if snapshot.icount is not None:
        found["icount"] = _signed(snapshot.icount)
    return found


COMMAND = Command(
    "info",
    "Describe an image: format, sizes, backing file, snapshots.",
    (FORMAT, OUTPUT, CHAIN, SHARE, IMAGE_OPTS, OBJECT),
    "FILENAME",
    run,
)
