"""Owns the proof that what cannot be merged is refused in one sentence, with not one byte changed on disk."""

import struct
from collections.abc import Callable
from functools import partial

import pytest

from cowtree.chain import gate, load
from cowtree.errors import (
    BrokenTable,
    ChainError,
    ChainTooDeep,
    CowtreeError,
    ImageLocked,
    LoopInChain,
    MarkedCorrupt,
    MissingImage,
    NotAnImage,
    NotInChain,
    Refused,
    TruncatedImage,
    UnknownFeature,
    WrongUse,
)
from cowtree.images import merge
from cowtree.images.create import create
from cowtree.plan.create import NewImage
from cowtree.qcow2 import header as qcow2
from cowtree.qcow2 import tables
from cowtree.qcow2.image import Image
from cowtree.storage.contract import Access
from cowtree.storage.memory import MemoryFiles
from tests import permits
from tests.permits import Into
from tests.pictures import Family, draw, family

TIB = 1 << 40
INCOMPATIBLE_OFFSET = 72


def write(files: MemoryFiles, path: str, offset: int, data: bytes) -> None:
    file = files.open(path, Access.WRITE)
    file.pwrite(offset, data)
    file.close()


def word(value: int) -> bytes:
    return struct.pack(">Q", value)


def image_of(files: MemoryFiles, path: str) -> Image:
    layer = gate.open_layer(files, path, "qcow2")
    image = load.load_image(layer)
    layer.close()
    assert image is not None
    return image


def l2_offset(image: Image) -> int:
    return int(tables.table_offsets(image.l1)[0])


def set_feature(files: MemoryFiles, path: str) -> None:
    write(files, path, INCOMPATIBLE_OFFSET, word(1 << 40))


def mark_dirty_and_corrupt(files: MemoryFiles, path: str) -> None:
    write(files, path, INCOMPATIBLE_OFFSET, word(qcow2.DIRTY | qcow2.CORRUPT))


def point_l1_past_the_end(files: MemoryFiles, path: str) -> None:
    write(files, path, image_of(files, path).header.l1_table_offset, word(1 << 63 | TIB))


def point_l1_into_the_l1_table(files: MemoryFiles, path: str) -> None:
    offset = image_of(files, path).header.l1_table_offset
    write(files, path, offset, word(1 << 63 | offset))


def point_l1_beside_a_cluster(files: MemoryFiles, path: str) -> None:
    image = image_of(files, path)
    write(files, path, image.header.l1_table_offset, word(1 << 63 | l2_offset(image) | 512))


def point_l2_past_the_end(files: MemoryFiles, path: str) -> None:
    write(files, path, l2_offset(image_of(files, path)), word(1 << 63 | TIB))


def point_l2_beside_a_cluster(files: MemoryFiles, path: str) -> None:
    image = image_of(files, path)
    write(files, path, l2_offset(image), word(1 << 63 | l2_offset(image) | 512))


def point_l2_into_the_header(files: MemoryFiles, path: str) -> None:
    write(files, path, l2_offset(image_of(files, path)), word(1 << 62 | 512))


def point_the_refcount_table_beside_a_cluster(files: MemoryFiles, path: str) -> None:
    image = image_of(files, path)
    write(files, path, image.header.refcount_table_offset, word(int(image.refcount_table[0]) | 512))


def point_data_at_a_table(files: MemoryFiles, path: str) -> None:
    image = image_of(files, path)
    write(files, path, l2_offset(image), word(1 << 63 | image.header.refcount_table_offset))


def share_a_cluster(files: MemoryFiles, path: str) -> None:
    image = image_of(files, path)
    file = files.open(path, Access.READ)
    first = file.pread(l2_offset(image), 8)
    file.close()
    write(files, path, l2_offset(image) + 8, first)


def forget_all_counts(files: MemoryFiles, path: str) -> None:
    image = image_of(files, path)
    write(files, path, int(image.refcount_table[0]) + 2 * image.host_cluster_count - 10, bytes(10))


def cut_off_the_end(files: MemoryFiles, path: str) -> None:
    cluster_bytes = 1 << image_of(files, path).header.cluster_bits
    file = files.open(path, Access.WRITE)
    file.truncate(file.size_bytes - cluster_bytes * 3 // 2)
    file.close()


def move_the_refcount_table(files: MemoryFiles, path: str) -> None:
    write(files, path, 48, word(TIB))


DAMAGES = {
    set_feature: UnknownFeature,
    mark_dirty_and_corrupt: MarkedCorrupt,
    point_l1_past_the_end: BrokenTable,
    point_l1_into_the_l1_table: BrokenTable,
    point_l1_beside_a_cluster: BrokenTable,
    point_l2_past_the_end: BrokenTable,
    point_l2_beside_a_cluster: BrokenTable,
    point_l2_into_the_header: BrokenTable,
    point_the_refcount_table_beside_a_cluster: BrokenTable,
    point_data_at_a_table: BrokenTable,
    share_a_cluster: BrokenTable,
    forget_all_counts: BrokenTable,
    cut_off_the_end: BrokenTable,
    move_the_refcount_table: TruncatedImage,
}
# What nobody notices who only reads the image, or who only puts something where it holds nothing yet.
SILENT = (mark_dirty_and_corrupt, point_data_at_a_table, share_a_cluster, forget_all_counts)
damaged = pytest.mark.parametrize(("damage", "error"), DAMAGES.items(), ids=lambda each: each.__name__)


def refuse(made: Family, error: type[CowtreeError], act: Callable[[], object]) -> str:
    """Run an act that must be refused; nothing may have changed and nobody may hold a file. Returns: the sentence."""
    before = made.files.snapshot()
    with pytest.raises(error) as caught:
        act()
    assert made.files.snapshot() == before
    for path in before:
        made.files.open(path, Access.WRITE).close()
    assert type(caught.value) is error
    return str(caught.value)


@damaged
def test_a_damaged_base_is_not_committed_into(damage, error):
    made = family("ABCDABCD", "EFGHEFGH", base_cluster_bits=11)
    damage(made.files, made.names[1])
    refuse(made, error, lambda: permits.commit(made.files, made.top))


@damaged
def test_a_damaged_base_further_down_is_not_committed_into(damage, error):
    made = family("ABCDABCD", "--------", "EFGHEFGH", base_cluster_bits=11)
    damage(made.files, made.names[2])
    refuse(made, error, lambda: permits.commit(made.files, made.top, into=Into(made.names[2])))


@damaged
def test_a_damaged_layer_is_not_pulled_into(damage, error):
    made = family("AB------", "EFGHEFGH", "IJKLIJKL")
    create(made.files, NewImage("top", "qcow2", 4096, 11, backing_file=made.names[1], backing_format="qcow2"))
    draw(made.files, NewImage("top", "qcow2", 4096, 11, backing_file=made.names[1], backing_format="qcow2"), "AB------")
    damage(made.files, "top")
    if damage not in SILENT[1:]:
        refuse(made, error, lambda: merge.pull(made.files, "top"))
        refuse(made, error, lambda: merge.rebase(made.files, "top", backing=(made.names[2], "qcow2")))


@damaged
def test_a_damaged_layer_that_is_only_read_stops_a_merge_before_it_begins(damage, error):
    made = family("ABCDABCD", "EFGHEFGH", base_cluster_bits=11)
    create(made.files, NewImage("top", "qcow2", 4096, 9, backing_file=made.top, backing_format="qcow2"))
    damage(made.files, made.names[1])
    # What lies twice on the same clusters can still be read.
    if damage not in (*SILENT, point_l1_into_the_l1_table, point_the_refcount_table_beside_a_cluster):
        refuse(made, error, lambda: merge.pull(made.files, "top", base=made.names[1]))
        refuse(made, error, lambda: merge.pull(made.files, "top"))


def test_a_missing_backing_file_is_named_with_its_overlay():
    made = family("A---", "-B--", "CCCC")
    made.files.unlink(made.names[2])
    for act in (permits.commit, merge.pull):
        sentence = refuse(made, MissingImage, partial(act, made.files, made.top))
        assert sentence.startswith("layer-2: No such file or directory (it backs layer-1)")


def test_a_chain_that_bites_its_tail():
    made = family("A---", "-B--", "CCCC")
    merge.relink(made.files, made.names[2], backing=(made.names[1], "qcow2"))
    sentence = refuse(made, LoopInChain, lambda: merge.pull(made.files, made.top))
    assert "layer-2: Backing file 'layer-1' creates an infinite loop" in sentence
    merge.relink(made.files, made.names[1], backing=(made.names[1], "qcow2"))
    refuse(made, LoopInChain, lambda: permits.commit(made.files, made.top))


def test_a_rebase_onto_an_overlay_of_its_own():
    made = family("A---", "-B--", "CCCC")
    refuse(made, LoopInChain, lambda: merge.rebase(made.files, made.names[1], backing=(made.top, "qcow2")))
    refuse(made, LoopInChain, lambda: merge.rebase(made.files, made.names[1], backing=(made.names[1], "qcow2")))


def test_a_chain_of_300():
    made = family(*["-"] * 299, "Z")
    refuse(made, ChainTooDeep, lambda: merge.pull(made.files, made.top))
    refuse(made, ChainTooDeep, lambda: permits.commit(made.files, made.top))


@pytest.mark.slow
def test_a_chain_of_256_is_merged():
    made = family(*["-"] * 100, "-A", *["B-C"] * 154, "----Z")
    assert made.seen() == "B"
    permits.commit(made.files, made.names[1], into=Into(made.names[255], [made.top]))
    assert (made.seen(), made.seen(255)) == ("B", "B---Z".replace("-", "0"))


def test_layers_that_are_not_there():
    made = family("A---", "-B--", "CCCC")
    draw(made.files, NewImage("stranger", "qcow2", 2048, 9), "XXXX")
    for name in ("stranger", "nobody"):
        sentence = refuse(made, NotInChain, partial(merge.pull, made.files, made.top, base=name))
        assert f"Did not find '{name}' in the backing chain of 'layer-0'" in sentence
        refuse(made, NotInChain, partial(permits.commit, made.files, made.top, into=Into(name)))


def test_words_that_make_no_sense():
    made = family("A---", "-B--")
    refuse(made, WrongUse, lambda: permits.commit(made.files, made.top, into=Into(made.top)))
    refuse(made, WrongUse, lambda: merge.pull(made.files, made.top, base=made.top))
    refuse(made, Refused, lambda: permits.commit(made.files, made.names[1]))
    made.files.create("raw", 0o600).close()
    refuse(made, NotAnImage, lambda: merge.pull(made.files, "raw", "qcow2"))


def test_a_raw_image_has_no_backing_file():
    made = family("A---", "BBBB", raw_base=True)
    for act in (
        lambda: merge.rebase(made.files, made.names[1], "raw", backing=None),
        lambda: merge.pull(made.files, made.names[1], "raw"),
        lambda: merge.relink(made.files, made.names[1], "raw", backing=(made.top, "qcow2")),
        lambda: permits.commit(made.files, made.names[1], "raw"),
    ):
        refuse(made, Refused, act)


def test_an_overlay_that_lies_on_something_else():
    made = family("A---", "-B--", "CCCC")
    draw(made.files, NewImage("stranger", "qcow2", 2048, 9), "XXXX")
    sentence = refuse(
        made, Refused, lambda: permits.commit(made.files, made.names[1], into=Into(overlays=["stranger"]))
    )
    assert sentence.startswith("stranger is not an overlay of layer-1")


def test_a_top_that_could_not_be_emptied_is_not_committed():
    made = family("A---", "-B--")
    mark_dirty_and_corrupt(made.files, made.top)
    refuse(made, MarkedCorrupt, lambda: permits.commit(made.files, made.top))
    permits.commit(made.files, made.top, into=Into(empties_top=False))
    assert made.seen(1) == "AB00"


def test_an_overlay_whose_header_has_no_room_for_the_base():
    made = family("BBBB")
    base = "x" * 400
    made.files.rename(made.top, base)
    draw(made.files, NewImage("long", "qcow2", 2048, 12, backing_file=base, backing_format="qcow2"), "C---")
    draw(made.files, NewImage("top", "qcow2", 2048, 9, backing_file="long", backing_format="qcow2"), "----")
    sentence = refuse(made, Refused, lambda: permits.commit(made.files, "long", into=Into(overlays=["top"])))
    assert sentence.startswith("top: the header has no room")


def test_a_name_that_the_header_has_no_room_for():
    made = family("A---", "-B--", "CCCC")
    long = "x" * 400
    draw(made.files, NewImage(long, "qcow2", 2048, 9), "XXXX")
    sentence = refuse(made, Refused, lambda: merge.rebase(made.files, made.top, backing=(long, "qcow2")))
    assert "no room for the backing file name" in sentence
    refuse(made, Refused, lambda: merge.relink(made.files, made.top, backing=(long, "qcow2")))
    made.files.rename(made.names[2], long)
    merge.relink(made.files, made.names[1], backing=("layer-2", "qcow2"))


def test_an_address_in_place_of_a_file_name():
    made = family("A---", "-B--", "CCCC")
    for name in ('json:{"driver":"null-co"}', "nbd://host/disk", "http://host/disk"):
        merge.relink(made.files, made.names[1], backing=(name, "raw"))
        sentence = refuse(made, ChainError, lambda: merge.pull(made.files, made.top))
        assert "is an address, not a file name" in sentence


def test_a_base_whose_table_would_be_too_long():
    made = family("A---", "-B--")
    create(made.files, NewImage("huge", "qcow2", TIB, 16, backing_file=made.top, backing_format="qcow2"))
    sentence = refuse(made, Refused, lambda: permits.commit(made.files, "huge"))
    assert "a disk of 1099511627776 bytes is too large for clusters of 512 bytes" in sentence


@pytest.mark.parametrize("index", [0, 2])
def test_an_image_that_somebody_has_open(index):
    made = family("A---", "-B--", "CCCC")
    before = made.files.snapshot()
    held = made.files.open(made.names[index], Access.READ)
    with pytest.raises(ImageLocked):
        permits.commit(made.files, made.top, into=Into(made.names[2]))
    held.close()
    assert made.files.snapshot() == before
