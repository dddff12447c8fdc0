"""Whether a base is still what it was: every way in which bases change, and every tool that rewrites an overlay."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cowtree.catalog.store import open_catalog
from cowtree.chain import gate
from cowtree.chain.view import open_chain
from cowtree.errors import CowtreeError, ImageLocked, MarkedCorrupt, MissingImage, Refused, StaleBase
from cowtree.images import lineage
from cowtree.images.create import create
from cowtree.images.lineage import CHANGED, TOUCHED, UNCHANGED, UNKNOWN, compare, noted, record, stale
from cowtree.plan.create import NewImage
from cowtree.qcow2.header import Header
from cowtree.qcow2.lineage import find_record
from cowtree.storage.contract import Access, FileSystem
from cowtree.storage.file import LocalFiles
from cowtree.storage.memory import MemoryFiles
from tests import permits
from tests.crash import Trial, stop_everywhere
from tests.families import overwrite
from tests.pictures import draw, see
from tests.qemu import assert_clean, content, qemu_img, qemu_io, run, run_well

FILES = LocalFiles()
Act = Callable[[Path], object]


def header_of(path: Path | str, files: FileSystem = FILES) -> Header:
    """What an image says of itself."""
    layer = gate.open_alone(files, str(path), "qcow2", Access.SHARED)
    layer.close()
    assert layer.header is not None
    return layer.header


def state_of(path: Path) -> str:
    """What became of an overlay's base."""
    return compare(FILES, str(path), header_of(path)).state


def make_overlay(path: Path, base: str, base_format: str = "qcow2", cluster_bits: int = 16) -> Path:
    """An overlay as `img create` makes it."""
    new = NewImage(str(path), "qcow2", 16 << 20, cluster_bits, backing_file=base, backing_format=base_format)
    create(FILES, noted(FILES, new))
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base"
    qemu_img("create", "-q", "-f", "qcow2", path, "16M")
    qemu_io(path, "write -P 3 0 1M", "write -P 4 4M 1M")
    return path


@pytest.fixture
def overlay(base: Path) -> Path:
    return make_overlay(base.with_name("overlay"), "base")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "raw"
    path.write_bytes(b"boot" * 1024)
    os.truncate(path, 16 << 20)
    return path


def replace(path: Path, *commands: str) -> None:
    """Put another image of the same size and times in the place of this one."""
    times, size_bytes, other = path.stat(), path.stat().st_size, path.with_name("other")
    qemu_img("create", "-q", "-f", "qcow2", other, "16M")
    qemu_io(other, *commands)
    os.truncate(other, size_bytes)
    other.rename(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def write_and_hide(path: Path) -> None:
    """Write, and set the time back."""
    times = path.stat()
    qemu_io(path, "write -P 9 0 64k")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def copy(*words: str) -> Act:
    """Put a copy in the place of a file."""

    def act(path: Path) -> None:
        subprocess.run(["cp", *words, path, path.with_name("copy")], check=True)
        path.with_name("copy").rename(path)

    return act


def dd(offset: int) -> Act:
    """Write a few bytes over a raw file."""
    return lambda path: subprocess.run(
        ["dd", f"of={path}", "conv=notrunc", "bs=1", f"seek={offset}", "status=none"], input=b"changed", check=True
    )


CHANGES: dict[str, tuple[Act, str]] = {
    "nothing": (lambda path: None, UNCHANGED),
    "read": (content, UNCHANGED),
    "renamed and back": (lambda path: path.rename(path.with_name("x")).rename(path), UNCHANGED),
    "rights changed": (lambda path: path.chmod(0o600), UNCHANGED),
    "another name": (lambda path: path.with_name("x").hardlink_to(path), UNCHANGED),
    "cp -p": (copy("-p"), UNCHANGED),
    "cp --sparse=never -p": (copy("-p", "--sparse=never"), UNCHANGED),
    "cp": (copy(), TOUCHED),
    "touch": (lambda path: os.utime(path, (1, 1)), TOUCHED),
    "a snapshot": (lambda path: qemu_img("snapshot", "-c", "one", path), TOUCHED),
    "written": (lambda path: qemu_io(path, "write -P 9 0 64k"), CHANGED),
    "written where nothing was": (lambda path: qemu_io(path, "write -P 9 8M 64k"), CHANGED),
    "discarded": (lambda path: qemu_io(path, "discard 0 1M"), CHANGED),
    "written and hidden": (write_and_hide, CHANGED),
    "resized": (lambda path: qemu_img("resize", "-q", "-f", "qcow2", path, "+1M"), CHANGED),
    "another file": (lambda path: replace(path, "write -P 7 0 1M", "write -P 8 4M 1M"), CHANGED),
    "made anew": (lambda path: qemu_img("create", "-q", "-f", "qcow2", path, "16M"), CHANGED),
}


@pytest.mark.parametrize("how", CHANGES)
def test_what_happens_to_a_base_is_told_from_what_does_not(base: Path, overlay: Path, how: str):
    assert state_of(overlay) == UNCHANGED
    CHANGES[how][0](base)
    assert state_of(overlay) == CHANGES[how][1]


RAW_CHANGES: dict[str, tuple[Act, str]] = {
    "nothing": (lambda path: None, UNCHANGED),
    "cp": (copy(), TOUCHED),
    "cp --sparse=never": (copy("--sparse=never"), TOUCHED),
    "cp -p --sparse=always": (copy("-p", "--sparse=always"), UNCHANGED),
    "dd at the start": (dd(0), CHANGED),
    "dd at 1 MiB": (dd(1 << 20), CHANGED),
    "dd at the end": (dd((16 << 20) - 7), CHANGED),
    "grown": (lambda path: os.truncate(path, 17 << 20), CHANGED),
    "qemu-io": (lambda path: qemu_io(path, "write -P 9 0 16M", image_format="raw"), CHANGED),
}


@pytest.mark.parametrize("how", RAW_CHANGES)
def test_the_same_is_told_of_a_raw_base(raw: Path, how: str):
    overlay = make_overlay(raw.with_name("overlay"), "raw", "raw")
    assert state_of(overlay) == UNCHANGED
    RAW_CHANGES[how][0](raw)
    assert state_of(overlay) == RAW_CHANGES[how][1]


def test_a_base_that_has_rested_is_known_by_its_times_alone(base: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lineage, "TICK_NS", 50_000_000)
    time.sleep(0.1)
    overlay = make_overlay(base.with_name("overlay"), "base")
    known, _ = find_record(header_of(overlay))
    assert known is not None
    assert known.ctime_ns == base.stat().st_ctime_ns
    monkeypatch.setattr(lineage, "fingerprint", lambda layer: 1 / 0)
    assert state_of(overlay) == UNCHANGED
    base.chmod(0o600)
    with pytest.raises(ZeroDivisionError):
        state_of(overlay)


def test_a_base_that_changes_within_a_tick_of_the_clock_is_not_missed(base: Path, overlay: Path):
    known, _ = find_record(header_of(overlay))
    assert known is not None
    assert known.ctime_ns == 0
    write_and_hide(base)
    assert state_of(overlay) == CHANGED


REWRITES: dict[str, tuple[str, ...]] = {
    "amend": ("amend", "-f", "qcow2", "-o", "lazy_refcounts=on"),
    "downgrade": ("amend", "-f", "qcow2", "-o", "compat=0.10"),
    "counts": ("amend", "-f", "qcow2", "-o", "refcount_bits=64"),
    "snapshot": ("snapshot", "-c", "one"),
    "resize": ("resize", "-q", "-f", "qcow2", "--shrink"),
    "larger": ("resize", "-q", "-f", "qcow2"),
    "bitmap": ("bitmap", "--add", "-f", "qcow2"),
    "check": ("check", "-q", "-r", "all", "-f", "qcow2"),
    "link again": ("rebase", "-f", "qcow2", "-u", "-b", "base", "-F", "qcow2"),
}
BEHIND = {"resize": "8M", "larger": "32M", "bitmap": "one"}


@pytest.mark.parametrize("how", REWRITES)
def test_qemu_keeps_the_record_when_it_rewrites_the_header(overlay: Path, how: str):
    before = find_record(header_of(overlay))
    qemu_img(*REWRITES[how], overlay, *([BEHIND[how]] if how in BEHIND else []))
    assert find_record(header_of(overlay)) == before
    assert state_of(overlay) == UNCHANGED
    qemu_io(overlay, "write -P 1 0 64k")
    assert find_record(header_of(overlay)) == before
    assert_clean(overlay)


def test_qemu_keeps_the_record_when_it_empties_the_overlay(base: Path, overlay: Path):
    qemu_io(overlay, "write -P 1 0 64k")
    before = find_record(header_of(overlay))
    qemu_img("commit", "-q", "-f", "qcow2", overlay)
    assert find_record(header_of(overlay)) == before
    assert state_of(overlay) == CHANGED


def test_a_record_is_void_once_another_tool_has_linked_the_overlay_elsewhere(base: Path, overlay: Path):
    shutil.copy(base, base.with_name("new"))
    qemu_img("rebase", "-f", "qcow2", "-u", "-b", "new", "-F", "qcow2", overlay)
    found = compare(FILES, str(overlay), header_of(overlay))
    assert (found.state, found.base) == (UNKNOWN, str(base.with_name("new")))
    assert found.note is not None
    assert "another base" in found.note
    qemu_img("rebase", "-f", "qcow2", "-u", "-b", "base", "-F", "qcow2", overlay)
    assert state_of(overlay) == UNCHANGED


def test_qemu_still_links_an_overlay_that_keeps_a_record_to_the_longest_name(tmp_path: Path, base: Path):
    for cluster_bits in (9, 11, 12, 16):
        overlay = make_overlay(tmp_path / f"overlay-{cluster_bits}", "base", cluster_bits=cluster_bits)
        assert (find_record(header_of(overlay))[0] is not None) == (cluster_bits >= 11)
        name = "x" * (1023 if cluster_bits > 9 else 200)
        qemu_img("rebase", "-f", "qcow2", "-u", "-b", name, "-F", "qcow2", overlay)
        assert header_of(overlay).backing_file == name


def test_any_other_overlay_has_no_record_and_gets_one(base: Path):
    overlay = base.with_name("overlay")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", overlay)
    assert state_of(overlay) == UNKNOWN
    qemu_io(overlay, "write -P 5 2M 64k")
    seen = content(overlay)
    assert record(FILES, str(overlay))
    assert state_of(overlay) == UNCHANGED
    assert content(overlay) == seen
    assert_clean(overlay)
    qemu_io(base, "write -P 9 0 64k")
    assert state_of(overlay) == CHANGED
    assert record(FILES, str(overlay), "qcow2")
    assert state_of(overlay) == UNCHANGED


def test_an_overlay_without_room_is_known_to_the_catalogue(base: Path):
    overlay = make_overlay(base.with_name("overlay"), "base", cluster_bits=9)
    assert not record(FILES, str(overlay))
    header = header_of(overlay)
    with open_catalog(str(base.with_name("catalog.db"))) as catalog:
        assert compare(FILES, str(overlay), header, catalog).state == UNKNOWN
        before = overlay.read_bytes()
        assert record(FILES, str(overlay), catalog=catalog)
        assert overlay.read_bytes() == before
        assert compare(FILES, str(overlay), header, catalog).state == UNCHANGED
        qemu_io(base, "write -P 9 0 64k")
        assert compare(FILES, str(overlay), header, catalog).state == CHANGED


def test_the_catalogue_says_nothing_of_an_overlay_that_was_made_anew(base: Path):
    """A new file often gets the number of the one that was removed before it."""
    overlay = make_overlay(base.with_name("overlay"), "base")
    with open_catalog(str(base.with_name("catalog.db"))) as catalog:
        record(FILES, str(overlay), catalog=catalog)
        qemu_io(base, "write -P 9 0 64k")
        qemu_img("create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", base.with_name("new"))
        overlay.write_bytes(base.with_name("new").read_bytes())
        assert compare(FILES, str(overlay), header_of(overlay), catalog).state == UNKNOWN


@contextmanager
def chain_of(path: Path, image_format: str | None = None) -> Iterator[list[StaleBase]]:
    chain = open_chain(FILES, str(path), image_format)
    try:
        yield stale(FILES, chain)
    finally:
        chain.close()


def test_every_stale_layer_of_a_chain_is_named(base: Path, overlay: Path):
    top = make_overlay(base.with_name("top"), "overlay")
    with chain_of(top) as found:
        assert found == []
    qemu_io(base, "write -P 9 0 64k")
    with chain_of(top) as found:
        assert [(each.facts["path"], each.facts["base"]) for each in found] == [(str(overlay), str(base))]
    assert str(found[0]).startswith(f"{overlay}: base was changed after this overlay was made: {base}. Try: ")
    qemu_io(overlay, "write -P 9 0 64k")
    with chain_of(top) as found:
        assert [each.facts["path"] for each in found] == [str(top), str(overlay)]


def test_a_base_that_the_caller_gave_is_not_the_one_that_was_noted(base: Path, overlay: Path):
    qemu_img("create", "-q", "-f", "qcow2", base.with_name("other"), "16M")
    named = f'json:{{"driver":"qcow2","file.filename":"{overlay}","backing.file.filename":"{base}er"}}'
    shutil.copy(base.with_name("other"), f"{base}er")
    chain = open_chain(FILES, named)
    assert stale(FILES, chain) == []
    chain.close()


def test_a_merge_may_say_that_all_is_well(base: Path, overlay: Path):
    other = make_overlay(base.with_name("sibling"), "base")
    qemu_io(overlay, "write -P 9 0 64k")
    permits.commit(FILES, str(overlay))
    assert state_of(other) == state_of(overlay) == CHANGED
    record(FILES, str(overlay))
    assert state_of(overlay) == UNCHANGED
    assert state_of(other) == CHANGED


def test_a_data_file_belongs_to_its_base(tmp_path: Path):
    base = tmp_path / "base"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path}/data", base, "16M")
    qemu_io(base, "write -P 3 0 16M")
    overlay = make_overlay(tmp_path / "overlay", "base")
    assert state_of(overlay) == UNCHANGED
    os.utime(tmp_path / "data", (1 << 33, 1 << 33))
    assert state_of(overlay) == TOUCHED
    qemu_io(base, "write -P 4 0 16M")
    assert state_of(overlay) == CHANGED


@pytest.mark.slow
def test_a_base_need_not_be_unlocked(tmp_path: Path):
    (tmp_path / "key").write_text("pw")
    secret = ("--object", f"secret,id=s,file={tmp_path}/key")
    options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
    qemu_img("create", "-q", *secret, "-f", "qcow2", "-o", options, tmp_path / "base", "16M")
    overlay = make_overlay(tmp_path / "overlay", "base")
    os.utime(tmp_path / "base", (1, 1))
    assert state_of(overlay) == TOUCHED
    named = f"driver=qcow2,encrypt.key-secret=s,file.filename={tmp_path}/base"
    run_well("qemu-io", *secret, "--image-opts", named, "-c", "write -P 3 0 64k")
    assert state_of(overlay) == CHANGED


@pytest.mark.parametrize("image_format", ["vmdk", "vpc"])
def test_a_foreign_base_is_compared_too(tmp_path: Path, image_format: str):
    qemu_img("create", "-q", "-f", image_format, tmp_path / "base", "16M")
    overlay = make_overlay(tmp_path / "overlay", "base", image_format)
    assert state_of(overlay) == UNCHANGED
    qemu_io(tmp_path / "base", "write -P 3 0 64k", image_format=image_format)
    assert state_of(overlay) == CHANGED


def test_an_overlay_may_be_named_by_its_options(base: Path):
    overlay = base.with_name("overlay")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", overlay)
    assert record(FILES, f'json:{{"driver":"qcow2","file.filename":"{overlay}"}}')
    assert state_of(overlay) == UNCHANGED


def test_what_cannot_be_recorded_says_why_and_changes_nothing(base: Path, overlay: Path):
    with pytest.raises(Refused, match="has no backing file"):
        record(FILES, str(base))
    held = FILES.open(str(overlay), Access.READ)
    with pytest.raises(ImageLocked):
        record(FILES, str(overlay))
    held.close()
    base.rename(base.with_name("gone"))
    before = overlay.read_bytes()
    with pytest.raises(MissingImage):
        record(FILES, str(overlay))
    lineage.record_quietly(FILES, str(overlay))
    with pytest.raises(MissingImage):
        state_of(overlay)
    new = NewImage("new", "qcow2", 1 << 20, backing_file=str(base), backing_format="qcow2")
    assert noted(FILES, new) == new
    base.with_name("gone").rename(base)
    assert overlay.read_bytes() == before
    overwrite(overlay, 79, b"\2")
    with pytest.raises(MarkedCorrupt):
        record(FILES, str(overlay))


@pytest.mark.parametrize("data", [b"\0" * 80, b"\xff" * 80, b"", b"\1" * 4000])
def test_a_damaged_record_is_an_overlay_without_one(overlay: Path, data: bytes):
    at = overlay.read_bytes().index(b"cowt")
    overwrite(overlay, at + 8, data[:80])
    found = compare(FILES, str(overlay), header_of(overlay))
    assert found.state in (UNKNOWN, UNCHANGED)
    assert run("qemu-img", "check", overlay).returncode == 0


def test_addresses_are_not_followed_where_nobody_asked_for_it(base: Path):
    overlay = base.with_name("overlay")
    qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", "nbd://nowhere/x", "-F", "raw", overlay, "1M")
    with pytest.raises(CowtreeError, match="address"):
        record(FILES, str(overlay))


@pytest.mark.slow
@pytest.mark.parametrize("cluster_bits", [9, 11, 12])
def test_a_record_can_be_stopped_everywhere(cluster_bits: int):
    files = MemoryFiles()
    draw(files, NewImage("base", "qcow2", 2048), "AB-C")
    small = NewImage("overlay", "qcow2", 2048, 9, backing_file="base", backing_format="qcow2")
    draw(files, small, "-D0-")
    if cluster_bits > 9:
        create(files, small._replace(cluster_bits=cluster_bits))
    shown = see(files, "overlay")

    def check(left: MemoryFiles, is_done: bool) -> None:
        assert see(left, "overlay") == shown
        header = header_of("overlay", left)
        assert header.backing_file == "base"
        known, note = find_record(header)
        assert note is None
        assert not is_done or (known is not None) == (cluster_bits > 9)
        if known is not None:
            assert compare(left, "overlay", header).state in (UNCHANGED, TOUCHED)

    stop_everywhere(Trial(files.snapshot(), lambda world: record(world, "overlay"), check))
