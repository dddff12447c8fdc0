"""Owns the proof that the first cluster says the old or the new, and nothing in between: at every stop, whatever a lost
cache leaves of the writes since the last flush, and however a write was torn at sectors.
"""

import json
import random
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import pytest

from cowtree.chain import gate, load
from cowtree.errors import Refused
from cowtree.images.create import create
from cowtree.plan.create import NewImage
from cowtree.qcow2 import header as qcow2
from cowtree.qcow2.header import Extension, Header
from cowtree.qcow2.header_writes import header_write, relink, rewrite, with_extension, without_extension
from cowtree.qcow2.image import Image
from cowtree.steps import Flush, Step, Write
from cowtree.storage.memory import MemoryFiles
from tests.qcow2.test_writes import CLUSTER, carry_out, crashes, image_at, parsed, put_all, start, tracked
from tests.qemu import assert_clean, qemu_img

__all__ = ["tracked"]


def test_the_fixed_fields_of_the_header_are_one_write_in_one_sector():
    _, piece = start("A")
    write = header_write(piece.image.header)
    assert (write.offset, len(write.data)) == (0, 104)
    assert len(header_write(piece.image.header._replace(version=2, header_length=72)).data) == 72


# The backing link.


def first_cluster(data: bytes, image: Image) -> bytes:
    return data[: 1 << image.header.cluster_bits].ljust(1 << image.header.cluster_bits, b"\0")


def linked(cluster_bits: int, *extensions: Extension, link: tuple[str, str] | None = None) -> tuple[bytes, Image]:
    """An image that is dirty, with more header extensions and perhaps a backing file."""
    files = MemoryFiles()
    create(files, NewImage("image", "qcow2", 1 << 20, cluster_bits))
    layer = gate.open_layer(files, "image")
    image = load.load_image(layer)
    layer.close()
    assert image is not None
    known = (Extension(qcow2.BACKING_FORMAT, link[1].encode()),) if link else ()
    header = image.header._replace(
        incompatible=qcow2.DIRTY,
        extensions=(*known, *extensions),
        backing_name_bytes=link[0].encode() if link else b"",
    )
    first = qcow2.pack(header).ljust(1 << cluster_bits, b"\0")
    data = first + files.content("image")[len(first) :]
    return data, image._replace(header=parsed(data))


STRANGER = Extension(0x12345678, b"keep me whole")
LINKS = (("base", "raw"), ("x" * 300, "qcow2"), ("\udcff/ü", "qcow2"), None)


@pytest.mark.parametrize("cluster_bits", [9, 12, 16])
@pytest.mark.parametrize("before", [None, ("old", "raw"), ("o" * 200, "qcow2")])
@pytest.mark.parametrize("after", LINKS)
def test_the_link_changes_in_one_sector_with_the_dirty_bit(cluster_bits, before, after):
    data, image = linked(cluster_bits, STRANGER, link=before)
    steps = relink(image, first_cluster(data, image), after)
    *rest, _, switch, _ = steps
    assert steps[-3::2] == [Flush(), Flush()]
    assert isinstance(switch, Write)
    assert (switch.offset, len(switch.data)) == (0, qcow2.SECTOR_BYTES)
    assert all(step.offset >= qcow2.SECTOR_BYTES for step in rest if isinstance(step, Write))
    names = set()
    for state in crashes(data, steps):
        header = parsed(state)
        names.add(header.backing_file)
        link = (header.backing_file, header.backing_format) if header.backing_file else None
        assert (link, header.is_dirty) in ((before, True), (after, False))
        assert STRANGER in header.extensions
    assert (after[0] if after else None) in names
    changed = put_all(data, steps)
    assert changed[1 << cluster_bits :] == data[1 << cluster_bits :]


# The end marker at the end of a sector, at the start of one, and in between.
@pytest.mark.parametrize("length", [352, 360, 368, 376, 480, 864, 872, 1024])
@pytest.mark.parametrize("before", [None, ("old", "raw")])
def test_a_long_list_of_extensions_leaves_room_for_a_link(length, before):
    long = Extension(0x12345678, bytes(range(256)) * 4)
    many = (long._replace(data=long.data[:length]), STRANGER)
    data, image = linked(12, *many, link=before)
    # What an earlier header left behind must never be read.
    end = data.index(STRANGER.data) + 16 + 8 + (len(before[0]) if before else 0)
    data = data[:end] + b"\x66" * (4096 - end) + data[4096:]
    steps = relink(image, first_cluster(data, image), ("base", "qcow2"))
    for state in crashes(data, steps):
        header = parsed(state)
        link = (header.backing_file, header.backing_format) if header.backing_file else None
        assert (link, header.is_dirty) in ((before, True), (("base", "qcow2"), False))
        assert tuple(each for each in header.extensions if each.type != qcow2.BACKING_FORMAT) == many


def test_an_image_with_a_bitmap_gets_its_first_backing_file(tracked):
    image, data = image_at(tracked), tracked.read_bytes()
    carry_out(tracked, relink(image, first_cluster(data, image), ("base", "raw")))
    qemu_img("create", "-q", "-f", "raw", tracked.with_name("base"), "8M")
    assert_clean(tracked)
    assert [each.name for each in image_at(tracked).bitmaps] == ["records", "rests"]
    assert '"base"' in qemu_img("info", "--output=json", tracked)


@pytest.mark.parametrize(("cluster_bits", "length"), [(9, 500), (16, qcow2.BACKING_NAME_BYTES_MAX + 1)])
def test_a_name_that_has_no_room_is_refused(cluster_bits, length):
    data, image = linked(cluster_bits)
    with pytest.raises(Refused, match="the header has no room for the backing file name"):
        relink(image, first_cluster(data, image), ("n" * length, "raw"))


def test_the_longest_name_that_has_room_is_taken():
    data, image = linked(16)
    name = "n" * qcow2.BACKING_NAME_BYTES_MAX
    assert parsed(put_all(data, relink(image, first_cluster(data, image), (name, "raw")))).backing_file == name
    data, image = linked(9)
    # Header, the format with its head, and the end marker come first.
    name = "n" * (CLUSTER - 112 - 16 - 8)
    assert parsed(put_all(data, relink(image, first_cluster(data, image), (name, "raw")))).backing_file == name
    with pytest.raises(Refused):
        relink(image, first_cluster(data, image), (name + "n", "raw"))


def test_a_link_keeps_unknown_extensions_in_their_order():
    many = (STRANGER, Extension(7, b""), Extension(0x12345679, bytes(range(9))))
    data, image = linked(12, *many)
    header = parsed(put_all(data, relink(image, first_cluster(data, image), ("base", "raw"))))
    assert tuple(each for each in header.extensions if each.type != qcow2.BACKING_FORMAT) == many


def test_extensions_that_lie_past_the_first_sector_stay_where_they_are():
    long = Extension(0x12345678, bytes(range(256)) * 4)
    data, image = linked(12, long, link=("old", "qcow2"))
    steps = relink(image, first_cluster(data, image), ("base", "raw"))
    names = [parsed(state).backing_file for state in crashes(data, steps) if long in parsed(state).extensions]
    assert len(names) == len(list(crashes(data, steps)))
    assert names[-1] == "base"


# Any change at all.

KINDS = (qcow2.BACKING_FORMAT, qcow2.BITMAPS, qcow2.DATA_FILE_NAME, qcow2.FEATURE_NAMES, 0x1234, 0x5678)


def drawn(choose: random.Random, cluster_bits: int) -> Header:
    """A header that says anything, and perhaps more than the cluster has room for."""
    version = choose.choice([2, 3, 3])
    longest = choose.choice([8, 60, 400, 1500])
    extensions = [
        qcow2.feature_table()
        if kind == qcow2.FEATURE_NAMES
        else Extension(kind, choose.randbytes(choose.randint(0, longest)))
        for kind in choose.sample(KINDS, choose.randint(0, len(KINDS)))
    ]
    header = Header(
        version,
        cluster_bits,
        choose.randrange(1 << 15),
        l1_entry_count=1,
        l1_table_offset=0,
        refcount_table_offset=0,
        refcount_table_cluster_count=1,
        snapshot_count=choose.randint(0, 9),
        header_length=72 if version == 2 else choose.choice([104, 112, 112, 120]),
        extensions=tuple(extensions),
        backing_name_bytes=b"n" * choose.choice([0, 0, 1, 30, 300, 1023]),
    )
    if version == 2:
        return header
    header = header._replace(incompatible=choose.randint(0, 1), autoclear=choose.randint(0, 7))
    unknown = b"\1" * max(header.header_length - 105, 0)
    return header._replace(unknown_fields=unknown)


def standing(choose: random.Random, header: Header) -> tuple[bytes, Header]:
    """A first cluster that says it, with noise wherever nothing is read, and the name anywhere behind the extensions.
    Returns: it, and what it says. Raises: ValueError when there is no room.
    """
    end, size = len(qcow2.pack(header)), 1 << header.cluster_bits
    gap = choose.choice([0, 0, choose.randint(0, size - end)])
    name = header.backing_name_bytes
    fields = qcow2.pack_fields(header._replace(backing_file_offset=end - len(name) + gap if name else 0))
    listed = qcow2.pack(header)[len(fields) : end - len(name)]
    cluster = (fields + listed + choose.randbytes(gap) + name + choose.randbytes(size))[:size]
    return cluster, read(cluster)


def read(cluster: bytes) -> Header:
    return qcow2.parse_fields("image", cluster, 1 << 40)


def said(header: Header) -> tuple[Any, ...]:
    """All that a header means: where it stands, and in which order the extensions come, is nothing to its readers."""
    meant = without_extension(header.extensions, qcow2.FEATURE_NAMES)
    return (header._replace(extensions=(), backing_file_offset=0), sorted(meant))


def sectors(step: Step) -> list[Write]:
    """The parts of a write that a power cut keeps or loses."""
    if not isinstance(step, Write):
        return []
    ends = [0, *range(CLUSTER - step.offset % CLUSTER, len(step.data), CLUSTER), len(step.data)]
    return [Write(step.offset + at, step.data[at:to]) for at, to in pairwise(ends)]


def torn_states(choose: random.Random, cluster: bytes, steps: list[Step]) -> Iterator[bytes]:
    """What may be left: all before the last flush, and any of the sectors that came after it."""
    pending: list[Write] = []
    for step in [*steps, Flush()]:
        pending += sectors(step)
        if isinstance(step, Flush):
            yield from (put_all(cluster, [*pending[:index]]) for index in range(len(pending)))
            for _ in range(4):
                yield put_all(cluster, [each for each in pending if choose.random() < 0.5])
            cluster, pending = put_all(cluster, [*pending]), []
            yield cluster


class Change(NamedTuple):
    """A cluster that stands, what it says, and what it shall say."""

    cluster: bytes
    old: Header
    new: Header

    @property
    def image(self) -> Image:
        """The image as far as its header tells."""
        nothing: Any = None
        return Image("image", self.old, nothing, nothing, (), 0, (), None, (), 1 << 40)


def any_change(choose: random.Random) -> Change:
    """A change between two random headers, which often have much in common."""
    while True:
        cluster_bits = choose.choice([9, 10, 11, 12, 13, 16])
        try:
            cluster, old = standing(choose, drawn(choose, cluster_bits))
        except ValueError:
            continue
        new = drawn(choose, cluster_bits)
        kept = [each for each in old.extensions if choose.random() < 0.8]
        if choose.random() < 0.6:
            more = tuple(each for each in new.extensions[:2] if each.type not in {one.type for one in kept})
            new = new._replace(extensions=(*kept, *more))
        return Change(cluster, old, new)


def needed_bytes(header: Header) -> int:
    """The length of all that a header must say, the names of features apart."""
    must = without_extension(header.extensions, qcow2.FEATURE_NAMES)
    return len(qcow2.pack(header._replace(extensions=must, cluster_bits=21)))


def used_bytes(change: Change) -> int:
    """Where the last byte ends that is used."""
    old = change.old
    listed = old.header_length + sum(len(qcow2.pack_extension(each)) for each in old.extensions) + 8
    return max(listed, old.backing_file_offset + len(old.backing_name_bytes))


@pytest.mark.soak
def test_any_change_of_the_header_is_whole_or_has_not_happened(seed: int):
    choose = random.Random(seed)
    done = 0
    for _ in range(60):
        change = any_change(choose)
        cluster, old, new = change
        try:
            steps = rewrite(change.image, cluster, new)
        except Refused:
            behind = max(used_bytes(change), needed_bytes(new)) + needed_bytes(new) - new.header_length
            assert behind + 16 > len(cluster), "there was room"
            continue
        done += 1
        for state in torn_states(choose, cluster, steps):
            assert said(read(state)) in (said(old), said(new))
        assert said(read(put_all(cluster, steps))) == said(new)
        assert steps[-1] == Flush()
    assert done > 10


def test_what_a_stop_leaves_leads_on_to_the_same_end():
    choose = random.Random(5)
    changes = (any_change(choose) for _ in range(400))
    twice = 0
    for change in changes:
        try:
            steps = rewrite(change.image, change.cluster, change.new)
        except Refused:
            continue
        switches = [index for index, step in enumerate(steps) if isinstance(step, Write) and not step.offset]
        if len(switches) < 2:
            continue
        twice += 1
        middle = put_all(change.cluster, steps[: switches[0] + 1])
        again = change._replace(cluster=middle, old=read(middle))
        try:
            ended = put_all(middle, rewrite(again.image, middle, change.new))
        except Refused:
            # Both copies of the list are in the way of a third one.
            assert used_bytes(again) + needed_bytes(change.new) > len(middle)
            continue
        assert said(read(ended)) == said(change.new)
        odd = [each for each in read(ended).extensions if each.type == qcow2.FEATURE_NAMES and len(each.data) % 48]
        assert not odd
    assert twice


def test_qemu_reads_the_same_while_the_header_changes(tmp_path):
    path = tmp_path / "image"
    qemu_img("create", "-q", "-f", "raw", tmp_path / "base", "8M")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", path)
    qemu_img("bitmap", "--add", path, "first")
    qemu_img("bitmap", "--add", path, "second")
    image, data = image_at(path), path.read_bytes()
    count = image.header.extension(qcow2.BITMAPS)
    assert count is not None
    # The list is longer than a sector, and its end is what changes.
    stranger = Extension(0x12345678, b"x" * 40)
    header = image.header._replace(
        extensions=(*without_extension(image.header.extensions, qcow2.BITMAPS), stranger),
        autoclear=0,
        backing_name_bytes=b"./base",
    )
    old, new = (json.loads(qemu_img("info", "--output=json", path)), None)
    steps = rewrite(image, first_cluster(data, image), header)
    states = {state[: 1 << 16]: state for state in crashes(data, steps)}
    assert len(states) > 2
    for state in states.values():
        path.write_bytes(state)
        found = json.loads(qemu_img("info", "--output=json", path))
        bitmaps = [each["name"] for each in found["format-specific"]["data"].get("bitmaps", [])]
        seen = (found["backing-filename"], bitmaps)
        assert seen in (("base", ["first", "second"]), ("./base", []))
        new = found
    assert new is not None
    assert (old["backing-filename"], new["backing-filename"]) == ("base", "./base")


def test_a_header_that_says_it_already_is_left_alone():
    data, image = linked(12, STRANGER, link=("old", "raw"))
    assert rewrite(image, first_cluster(data, image), image.header) == [Flush()]


@pytest.mark.parametrize("cluster_bits", [9, 12, 16])
def test_the_version_changes_and_the_list_moves_with_the_header(cluster_bits):
    data, image = linked(cluster_bits, STRANGER, link=("old", "raw"))
    older = image.header._replace(version=2, header_length=72, incompatible=0, unknown_fields=b"")
    steps = rewrite(image, first_cluster(data, image), older)
    for state in crashes(data, steps):
        assert said(parsed(state)) in (said(image.header), said(older))
    changed = put_all(data, steps)
    image = image._replace(header=parsed(changed))
    newer = image.header._replace(version=3, header_length=112)
    back = put_all(changed, rewrite(image, first_cluster(changed, image), newer))
    assert (parsed(back).version, parsed(back).backing_file, STRANGER in parsed(back).extensions) == (3, "old", True)


def test_the_names_of_features_go_when_nothing_else_makes_room():
    data, image = linked(10, qcow2.feature_table(), STRANGER)
    names = qcow2.feature_table()
    for length, kept in ((100, True), (488, True), (489, False), (800, False)):
        header = image.header._replace(backing_name_bytes=b"n" * length)
        found = parsed(put_all(data, rewrite(image, first_cluster(data, image), header)))
        assert found.backing_name_bytes == b"n" * length
        assert STRANGER in found.extensions
        assert (names in found.extensions) == kept


def test_an_extension_takes_the_place_of_its_type_or_comes_first():
    one, two, other = Extension(1, b"a"), Extension(1, b"b"), Extension(2, b"c")
    assert with_extension((other, one), two) == (other, two)
    assert with_extension((other,), two) == (two, other)
    assert without_extension((one, other, two), 1) == (other,)
