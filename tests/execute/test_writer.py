"""Owns the proof that a layer is changed between two states of its dirty bit, and not at all when it must not be."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from cowtree import extents as ex
from cowtree.chain import gate, load
from cowtree.chain.view import Chain, layer_extents, open_chain, resolve
from cowtree.errors import BrokenTable, MarkedCorrupt, Refused
from cowtree.execute.writer import LayerWriter
from cowtree.images.create import create
from cowtree.monitor import Counting
from cowtree.plan.create import NewImage
from cowtree.plan.put import Cost, Wish
from cowtree.qcow2 import header as qcow2
from cowtree.qcow2 import tables
from cowtree.qcow2.image import Image
from cowtree.storage.contract import Access
from cowtree.storage.file import LocalFiles
from cowtree.storage.memory import MemoryFiles
from cowtree.storage.recording import RecordingFiles, Synced, Wrote
from tests.crash import assert_sound
from tests.pictures import CLUSTER_BYTES, Family, family
from tests.qemu import assert_clean, qemu_img, qemu_io

DIRTY_OFFSET = 79


def image_of(writer: LayerWriter) -> Image:
    assert writer.image is not None
    return writer.image


@contextmanager
def writing(made: Family, files=None) -> Iterator[LayerWriter]:
    """A writer for the top, which is closed in the end."""
    chain = open_chain(files or made.files, made.top, made.formats[0], Access.WRITE)
    try:
        yield LayerWriter(chain, 0, Counting())
    finally:
        chain.close()


def wish_of(writer: LayerWriter, start: int, stop: int, kind: int = ex.DATA) -> Wish:
    """Take clusters [start, stop) over from the layer below, or make them zeroes."""
    chain, span = writer.chain, (start * CLUSTER_BYTES, stop * CLUSTER_BYTES)
    below = resolve(chain, *span, first=1)
    wanted = below if kind == ex.DATA else ex.single(*span, ex.ZERO)
    shown = resolve(chain, 0, chain.size_bytes)
    return Wish(wanted, shown, shown, has_backing_after=True)


def test_the_dirty_bit_is_there_as_long_as_anything_changes():
    made = family("A--D", "EFGH")
    files = RecordingFiles(made.files)
    with writing(made, files) as writer:
        writer.put(wish_of(writer, 0, 4), 0, 2048)
        writer.finish()
    number = next(event.file for event in files.log if isinstance(event, Wrote))
    log = [event for event in files.log if isinstance(event, Wrote | Synced) and event.file == number]
    first, last = log[0], log[-2]
    assert isinstance(first, Wrote)
    assert isinstance(last, Wrote)
    assert (first.offset, first.data[DIRTY_OFFSET]) == (0, 1)
    assert isinstance(log[1], Synced)
    assert (last.offset, last.data[DIRTY_OFFSET]) == (0, 0)
    assert isinstance(log[-1], Synced)
    assert made.held() == "EFGH"
    assert_sound(made.files, made.top, is_done=True)


def test_nothing_to_put_leaves_the_file_as_it_is():
    made = family("A--D", "EFGH")
    before = made.files.snapshot()
    with writing(made) as writer:
        nothing = Wish(ex.empty(), ex.empty(), ex.empty(), True)
        assert writer.survey(nothing, 0, 2048) == Cost()
        writer.put(nothing, 0, 2048)
        writer.finish()
    assert made.files.snapshot() == before


@pytest.mark.parametrize("layer", ["A--D", "oo0-", "abcd", "----"])
def test_a_survey_tells_what_a_put_moves_and_changes_nothing(layer):
    made = family(layer, "EF0H")
    before = made.files.snapshot()
    with writing(made) as writer:
        wish = wish_of(writer, 0, 4)
        expected = writer.survey(wish, 0, 2048).moved_bytes
        assert made.files.snapshot() == before
        writer.put(wish, 0, 2048)
        assert isinstance(writer.monitor, Counting)
        assert writer.monitor.moved_bytes == expected == 3 * CLUSTER_BYTES


def test_a_survey_of_raw_tells_what_a_put_moves():
    made = family("----", raw_base=True)
    source = gate.open_layer(MemoryFiles({"ink": b"x" * 1024}), "ink", "raw")
    layer = gate.open_layer(made.files, made.top, "raw", Access.WRITE)
    writer = LayerWriter(Chain((layer, source), (None, None)), 0, Counting())
    wish = Wish(ex.single(512, 1536, ex.DATA, layer=1), ex.empty(), ex.empty(), False)
    assert writer.survey(wish, 0, 2048).moved_bytes == 1024
    writer.put(wish, 0, 2048)
    writer.finish()
    assert made.seen() == "0xx0"


def test_a_put_that_must_be_refused_changes_nothing():
    made = family("AB", "EF")
    with writing(made) as writer:
        held = load.load_tables(writer.file, image_of(writer), 0, 1024)
        writer.file.pwrite(int(held.host_offset[0]) + 8, tables.encode_words(held.entries[0, :1]))
        before = made.files.snapshot()
        wish = wish_of(writer, 0, 2)
        for act in (writer.survey, writer.put):
            with pytest.raises(BrokenTable, match="belongs to two guest clusters"):
                act(wish, 0, 1024)
        assert made.files.snapshot() == before


def test_a_disk_grows_in_two_steps():
    made = family("AB", "EF")
    with writing(made) as writer:
        writer.survey_growth(1 << 20)
        writer.prepare_growth(1 << 20)
        assert gate.read_header(made.top, writer.file).size_bytes == 1024
        assert len(image_of(writer).l1) == 32
        writer.grow(1 << 20)
        writer.finish()
        assert gate.read_header(made.top, writer.file).size_bytes == 1 << 20
    assert made.seen() == "AB".ljust(2048, "0")
    assert_sound(made.files, made.top, is_done=True)


def test_a_raw_disk_grows_at_once_and_never_shrinks():
    made = family("AB", raw_base=True)
    with writing(made) as writer:
        writer.survey_growth(1 << 62)
        for size_bytes in (2048, 512):
            writer.prepare_growth(size_bytes)
            writer.grow(size_bytes)
    assert made.seen() == "AB00"


def test_a_forgotten_layer_points_nowhere_and_stays_counted():
    made = family("AB--", "EFGH")
    with writing(made) as writer:
        writer.forget()
        writer.finish()
        assert not image_of(writer).l1.any()
    assert (made.held(), made.seen()) == ("----", "EFGH")


def test_free_clusters_are_given_back(tmp_path):
    path = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", path, "16M")
    qemu_io(path, "write 0 8M", "discard 1M 2M", "discard 6M 2M")
    chain = open_chain(LocalFiles(), str(path), "qcow2", Access.WRITE)
    writer = LayerWriter(chain, 0)
    image = image_of(writer)
    counts = load.load_counts(writer.file, image, np.arange(image.host_cluster_count), 0)
    free = counts.free(100)[:64]
    for cluster in free.tolist():
        writer.file.pwrite(cluster << 16, b"x" * (1 << 16))
    before = path.stat()
    writer.give_back()
    writer.finish()
    chain.close()
    after = path.stat()
    assert len(free) == 64
    assert after.st_size <= before.st_size - (2 << 20)
    assert after.st_blocks <= before.st_blocks - (4 << 20) // 512
    assert_clean(path)


def test_what_needs_no_change_is_not_changed():
    made = family("----")
    before = made.files.snapshot()
    with writing(made) as writer:
        writer.forget()
        writer.prepare_growth(1)
        writer.finish()
    assert made.files.snapshot() == before


def patched(files: MemoryFiles, path: str, bit: int) -> None:
    file = files.open(path, Access.WRITE)
    file.pwrite(72, (1 << bit).to_bytes(8, "big"))
    file.close()


def test_a_corrupt_image_is_not_written():
    made = family("A")
    patched(made.files, made.top, 1)
    with pytest.raises(MarkedCorrupt), writing(made):
        pass


def test_an_image_that_was_left_dirty_is_clean_in_the_end():
    made = family("A")
    patched(made.files, made.top, 0)
    with writing(made) as writer:
        writer.finish()
        assert not gate.read_header(made.top, writer.file).is_dirty


def test_too_many_snapshots_keep_an_image_from_being_written(tmp_path, monkeypatch):
    path = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    qemu_img("snapshot", "-c", "one", path)
    monkeypatch.setattr(load, "SNAPSHOT_L1_BYTES_MAX", 7)
    chain = open_chain(LocalFiles(), str(path), "qcow2", Access.WRITE)
    assert len(layer_extents(chain, 0, 0, 1 << 20).start) == 0
    with pytest.raises(Refused, match="too many snapshots"):
        LayerWriter(chain, 0)
    chain.close()


def test_a_link_is_looked_at_before_it_is_made():
    files = MemoryFiles({"raw": bytes(512)})
    create(files, NewImage("image", "qcow2", 1 << 20, 9))
    made = Family(files, ("image",), ("qcow2",))
    before = files.snapshot()
    with writing(made) as writer:
        with pytest.raises(Refused, match="no room"):
            writer.survey_link(("x" * 500, "raw"))
        writer.survey_link(("base", "raw"))
        assert files.snapshot() == before
        writer.relink(("base", "raw"))
        header = gate.read_header("image", writer.file)
        assert (header.backing_file, header.backing_format, header.is_dirty) == ("base", "raw", False)
    with writing(Family(files, ("raw",), ("raw",))) as writer, pytest.raises(Refused, match="no backing file"):
        writer.survey_link(None)


def test_a_link_and_the_end_of_a_change_are_one_write():
    made = family("A--D", "EFGH")
    files = RecordingFiles(made.files)
    with writing(made, files) as writer:
        writer.put(wish_of(writer, 0, 4), 0, 2048)
        writer.relink(None)
    headers = [event.data for event in files.log if isinstance(event, Wrote) and event.offset == 0]
    assert [data[DIRTY_OFFSET] & qcow2.DIRTY for data in headers] == [1, 0]
    assert made.seen() == "EFGH"
    assert_sound(made.files, made.top, is_done=True)
