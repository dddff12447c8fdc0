"""Owns the proof that an image knows where all its tables lie, and that tables on top of each other are refused."""

from pathlib import Path

import numpy as np
import pytest

from cowtree.chain import gate, load
from cowtree.errors import BrokenTable
from cowtree.qcow2.header import ENCRYPTION, ENCRYPTION_HEADER, Extension
from cowtree.qcow2.image import Image, check_layout, lookup
from cowtree.qcow2.tables import COPIED, table_offsets
from cowtree.storage.file import LocalFiles
from tests.pictures import family
from tests.qemu import qemu_img, qemu_io

CLUSTER = 512


def image_of(picture: str) -> Image:
    """A picture in 512-byte clusters: one L2 table for each 64 signs."""
    return loaded(family(picture))[1]


def loaded(made) -> tuple[gate.Layer, Image]:
    layer = gate.open_layer(made.files, made.top)
    image = load.load_image(layer)
    layer.close()
    assert image is not None
    return layer, image


@pytest.fixture(scope="module")
def rich(tmp_path_factory) -> Path:
    """An image with two snapshots and two bitmaps."""
    path: Path = tmp_path_factory.mktemp("rich") / "image"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", path, "8M")
    qemu_io(path, "write -P 1 0 100k", "write -P 2 5M 100k")
    qemu_img("snapshot", "-c", "first", path)
    qemu_io(path, "write -P 3 50k 100k")
    qemu_img("snapshot", "-c", "second", path)
    qemu_io(path, "write -P 4 7M 10k")
    for name in ("one", "two"):
        qemu_img("bitmap", "--add", path, name)
    return path


def open_rich(path: Path) -> tuple[gate.Layer, Image]:
    layer = gate.open_layer(LocalFiles(), str(path), "qcow2")
    image = load.load_image(layer)
    assert image is not None
    return layer, image


def test_every_table_of_a_rich_image_has_its_range(rich):
    layer, image = open_rich(rich)
    layer.close()
    ranges = image.fixed_ranges()
    assert sorted(name for name, _, _ in ranges) == [
        "active L1 table",
        "bitmap directory",
        *["bitmap table"] * 2,
        "header",
        "refcount table",
        *["snapshot L1 table"] * 2,
        "snapshot table",
    ]
    header = image.header
    assert ("header", 0, 4096) in ranges
    assert ("refcount table", header.refcount_table_offset, 4096) in ranges
    assert ("active L1 table", header.l1_table_offset, 4 * 8) in ranges
    assert {("snapshot L1 table", each.l1_table_offset, 4 * 8) for each in image.snapshots} < set(ranges)
    assert {("bitmap table", each.table_offset, 8) for each in image.bitmaps} < set(ranges)
    check_layout(image)


def test_metadata_is_all_that_is_counted_but_guest_data(rich):
    layer, image = open_rich(rich)
    counts = load.load_blocks(layer.file, image, 0, len(image.refcount_table))
    held = [load.load_tables(layer.file, image._replace(l1=l1), 0, 8 << 20) for l1 in (image.l1, *image.snapshot_l1s)]
    layer.close()
    data = np.unique(np.concatenate([table_offsets(each.entries).ravel() for each in held])) // 4096
    data = data[data > 0]
    counted = np.flatnonzero(counts.get(np.arange(image.host_cluster_count)))
    metadata = image.metadata_clusters()
    assert metadata.tolist() == sorted(set(counted.tolist()) - set(data.tolist()))
    assert not set(metadata.tolist()) & set(data.tolist())


def test_tables_are_found_among_a_few_clusters(rich):
    layer, image = open_rich(rich)
    layer.close()
    metadata, choose = set(image.metadata_clusters().tolist()), np.random.default_rng(1)
    for count in (0, 1, 2, 5, 300):
        clusters = choose.integers(0, image.host_cluster_count + 10, count)
        assert set(image.tables_among(clusters).tolist()) == metadata & set(clusters.tolist())


def test_the_header_cluster_is_metadata_once():
    image = image_of("A")
    assert image.metadata_clusters().tolist()[:2] == [0, 1]


def test_the_encryption_header_has_its_range():
    image = image_of("A")
    data = ENCRYPTION_HEADER.pack(offset=1000 * CLUSTER, length=700)
    encrypted = image._replace(header=image.header._replace(extensions=(Extension(ENCRYPTION, data),)))
    assert ("encryption header", 1000 * CLUSTER, 700) in encrypted.fixed_ranges()
    assert {1000, 1001} < set(encrypted.metadata_clusters().tolist())


def test_a_table_that_is_not_there_has_no_range():
    assert [name for name, _, _ in image_of("A").fixed_ranges()] == ["header", "refcount table", "active L1 table"]


def test_a_cut_last_cluster_counts():
    image = image_of("A")._replace(file_size_bytes=10 * CLUSTER + 1)
    assert image.host_cluster_count == 11


def test_a_sound_layout_is_taken():
    check_layout(image_of("A" * 200))


@pytest.mark.parametrize(
    ("field", "to", "reason"),
    [
        ("l1_table_offset", 0, "lies inside the header"),
        ("l1_table_offset", "refcount_table_offset", "lies inside the"),
        ("l1_table_offset", 1 << 40, "active L1 table at byte 1099511627776 ends past the end of the file"),
        ("refcount_table_cluster_count", 1 << 12, "refcount table at byte 512 ends past the end"),
        ("refcount_table_cluster_count", 2, "two tables lie at byte 1024 of the file"),
    ],
)
def test_tables_in_wrong_places_are_refused(field, to, reason):
    image = image_of("A" * 200)
    value = getattr(image.header, to) if isinstance(to, str) else to
    with pytest.raises(BrokenTable, match=reason):
        check_layout(image._replace(header=image.header._replace(**{field: value})))


def test_an_l2_table_on_another_table_is_refused():
    image = image_of("A" * 200)
    block, first = int(image.refcount_table[0]), int(table_offsets(image.l1)[0])
    for offset in (block, first, image.header.l1_table_offset, 0x200):
        l1 = image.l1.copy()
        l1[1] = np.uint64(offset) | COPIED
        with pytest.raises(BrokenTable, match=f"two tables lie at byte {offset} of the file"):
            check_layout(image._replace(l1=l1))


def test_snapshots_share_l2_tables_but_with_nothing_else():
    image = image_of("A" * 200)
    shared = image._replace(snapshot_l1s=(image.l1, image.l1))
    check_layout(shared)
    stray = image.l1.copy()
    stray[0] = image.refcount_table[0]
    with pytest.raises(BrokenTable, match="two tables lie at byte"):
        check_layout(image._replace(snapshot_l1s=(image.l1, stray)))


def test_the_entry_of_a_guest_cluster_is_looked_up():
    made = family("A" + "-" * 127 + "B" + "-" * 63 + "0C")
    layer = gate.open_layer(made.files, made.top)
    image = load.load_image(layer)
    assert image is not None
    held = load.load_tables(layer.file, image, 0, layer.size_bytes)
    wanted = np.array([193, 0, 1, 64, 128, 192, 5000])
    entries, _ = lookup(held, image.geometry, wanted)
    assert held.l1_index.tolist() == [0, 2, 3]
    assert ((entries != 0).tolist(), int(entries[5])) == ([True, True, False, False, True, True, False], 1)
    offsets = table_offsets(entries)
    assert [layer.file.pread(int(offsets[at]), 1) for at in (0, 1, 4)] == [b"C", b"A", b"B"]
    layer.close()


def test_without_tables_every_entry_is_0():
    made = family("-" * 10)
    layer = gate.open_layer(made.files, made.top)
    image = load.load_image(layer)
    assert image is not None
    held = load.load_tables(layer.file, image, 0, layer.size_bytes)
    assert [each.tolist() for each in lookup(held, image.geometry, np.array([0, 3]))] == [[0, 0], [0, 0]]
    layer.close()
