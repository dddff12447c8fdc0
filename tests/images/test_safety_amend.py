"""Images amended, stopped everywhere: the guest and every snapshot see the same, and a second run ends it."""

from pathlib import Path

import pytest

from cowtree import extents as ex
from cowtree.chain import gate
from cowtree.chain.view import Chain, open_chain, resolve, through_snapshot
from cowtree.execute.read import pages
from cowtree.images.amend import amend
from cowtree.plan.amend import Asked
from cowtree.storage.contract import FileSystem
from cowtree.storage.memory import MemoryFiles
from tests.crash import Trial, assert_sound, guest_view, patched, stop_everywhere, write_more
from tests.qemu import qemu_img, qemu_io

IMAGE, BASE = "top.qcow2", "base.qcow2"
CASES = {
    "up": ("cluster_size=4k,compat=0.10", Asked(version=3, lazy_refcounts=True), "plain"),
    "up with snapshots": ("cluster_size=4k,compat=0.10", Asked(version=3, refcount_order=3), "snapshots"),
    "down": ("cluster_size=4k", Asked(version=2), "plain"),
    "down and backed": ("cluster_size=4k", Asked(version=2), "backed"),
    "down with snapshots": ("cluster_size=4k,refcount_bits=8", Asked(version=2, refcount_order=4), "snapshots"),
    "down with zeroes in snapshots": ("cluster_size=4k", Asked(version=2), "snapshots over a base"),
    "down with bitmaps": ("cluster_size=4k", Asked(version=2), "bitmaps"),
    "one bit": ("cluster_size=512", Asked(refcount_order=0), "backed"),
    "64 bits": ("cluster_size=512", Asked(refcount_order=6), "snapshots"),
    "lazy": ("cluster_size=4k", Asked(lazy_refcounts=True), "plain"),
    "not lazy": ("cluster_size=4k,lazy_refcounts=on", Asked(lazy_refcounts=False), "plain"),
    "the same backing file": ("cluster_size=4k", Asked(backing_file=BASE, backing_format="qcow2"), "backed"),
    "larger": ("cluster_size=4k", Asked(size_bytes=200 << 10, refcount_order=5), "plain"),
}


def make(folder: Path, options: str, kind: str) -> dict[str, bytes]:
    """Make an image with data, zero clusters with and without a host cluster, and holes."""
    base, image = folder / BASE, folder / IMAGE
    backing = []
    if kind in ("backed", "snapshots over a base"):
        qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", base, "96k")
        qemu_io(base, "write -P 66 0 96k")
        backing = ["-b", BASE, "-F", "qcow2"]
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, *backing, image, "96k")
    qemu_io(image, "write -P 65 0 20k", "write -P 67 50k 9k", "write -z 8k 4k", "write -zu 28k 8k")
    if kind == "bitmaps":
        qemu_img("bitmap", "--add", "-g", "4k", image, "one")
        qemu_img("bitmap", "--add", "--disable", image, "two")
        qemu_io(image, "write -P 68 4k 12k")
    if kind == "snapshots over a base":
        # Zero clusters with and without a host cluster, in tables that two snapshots share and in one of its own.
        qemu_img("snapshot", "-c", "one", image)
        qemu_img("snapshot", "-c", "two", image)
        qemu_io(image, "write -z 0 4k", "write -z 60k 8k", "write -P 69 8k 4k")
        qemu_img("snapshot", "-c", "three", image)
        qemu_io(image, "write -P 70 16k 4k", "write -zu 80k 8k")
    if kind == "snapshots":
        qemu_img("snapshot", "-c", "before", image)
        qemu_io(image, "write -P 68 4k 12k", "write -zu 52k 4k")
    return {path.name: path.read_bytes() for path in (base, image) if path.exists()}


def through_snapshots(files: FileSystem) -> dict[str, bytes]:
    """What each snapshot shows, with all that backs the image."""
    chain = open_chain(files, IMAGE)
    try:
        names = [each.name for each in (chain.images[0].snapshots if chain.images[0] else ())]
        return {name: _shown(through_snapshot(chain, [(None, name)])) for name in names}
    finally:
        chain.close()


def _shown(chain: Chain) -> bytes:
    seen, everything = resolve(chain, 0, chain.size_bytes), ex.one_range(0, chain.size_bytes)
    return b"".join(bytes(page.data) for page in pages(chain, seen, everything))


def trial_of(initial: dict[str, bytes], asked: Asked) -> Trial:
    """A trial of one amendment."""
    before, snapshots = guest_view(MemoryFiles(initial), IMAGE), through_snapshots(MemoryFiles(initial))

    def operation(files: FileSystem) -> None:
        amend(files, IMAGE, asked=asked)

    def check(files: MemoryFiles, is_done: bool) -> None:
        assert_sound(files, IMAGE, is_done=is_done)
        seen = guest_view(files, IMAGE)
        assert seen[: len(before)] == before
        assert not any(seen[len(before) :])
        assert through_snapshots(files) == snapshots
        if is_done:
            assert len(seen) == (asked.size_bytes or len(before))
            assert_amended(files, asked)
        patches = {700: b"!" * 5000, 50000: b"?" * 9000}
        write_more(files, IMAGE, patches)
        assert guest_view(files, IMAGE) == patched(seen, patches)
        assert through_snapshots(files) == snapshots

    return Trial(initial, operation, check)


def assert_amended(files: FileSystem, asked: Asked) -> None:
    """Fail unless the header says what was asked."""
    layer = gate.open_layer(files, IMAGE, gate.QCOW2)
    layer.close()
    header = layer.header
    assert header is not None
    assert header.version == (asked.version or header.version)
    assert asked.refcount_order in (None, header.refcount_order)
    assert asked.lazy_refcounts in (None, bool(header.compatible & 1))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.slow
def test_an_amendment_can_be_stopped_anywhere(tmp_path: Path, name: str) -> None:
    options, asked, kind = CASES[name]
    stop_everywhere(trial_of(make(tmp_path, options, kind), asked))
