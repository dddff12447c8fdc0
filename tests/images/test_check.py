"""A check says what `qemu-img check` says, of sound images and of damaged ones; a repair makes nothing worse."""

import json
import random
import time
from contextlib import nullcontext, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from cowtree.chain import gate
from cowtree.chain.load import load_image
from cowtree.errors import BrokenTable, CowtreeError, MarkedCorrupt, NotAnImage
from cowtree.images.check import ALL, LEAKS, NOTHING, Report, check, open_to_check, repair_counts
from cowtree.storage.contract import Access, FileSystem
from cowtree.storage.file import LocalFiles
from cowtree.storage.memory import MemoryFiles
from tests.crash import Trial, guest_view, snapshot_views, stop_everywhere
from tests.damage import (
    COMPRESSED,
    COPIED,
    DAMAGES,
    END,
    OFFSET_MASK,
    Words,
    damage,
    find_words,
    put_word,
    rich_image,
    simple_image,
    word,
)
from tests.qemu import assert_clean, content, qemu_img, random_chain, run
from tests.sparse import MEMORY_MIB_MAX, peak_memory_mib, sparse_image

CPU_S_MAX = 2
DAMAGES_PER_IMAGE = 6
# What qemu-img calls each number of a report.
NAMES = {
    "check-errors": "internal_error_count",
    "corruptions": "corruption_count",
    "leaks": "leak_count",
    "corruptions-fixed": "corruption_fixed_count",
    "leaks-fixed": "leak_fixed_count",
    "image-end-offset": "image_end_bytes",
    "total-clusters": "total_cluster_count",
    "allocated-clusters": "allocated_cluster_count",
    "fragmented-clusters": "fragmented_cluster_count",
    "compressed-clusters": "compressed_cluster_count",
}


def checked(path: Path | str, repair: str = NOTHING, files: FileSystem | None = None) -> tuple[Report, list[str]]:
    """Check a file, and return the report and every sentence."""
    access = Access.READ if repair == NOTHING else Access.WRITE
    said: list[str] = []
    layer = open_to_check(files or LocalFiles(), str(path), "qcow2", access)
    try:
        report = check(layer, repair, lambda finding: said.extend(finding.sentences()))
    finally:
        layer.close()
    assert report is not None
    return report, said


def by_qemu(path: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """What qemu-img says: the numbers, None when it cannot go on, and the sentences."""
    result = run("qemu-img", "check", "-f", "qcow2", "--output=json", path)
    said = [line for line in result.stderr.splitlines() if not line.startswith(("qemu-img:", "qcow2:"))]
    return json.loads(result.stdout) if result.stdout else None, said


def assert_as_qemu(path: Path) -> None:
    """Fail unless both find the same; a sentence that qemu-img says twice of a shared table may be said once."""
    numbers, sentences = by_qemu(path)
    try:
        report, said = checked(path)
    except CowtreeError:
        report = None
    if numbers is None:
        assert report is None or report.failure
        return
    assert report is not None
    assert report.failure is None, report
    ours = {name: getattr(report, field) for name, field in NAMES.items()}
    assert ours == {name: numbers.get(name, 0) for name in NAMES}, said[:9]
    assert {line for each in said for line in each.splitlines()} == set(sentences)


@pytest.mark.slow
def test_random_chains_are_clean_and_counted_as_by_qemu(tmp_path: Path, seed: int):
    made = random_chain(tmp_path, seed, 2)
    for path, image_format in zip(made.paths, made.formats, strict=True):
        if image_format == "qcow2":
            assert_as_qemu(path)
            assert checked(path)[0].is_clean


@pytest.mark.slow
def test_images_with_everything_are_counted_as_by_qemu(tmp_path: Path, seed: int):
    made = rich_image(tmp_path, seed)
    assert_as_qemu(made.path)
    assert checked(made.path)[0].is_clean


@pytest.mark.slow
@pytest.mark.soak
def test_damage_is_found_as_by_qemu(tmp_path: Path, seed: int):
    path = rich_image(tmp_path, seed).path
    words, choose = find_words(path.read_bytes()), random.Random(seed)
    for number in range(DAMAGES_PER_IMAGE):
        data = damage(words, choose)
        path.write_bytes(data)
        try:
            assert_as_qemu(path)
        except AssertionError as error:
            raise AssertionError(f"damage {number}") from error
        assert path.read_bytes() == data


@pytest.mark.slow
@pytest.mark.soak
def test_noise_in_metadata_ends_soon_and_with_our_own_errors_only(tmp_path: Path, seed: int):
    path = rich_image(tmp_path, seed).path
    words, choose = find_words(path.read_bytes()), random.Random(seed)
    places = [*range(0, 128, 8), *chain.from_iterable(words.places)]
    for _ in range(5 * DAMAGES_PER_IMAGE):
        data = bytearray(words.data)
        for _ in range(choose.randint(1, 8)):
            data[choose.choice(places) + choose.randrange(8)] = choose.randrange(256)
        files = MemoryFiles({"disk": bytes(data)})
        for repair in (NOTHING, LEAKS, ALL):
            began_s = time.process_time()
            with suppress(CowtreeError):
                checked("disk", repair, files)
            assert time.process_time() - began_s < CPU_S_MAX


@pytest.mark.parametrize("name", DAMAGES)
def test_each_damage_is_found_as_by_qemu(tmp_path: Path, name: str):
    path = tmp_path / "disk"
    words = simple_image(path)
    data = bytearray(words.data)
    DAMAGES[name](words, data)
    path.write_bytes(data)
    assert_as_qemu(path)
    assert not checked(path)[0].is_clean
    assert path.read_bytes() == data


BEYOND_PLACE = (
    "past the end",
    "not aligned",
    "share a table",
    "reserved bits of an L2",
    "says too little",
    "is cut",
    "at the L1 table",
    "at the refcount table",
)


@pytest.mark.parametrize("name", [name for name in DAMAGES if not any(each in name for each in BEYOND_PLACE)])
def test_wrong_counts_and_flags_and_broken_blocks_are_repaired(tmp_path: Path, name: str):
    path = tmp_path / "disk"
    words = simple_image(path)
    data = bytearray(words.data)
    DAMAGES[name](words, data)
    path.write_bytes(data)
    before = content(path)
    report, _ = checked(path, ALL)
    assert report.is_clean
    assert report.corruption_fixed_count + report.leak_fixed_count
    assert_clean(path)
    assert content(path) == before


def test_leaks_are_freed_and_nothing_else(tmp_path: Path):
    path = tmp_path / "disk"
    words = simple_image(path)
    data = bytearray(words.data)
    put_word(data, words.l2[0], 0)
    put_word(data, words.l2[3], word(words, words.l2[3]) ^ COPIED)
    path.write_bytes(data)
    assert checked(path)[0].leak_count == 1
    report, _ = checked(path, LEAKS)
    assert (report.leak_count, report.leak_fixed_count, report.corruption_fixed_count) == (0, 1, 1)
    assert_clean(path)


def test_leaks_are_not_freed_where_counts_cannot_be_believed(tmp_path: Path):
    path = tmp_path / "disk"
    words = simple_image(path)
    data = bytearray(words.data)
    put_word(data, words.refcount_block[1], 0)
    put_word(data, words.l2[0], 0)
    path.write_bytes(data)
    report, said = checked(path, LEAKS)
    assert report.failure == "Input/output error"
    assert said[-1] == "ERROR need to rebuild refcount structures"
    assert path.read_bytes() == data


@pytest.mark.slow
@pytest.mark.soak
def test_a_repair_is_as_good_as_that_of_qemu_and_changes_nothing_that_is_seen(tmp_path: Path, seed: int):
    made = rich_image(tmp_path, seed)
    words, choose = find_words(made.path.read_bytes()), random.Random(seed)
    theirs = tmp_path / "theirs.qcow2"
    for _ in range(DAMAGES_PER_IMAGE):
        repair = choose.choice((LEAKS, ALL, ALL))
        data = spoil_counts_and_flags(words, choose)
        made.path.write_bytes(data)
        theirs.write_bytes(data)
        before = seen(made.path)
        found, _ = checked(made.path, repair)
        assert seen(made.path) == before
        assert_as_qemu(made.path)
        # QEMU 7.2 forgets all snapshots when it repairs an image that has bitmaps, and then frees their clusters.
        if made.has_snapshots and made.has_bitmaps:
            continue
        result = run("qemu-img", "check", "-f", "qcow2", "-r", repair, theirs)
        assert (result.returncode == 1) == (found.failure is not None), result.stderr
        left, (left_by_qemu, _) = checked(made.path)[0], checked(theirs)
        assert found.failure or left.corruption_count <= left_by_qemu.corruption_count
        assert found.failure or left.leak_count <= left_by_qemu.leak_count


def seen(path: Path) -> tuple[bytes, dict[str, bytes]]:
    """What the guest sees, and what each snapshot holds."""
    return guest_view(LocalFiles(), str(path)), snapshot_views(LocalFiles(), str(path))


def spoil_counts_and_flags(words: Words, choose: random.Random) -> bytes:
    """Damage what a repair mends where it is."""
    data = bytearray(words.data)
    for _ in range(choose.randint(1, 3)):
        kind = choose.choice([words.refcount_block, words.refcount_block, words.l1, words.l2_entries or words.l1])
        place = choose.choice(kind)
        value = word(words, place)
        if kind is words.refcount_block:
            value = choose.choice((0, value ^ 1 << choose.randrange(64), word(words, choose.choice(kind))))
        elif value & OFFSET_MASK and not value & COMPRESSED:
            value ^= COPIED
        put_word(data, place, value)
    return bytes(data)


def test_a_repair_keeps_snapshots_of_an_image_with_bitmaps(tmp_path: Path):
    path = tmp_path / "disk"
    simple_image(path)
    qemu_img("bitmap", "--add", path, "changes")
    words = find_words(path.read_bytes())
    data = bytearray(words.data)
    put_word(data, words.refcount_block[1], 2**48 - 1)
    path.write_bytes(data)
    before = seen(path)
    assert checked(path, ALL)[0].corruption_fixed_count
    assert_clean(path)
    assert seen(path) == before
    assert list(before[1]) == ["first"]


def test_marks_of_dirt_and_corruption_go_when_all_is_right(tmp_path: Path):
    path = tmp_path / "disk"
    data = bytearray(simple_image(path).data)
    data[79] |= 3
    path.write_bytes(data)
    assert checked(path)[0].is_clean
    assert path.read_bytes() == data
    assert checked(path, LEAKS)[0].is_clean
    assert path.read_bytes()[79] & 3 == 0


def test_marks_stay_when_something_is_left(tmp_path: Path):
    path = tmp_path / "disk"
    words = simple_image(path)
    data = bytearray(words.data)
    data[79] |= 2
    put_word(data, words.l2[0], END)
    path.write_bytes(data)
    assert checked(path, ALL)[0].corruption_count
    assert path.read_bytes()[79] & 2


def test_unknown_autoclear_bits_go_before_clusters_are_freed(tmp_path: Path):
    path = tmp_path / "disk"
    words = simple_image(path)
    data = bytearray(words.data)
    data[88] |= 0x40
    path.write_bytes(data)
    assert checked(path, NOTHING)[0].is_clean
    assert path.read_bytes() == data
    # Even where there is nothing to repair, for whoever opens an image to write in it clears them.
    assert checked(path, LEAKS)[0].is_clean
    assert path.read_bytes()[88] == 0
    put_word(data, words.l2[0], 0)
    path.write_bytes(data)
    assert checked(path, LEAKS)[0].leak_fixed_count == 1
    assert path.read_bytes()[88] == 0


def test_nothing_is_repaired_where_tables_lie_on_each_other(tmp_path: Path):
    path = tmp_path / "disk"
    words = simple_image(path)
    data = bytearray(words.data)
    put_word(data, words.l1[0] + 8, words.l1[0] | COPIED)
    path.write_bytes(data)
    report, said = checked(path, ALL)
    assert report.failure == "Input/output error"
    assert "two tables lie at byte" in said[-1]
    assert path.read_bytes() == data


def test_tables_that_a_repair_does_not_write_to_may_lie_on_each_other(tmp_path: Path):
    path = tmp_path / "disk"
    words = simple_image(path)
    data = bytearray(words.data)
    put_word(data, words.snapshot_table[0], words.snapshot_table[0])
    put_word(data, words.refcount_block[1], 2**48 - 1)
    path.write_bytes(data)
    report, _ = checked(path, ALL)
    assert report.failure is None
    assert report.corruption_fixed_count


@pytest.mark.slow
def test_the_header_of_an_encryption_is_counted(tmp_path: Path):
    path = tmp_path / "disk"
    secret = "--object", "secret,id=key,data=abc"
    options = "cluster_size=4096,encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10"
    qemu_img("create", "-q", "-f", "qcow2", *secret, "-o", options, path, "1M")
    assert checked(path)[0].is_clean


def test_snapshot_tables_without_end_are_not_followed():
    files, header = MemoryFiles(), bytearray(512 * 4)
    header[:4] = b"QFI\xfb"
    fields = (4, 4, 2), (20, 4, 9), (36, 4, 0), (48, 8, 512), (56, 4, 1), (60, 4, 4), (64, 8, 1024)
    for offset, length, value in fields:
        header[offset : offset + length] = value.to_bytes(length, "big")
    for index in range(4):
        header[1024 + 40 * index : 1024 + 40 * index + 12] = (512).to_bytes(8, "big") + (1 << 22).to_bytes(4, "big")
    files = MemoryFiles({"disk": bytes(header)})
    report, said = checked("disk", NOTHING, files)
    assert report.failure == "Invalid argument"
    assert said[-1] == "ERROR snapshot L1 tables lie on top of each other"


def test_a_raw_image_cannot_be_checked():
    files = MemoryFiles({"disk": bytes(4096)})
    for image_format in ("raw", None):
        layer = open_to_check(files, "disk", image_format)
        assert check(layer) is None
        layer.close()


def test_what_is_no_image_is_closed_again():
    files = MemoryFiles({"disk": bytes(4096)})
    with pytest.raises(NotAnImage):
        open_to_check(files, "disk", "qcow2")
    assert not files.held()


def mend(files: FileSystem, path: str = "disk") -> None:
    """Mend counts, as a merge does before it writes."""
    layer = gate.open_layer(files, path, "qcow2", Access.WRITE)
    try:
        image = load_image(layer)
        assert image is not None
        mended = repair_counts(layer, image)
        assert mended.file_size_bytes == layer.file.size_bytes
        again = load_image(layer)
        assert again is not None
        assert mended.header == again.header
        assert mended.refcount_table.tolist() == again.refcount_table.tolist()
        assert mended.l1.tolist() == again.l1.tolist()
    finally:
        layer.close()


LAZY_OPTIONS = (
    "cluster_size=512",
    "cluster_size=512,refcount_bits=64",
    "cluster_size=4096,refcount_bits=1",
    "cluster_size=65536",
)


@pytest.mark.parametrize("options", LAZY_OPTIONS)
@pytest.mark.slow
def test_counts_that_a_killed_qemu_never_wrote_are_mended(tmp_path: Path, options: str):
    path = tmp_path / "disk"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"lazy_refcounts=on,{options}", path, "64M")
    run(
        "qemu-io", "-f", "qcow2", "-c", "write -P 1 0 5M", "-c", "write -P 2 20M 1M", "-c", "flush", "-c", "abort", path
    )
    assert checked(path)[0].corruption_count
    before = seen(path)
    mend(LocalFiles(), str(path))
    assert_clean(path)
    assert seen(path) == before
    data = path.read_bytes()
    mend(LocalFiles(), str(path))
    assert path.read_bytes() == data


MENDABLE = (
    "the refcount of a cluster is 0",
    "the refcount of a cluster is too high",
    "a cluster is leaked",
    "two L2 entries share a cluster",
    "an L2 entry is a mere flag",
    "a flag is missing",
    "the flag of an L1 entry is wrong",
    "an L1 entry is gone",
    "the refcount table is empty",
)


@pytest.mark.parametrize("name", DAMAGES)
def test_counts_are_mended_or_damage_is_refused(tmp_path: Path, name: str):
    path = tmp_path / "disk"
    words = simple_image(path)
    data = bytearray(words.data)
    DAMAGES[name](words, data)
    path.write_bytes(data)
    if name in MENDABLE:
        mend(LocalFiles(), str(path))
        assert_clean(path)
        return
    # What a snapshot says of its machine is no matter of counts.
    expected = nullcontext() if name == "a snapshot says too little" else pytest.raises(CowtreeError, match=str(path))
    with expected:
        mend(LocalFiles(), str(path))
    assert path.read_bytes() == data


def test_counts_of_an_image_marked_corrupt_are_not_touched(tmp_path: Path):
    path = tmp_path / "disk"
    words = simple_image(path)
    data = bytearray(words.data)
    data[79] |= 2
    path.write_bytes(data)
    with pytest.raises(MarkedCorrupt):
        mend(LocalFiles(), str(path))


def test_guest_data_in_a_table_is_not_mended_even_when_it_is_counted(tmp_path: Path):
    path = tmp_path / "disk"
    words = simple_image(path)
    data = bytearray(words.data)
    DAMAGES["an L2 entry points at the L1 table"](words, data)
    path.write_bytes(data)
    assert checked(path, ALL)[0].corruption_fixed_count
    assert_clean(path)
    with pytest.raises(BrokenTable, match="which holds a table"):
        mend(LocalFiles(), str(path))


def stopped_image(tmp_path: Path, name: str) -> bytes:
    """A small image as something has left it."""
    path = tmp_path / "disk"
    words = simple_image(path, "cluster_size=512", "128k")
    data = bytearray(words.data)
    if name == "blocks are missing":
        put_word(data, words.refcount_table[0], word(words, words.refcount_table[0]))
        for place in words.refcount_table[1:]:
            put_word(data, place, 0)
        put_word(data, words.refcount_table[0], 0)
    elif name == "counts and flags are stale":
        for place in words.refcount_block[::3]:
            put_word(data, place, word(words, place) ^ (1 << 48 | 2 << 16))
        for place in words.l2[::2]:
            if not word(words, place) & COMPRESSED and word(words, place) & OFFSET_MASK:
                put_word(data, place, word(words, place) ^ COPIED)
    else:
        put_word(data, words.refcount_table[0], word(words, words.refcount_table[0]) | 1)
    return bytes(data)


STOPPED = ("blocks are missing", "counts and flags are stale", "the refcount table is broken")


@pytest.mark.slow
@pytest.mark.parametrize("name", STOPPED)
def test_a_repair_may_be_stopped_anywhere(tmp_path: Path, name: str):
    data = stopped_image(tmp_path, name)
    before = MemoryFiles({"disk": data})
    view, snapshots = guest_view(before, "disk"), snapshot_views(before, "disk")
    most, _ = checked("disk", NOTHING, before)
    assert most.corruption_count

    def repair(files: FileSystem) -> None:
        report, said = checked("disk", ALL, files)
        assert report.is_clean, said

    def judge(files: MemoryFiles, is_done: bool) -> None:
        assert guest_view(files, "disk") == view
        assert snapshot_views(files, "disk") == snapshots
        report, said = checked("disk", NOTHING, files)
        assert report.failure is None
        assert report.corruption_count <= most.corruption_count, said
        assert report.is_clean or not is_done, said

    stop_everywhere(Trial({"disk": data}, repair, judge))


@pytest.mark.slow
@pytest.mark.parametrize("name", STOPPED[:2])
def test_mending_counts_may_be_stopped_anywhere(tmp_path: Path, name: str):
    data = bytearray(stopped_image(tmp_path, name))
    data[79] |= 1
    before = MemoryFiles({"disk": bytes(data)})
    view = guest_view(before, "disk")
    most, _ = checked("disk", NOTHING, before)

    def judge(files: MemoryFiles, is_done: bool) -> None:
        assert guest_view(files, "disk") == view
        report, said = checked("disk", NOTHING, files)
        assert report.corruption_count <= most.corruption_count, said
        assert report.is_clean or not is_done, said

    stop_everywhere(Trial({"disk": bytes(data)}, mend, judge))


CHECK_CODE = """
import sys
from cowtree.images.check import check, open_to_check, repair_counts
from cowtree.chain.load import load_image
from cowtree.storage.contract import Access
from cowtree.storage.file import LocalFiles
layer = open_to_check(LocalFiles(), sys.argv[1], None, Access.WRITE)
if sys.argv[2] == "mend":
    repair_counts(layer, load_image(layer))
assert check(layer).is_clean
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", ["check", "mend"])
def test_a_million_clusters_of_a_terabyte_fit_into_memory(tmp_path: Path, what: str):
    path = sparse_image(tmp_path / "disk", 1 << 20, 1)
    if what == "mend":
        # Without its refcount table an image has no counts at all.
        with path.open("r+b") as file:
            file.seek(48)
            file.seek(int.from_bytes(file.read(8), "big"))
            file.write(bytes(8))
    assert peak_memory_mib(CHECK_CODE, path, what) < MEMORY_MIB_MAX
