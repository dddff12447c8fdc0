"""One image of every kind: made by qemu-img and, where it makes no such image, by changing bytes of one it made."""

import os
import struct
from pathlib import Path

from tests.qemu import qemu_img, qemu_io

# Where the header says where the snapshot table is; and fields of the table's first entry.
SNAPSHOTS_OFFSET = 64
DATE, VM_CLOCK, EXTRA_DATA = 16, 24, 40
BITMAPS_EXTENSION = struct.pack(">II", 0x23852875, 24)
INVALID_UTF8 = os.fsdecode(b"bad-\xff.qcow2")

CREATED = (
    *(("raw.img", ("3000k",)), ("odd.img", ("1001",))),
    ("v3.qcow2", ("-f", "qcow2", "10M")),
    ("v2.qcow2", ("-f", "qcow2", "-o", "compat=0.10", "10M")),
    *((f"r{bits}.qcow2", ("-f", "qcow2", "-o", f"refcount_bits={bits}", "1G")) for bits in (1, 2, 4, 8, 32, 64)),
    *((f"c{size}.qcow2", ("-f", "qcow2", "-o", f"cluster_size={size}", "1000k")) for size in (512, 4096, 2 << 20)),
    ("zero.qcow2", ("-f", "qcow2", "0")),
    ("zstd.qcow2", ("-f", "qcow2", "-o", "compression_type=zstd,lazy_refcounts=on", "1T")),
    ("extended.qcow2", ("-f", "qcow2", "-o", "extended_l2=on", "1T")),
    ("data.qcow2", ("-f", "qcow2", "-o", "data_file=data", "1M")),
    ("data-raw.qcow2", ("-f", "qcow2", "-o", "data_file=data-raw,data_file_raw=on", "1M")),
    ("data-gone.qcow2", ("-f", "qcow2", "-o", "data_file=data-gone", "1M")),
    ("prepared.qcow2", ("-f", "qcow2", "-o", "preallocation=metadata", "1M")),
    ("over.qcow2", ("-f", "qcow2", "-b", "v3.qcow2", "-F", "qcow2")),
    ("over-dot.qcow2", ("-f", "qcow2", "-b", "./over.qcow2", "-F", "qcow2")),
    ("over-file.qcow2", ("-f", "qcow2", "-b", "file:over-dot.qcow2", "-F", "qcow2")),
    ("over-raw.qcow2", ("-f", "qcow2", "-b", "raw.img", "-F", "raw", "30M")),
    ("over-gone.qcow2", ("-u", "-f", "qcow2", "-b", "gone", "-F", "raw", "1M")),
    ("over-nbd.qcow2", ("-u", "-f", "qcow2", "-b", "nbd://[::1]:1/x", "-F", "raw", "1M")),
    ("over-json.qcow2", ("-u", "-f", "qcow2", "-b", 'json:{"driver":"raw"}', "-F", "raw", "1M")),
    ("sub/below.qcow2", ("-f", "qcow2", "-b", "../v3.qcow2", "-F", "qcow2")),
    ("sub/beside.qcow2", ("-f", "qcow2", "-b", "below.qcow2", "-F", "qcow2")),
    ("uni-ü-中.qcow2", ("-f", "qcow2", "1M")),
    ("over-𝄞.qcow2", ("-f", "qcow2", "-b", "uni-ü-中.qcow2", "-F", "qcow2")),
    (INVALID_UTF8, ("-f", "qcow2", "1M")),
    ("over-bad.qcow2", ("-f", "qcow2", "-b", INVALID_UTF8, "-F", "qcow2")),
    ('with space, "quotes" and {braces}.qcow2', ("-f", "qcow2", "1M")),
    *((f"{name}.qcow2", ("-f", "qcow2", "1M")) for name in ("dirty", "corrupt", "both", "aes", "autoclear", "future")),
    *((f"{name}.qcow2", ("-f", "qcow2", "1M")) for name in ("unknown", "snapshots", "vm", "late", "bitmaps", "in-use")),
    ("snapshots-v2.qcow2", ("-f", "qcow2", "-o", "compat=0.10", "1M")),
    ("filled.qcow2", ("-f", "qcow2", "4M")),
)
# Each on an image of its own: byte, value.
PATCHED = {
    "dirty.qcow2": (79, ">B", 1),
    "corrupt.qcow2": (79, ">B", 2),
    "both.qcow2": (79, ">B", 3),
    "aes.qcow2": (32, ">I", 1),
    "autoclear.qcow2": (88, ">Q", 1 << 63),
    "future.qcow2": (80, ">Q", 1 << 63),
    "unknown.qcow2": (72, ">Q", 1 << 40),
}
SNAPSHOTS = (
    ("snapshots.qcow2", "one"),
    ("snapshots.qcow2", "two ü with a name that is longer than its column"),
    ("snapshots-v2.qcow2", "old"),
    *(("vm.qcow2", "ü"), ("vm.qcow2", "second"), ("late.qcow2", "late")),
)
BITMAPS = (("bitmaps.qcow2", "a"), ("bitmaps.qcow2", "ü"), ("in-use.qcow2", "b"))


def patch(path: Path, offset: int, layout: str, value: int) -> None:
    """Change one field of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(struct.pack(layout, value))


def field(path: Path, offset: int, layout: str = ">Q") -> int:
    """One field of a file."""
    (value,) = struct.unpack_from(layout, path.read_bytes(), offset)
    return int(value)


def make_zoo(folder: Path) -> Path:
    """Make all of them in a new folder."""
    (folder / "sub").mkdir(parents=True)
    (folder / "empty").touch()
    (folder / "short").write_bytes(b"QFI")
    (folder / "text").write_text("no image at all\n" * 100)
    for name, words in CREATED:
        options = [word for word in words[:-1] if word] if words[-1][0].isdigit() else list(words)
        size = words[-1:] if words[-1][0].isdigit() else ()
        # From inside the folder, so that the names of data files stay short.
        _in(folder, "create", "-q", *options, name, *size)
    _in(folder, "create", "-q", "-f", "qcow2", "-b", folder / "over.qcow2", "-F", "qcow2", "over-absolute.qcow2")
    (folder / "data-gone").unlink()
    for name, (offset, layout, value) in PATCHED.items():
        patch(folder / name, offset, layout, value)
    for name, tag in SNAPSHOTS:
        _in(folder, "snapshot", "-c", tag, name)
    for name, bitmap in BITMAPS:
        _in(folder, "bitmap", "--add", *(("--disable", "-g", "512") if bitmap == "ü" else ()), name, bitmap)
    _patch_lists(folder)
    qemu_io(
        folder / "filled.qcow2", "write -P 1 0 256k", "write -P 2 1M 192k", "write -z 2M 64k", "write -c -P 3 3M 64k"
    )
    return folder


def _in(folder: Path, *words: str | Path) -> None:
    before = Path.cwd()
    os.chdir(folder)
    try:
        qemu_img(*words)
    finally:
        os.chdir(before)


def _patch_lists(folder: Path) -> None:
    """Give snapshots a VM state and a clock, some of them beyond all that is likely; mark a bitmap as in use."""
    vm, late, bitmap = folder / "vm.qcow2", folder / "late.qcow2", folder / "in-use.qcow2"
    entry = field(vm, SNAPSHOTS_OFFSET)
    patch(vm, entry + VM_CLOCK, ">Q", 123456789012345678)
    patch(vm, entry + EXTRA_DATA, ">Q", 123456789)
    patch(vm, entry + EXTRA_DATA + 16, ">Q", 77)
    entry = field(late, SNAPSHOTS_OFFSET)
    patch(late, entry + DATE, ">I", (1 << 32) - 1)
    for offset in (VM_CLOCK, EXTRA_DATA, EXTRA_DATA + 16):
        patch(late, entry + offset, ">Q", (1 << 64) - 2)
    directory = field(bitmap, bitmap.read_bytes().index(BITMAPS_EXTENSION) + 24)
    patch(bitmap, directory + 12, ">I", 3)


def names(folder: Path) -> list[str]:
    """How the tests call the images: from inside the folder, some by more than one name."""
    found = [os.fspath(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
    return [*found, "./over.qcow2", "sub/../over.qcow2", "file:over.qcow2"]
