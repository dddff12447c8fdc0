"""Owns the proof that what cowtree sees through a chain is what QEMU sees, window by window."""

import random
from contextlib import closing

import numpy as np
import pytest

from cowtree import extents as ex
from cowtree.chain import gate, view
from cowtree.chain.load import load_image
from cowtree.chain.view import (
    ALIGNMENT_BYTES,
    ENTRIES_PER_WINDOW,
    Chain,
    open_chain,
    read_known,
    resolve,
    windows,
)
from cowtree.errors import BrokenTable, ChainError, Refused
from cowtree.extents import Known, Ranges
from cowtree.plan.create import NewImage, create_steps
from cowtree.qcow2 import tables
from cowtree.steps import Truncate, Write
from cowtree.storage.contract import Access
from cowtree.storage.file import LocalFiles
from cowtree.storage.memory import MemoryFiles
from cowtree.units import GIB, SECTOR_BYTES, TIB
from tests.pictures import CLUSTER_BYTES, family
from tests.pictures import view as bytes_seen
from tests.qemu import content, qemu_img, qemu_io, random_chain
from tests.trees import ALL, grow

FILES = LocalFiles()


@pytest.mark.slow
@pytest.mark.soak
def test_every_layer_shows_what_qemu_shows(seed, tmp_path):
    chain = random_chain(tmp_path, seed)
    for path, kind in zip(chain.paths, chain.formats, strict=True):
        assert bytes_seen(FILES, str(path), kind) == content(path, kind)


@pytest.mark.slow
@pytest.mark.soak
def test_a_window_shows_its_part_of_the_whole(seed, tmp_path):
    chain = random_chain(tmp_path, seed)
    opened = open_chain(FILES, str(chain.top), chain.formats[-1])
    choose = random.Random(seed)
    whole = resolve(opened, 0, opened.size_bytes)
    for _ in range(10):
        start, stop = sorted(choose.sample(range(opened.size_bytes + 1), 2))
        part, same = resolve(opened, start, stop), ex.coalesce(ex.clip(whole, start, stop))
        assert [column.tolist() for column in part] == [column.tolist() for column in same]
    opened.close()


def seen_through(*layers: str, first: int = 0, last: int | None = None) -> list[tuple[int, ...]]:
    """(start, stop, kind, layer) of what is seen, in clusters."""
    made = family(*layers)
    chain = open_chain(made.files, made.top)
    seen = resolve(chain, 0, chain.size_bytes, first=first, last=last)
    chain.close()
    columns = (seen.start // CLUSTER_BYTES, seen.stop // CLUSTER_BYTES, seen.kind, seen.layer)
    return [tuple(row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def test_the_topmost_layer_that_holds_something_answers():
    assert seen_through("A--", "BB-", "CCC") == [(0, 1, ex.DATA, 0), (1, 2, ex.DATA, 1), (2, 3, ex.DATA, 2)]


def test_kinds_are_told_apart():
    assert seen_through("Aa0o-") == [
        (0, 1, ex.DATA, 0),
        (1, 2, ex.COMPRESSED, 0),
        (2, 3, ex.ZERO, 0),
        (3, 4, ex.ALLOCATED, 0),
    ]


def test_a_short_layer_hides_what_lies_below_its_end():
    assert seen_through("A---", "-B", "CCCC") == [
        (0, 1, ex.DATA, 0),
        (1, 2, ex.DATA, 1),
        (2, 4, ex.TAIL, 1),
    ]


def test_a_long_layer_shows_nothing_behind_the_end_of_the_top():
    assert seen_through("A-", "BBBB") == [(0, 1, ex.DATA, 0), (1, 2, ex.DATA, 1)]


def test_a_part_of_the_chain_can_be_looked_through():
    assert seen_through("A---", "BB--", "CCC-", first=1, last=2) == [(0, 2, ex.DATA, 1)]
    assert seen_through("A---", "BB", "CCC-", first=2) == [(0, 3, ex.DATA, 2)]


def test_clusters_that_go_on_are_one_extent():
    assert seen_through("AAAA0000") == [(0, 4, ex.DATA, 0), (4, 8, ex.ZERO, 0)]


def test_holes_and_the_odd_end_of_a_raw_file_are_zeroes_in_it():
    files = MemoryFiles({"raw": b"a" * 4096 + bytes(8192)})
    file = files.open("raw", Access.WRITE)
    file.write_zeroes(4096, 4096)
    file.pwrite(12288, b"bcd")
    file.close()
    chain = open_chain(files, "raw", "raw")
    held = view.layer_extents(chain, 0, 0, 12800)
    assert list(zip(held.start.tolist(), held.stop.tolist(), held.kind.tolist(), strict=True)) == [
        (0, 4096, ex.DATA),
        (4096, 8192, ex.ALLOCATED),
        (8192, 12291, ex.DATA),
        (12291, 12800, ex.ALLOCATED),
    ]
    assert (held.host_offset == held.start).all()


def sparse(files: MemoryFiles, path: str, bits: int, size_bytes: int, places: list[int]) -> None:
    """An image whose L1 table names an L2 table, of zeroes, for each place."""
    file = files.create(path, 0o600)
    new = NewImage(path, "qcow2", size_bytes, bits)
    for step in create_steps(new):
        match step:
            case Write(offset, data):
                file.pwrite(offset, data)
            case Truncate(length):
                file.truncate(length)
    layer_header = gate.read_header(path, file)
    end = -(-file.size_bytes >> bits) + 1
    for number, place in enumerate(places):
        index = place // new.geometry.l2_span_bytes
        host = (end + number) << bits
        file.pwrite(layer_header.l1_table_offset + 8 * index, (host | 1 << 63).to_bytes(8, "big"))
        file.truncate(host + (1 << bits))
    file.close()


@pytest.mark.soak
def test_windows_cover_all_and_hold_no_more_than_is_bounded(seed):
    choose = random.Random(seed)
    files = MemoryFiles()
    size_bytes = choose.randint(1, 2048) * GIB // 64
    layers = []
    for number in range(choose.randint(1, 4)):
        bits = choose.randint(13, 21)
        places = [choose.randrange(size_bytes) for _ in range(choose.randint(0, 200))]
        sparse(files, f"layer-{number}", bits, size_bytes, places)
        layers.append(gate.open_layer(files, f"layer-{number}", "qcow2"))
    chain = Chain(tuple(layers), tuple(load_image(layer) for layer in layers))
    spans = list(windows(chain, size_bytes))
    assert [start for start, _ in spans] == [0, *(stop for _, stop in spans[:-1])]
    assert spans[-1][1] == size_bytes
    assert all(start % ALIGNMENT_BYTES == 0 for start, _ in spans)
    smallest = min(image.geometry.cluster_size_bytes for image in chain.images if image)
    for start, stop in spans:
        assert stop - start <= max(ENTRIES_PER_WINDOW * smallest, ALIGNMENT_BYTES)
        weight = sum(entries_between(image, start, stop) for image in chain.images if image)
        most = max(image.geometry.l2_entry_count for image in chain.images if image)
        # A table that spans a border is read twice.
        assert weight <= ENTRIES_PER_WINDOW + most * (1 + len(layers))


def entries_between(image, start, stop):
    span = image.geometry.l2_span_bytes
    return int((image.l1[start // span : -(-stop // span)] != 0).sum()) * image.geometry.l2_entry_count


@pytest.mark.soak
def test_what_is_known_of_a_layer_is_what_its_tables_say(seed):
    choose = random.Random(seed)
    tree = grow([None, 0, 1], seed, sizes=[7, 8, 12], raw_root=choose.random() < 0.5, mixed=ALL)
    with closing(open_chain(tree.files, "image-2")) as chain:
        informed = chain
        for index, layer in enumerate(chain.layers):
            known = read_known(layer, chain.images[index], 1000)
            assert known is not None
            assert read_known(layer, chain.images[index], 0) is None or known.extents.start.size == 0
            informed = informed.with_layer(index, layer._replace(known=known))
        for _ in range(10):
            start, stop = sorted(choose.sample(range(chain.size_bytes + 1), 2))
            found, expected = resolve(informed, start, stop), resolve(chain, start, stop)
            for mine, its in zip(found, expected, strict=True):
                np.testing.assert_array_equal(mine, its)


def test_of_what_is_known_a_window_holds_as_many_extents(monkeypatch):
    monkeypatch.setattr(view, "ENTRIES_PER_WINDOW", 1 << 15)
    files = MemoryFiles()
    sparse(files, "disk", 16, 16 * GIB, [])
    start = np.arange(1 << 17, dtype=np.int64) << 16
    known = Known(ex.fill(Ranges(start, start + SECTOR_BYTES), ex.DATA), 16 * GIB)
    with closing(open_chain(files, "disk")) as chain:
        spans = list(windows(chain.with_layer(0, chain.top._replace(known=known)), 16 * GIB))
    counts = [int(((start >= first) & (start < last)).sum()) for first, last in spans]
    assert sum(counts) == 1 << 17
    assert max(counts) <= 33 << 10


def test_raw_windows_are_64_gib_long():
    files = MemoryFiles({"raw": b""})
    file = files.open("raw", Access.WRITE)
    file.truncate(130 * GIB)
    file.close()
    chain = open_chain(files, "raw", "raw")
    assert list(windows(chain, 130 * GIB)) == [(0, 64 * GIB), (64 * GIB, 128 * GIB), (128 * GIB, 130 * GIB)]
    assert list(windows(chain, TIB))[2:] == [(128 * GIB, TIB)]
    assert list(windows(chain, 0)) == []


def test_tables_of_all_layers_together_are_bounded(monkeypatch):
    made = family("A---", "-B--")
    monkeypatch.setattr(view, "TABLE_BYTES_MAX", 1000)
    with pytest.raises(ChainError, match="layer-0: the tables of its 2 layers take more than 1000 bytes"):
        open_chain(made.files, made.top)
    for name in made.names:
        made.files.open(name, Access.WRITE).close()


def test_an_entry_that_breaks_a_rule_is_named():
    made = family("A---", "-B--")
    chain = open_chain(made.files, made.top)
    image = chain.images[0]
    assert image is not None
    l2 = int(tables.table_offsets(image.l1)[0])
    chain.close()
    file = made.files.open(made.top, Access.WRITE)
    file.pwrite(l2 + 16, (1 << 63 | 1 << 40).to_bytes(8, "big"))
    file.close()
    with pytest.raises(BrokenTable, match="entry of guest byte 1024 points at byte 1099511627776, which is past"):
        bytes_seen(made.files, made.top)


def test_a_snapshot_can_be_looked_through(tmp_path):
    path = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    qemu_io(path, "write -P 1 0 64k")
    qemu_img("snapshot", "-c", "before", path)
    qemu_io(path, "write -P 2 0 1M")
    chain = open_chain(FILES, str(path))
    old = view.through_snapshot(chain, [(None, "nobody"), ("1", None)])
    assert resolve(old, 0, old.size_bytes).length.tolist() == [65536]
    with pytest.raises(Refused, match="Can't find snapshot"):
        view.through_snapshot(chain, [(None, "nobody")])
    chain.close()


def test_what_a_chain_is_made_of_can_be_replaced():
    made = family("A---", "-B--", "CCCC")
    chain = open_chain(made.files, made.top)
    assert chain.below(1).top is chain.layers[1]
    assert chain.below(3) == Chain((), ())
    assert chain.with_layer(1, chain.top).layers == (chain.layers[0], chain.layers[0], chain.layers[2])
    assert chain.with_image(2, None).images == (*chain.images[:2], None)
    assert chain.size_bytes == 2048
    chain.close()
    made.files.open(made.names[2], Access.WRITE).close()


def test_what_cannot_be_known_of_a_layer_that_is_salvaged_is_lost_and_hides_what_lies_below():
    made = family("AB-C", "DDDD")
    top = open_chain(made.files, made.top)
    image = top.images[0]
    top.close()
    assert image is not None
    table = int(tables.table_offsets(image.l1)[0])
    file = made.files.open(made.top, Access.WRITE)
    file.pwrite(table + 8, (1 << 63 | 1 << 40).to_bytes(8, "big"))
    told: list[tuple[int, str]] = []
    with pytest.raises(BrokenTable):
        resolve(open_chain(made.files, made.top, access=Access.SHARED), 0, 4 * CLUSTER_BYTES)
    chain = open_chain(made.files, made.top, access=Access.SHARED, salvage=lambda at, why: told.append((at, why)))
    seen = resolve(chain, 0, chain.size_bytes)
    assert seen.kind.tolist() == [ex.DATA, ex.LOST, ex.DATA, ex.DATA]
    assert seen.layer.tolist() == [0, 0, 1, 0]
    assert not told
    # A table that nobody finds: all that it maps is lost.
    file.pwrite(image.header.l1_table_offset, (1 << 63 | 1 << 40).to_bytes(8, "big"))
    chain = open_chain(made.files, made.top, access=Access.SHARED, salvage=lambda at, why: told.append((at, why)))
    seen = resolve(chain, 0, chain.size_bytes)
    assert (seen.kind.tolist(), seen.length.tolist()) == ([ex.LOST], [4 * CLUSTER_BYTES])
    file.close()
