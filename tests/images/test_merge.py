"""Owns the proof that commit, pull and rebase lose nothing: by picture, by model, and against qemu-img.

How they are stopped in the middle is tried in the files named test_safety_*.
"""

import json
import os
import random
import shutil
from pathlib import Path

import pytest

from cowtree.chain import gate, load
from cowtree.errors import Refused
from cowtree.images import merge
from cowtree.images.create import create
from cowtree.monitor import Counting
from cowtree.plan.create import NewImage
from cowtree.qcow2 import header as qcow2
from cowtree.storage.contract import Access
from cowtree.storage.file import LocalFiles
from cowtree.storage.memory import MemoryFiles
from tests import permits
from tests.permits import Into
from tests.pictures import CLUSTER_BYTES, commit, draw, family, pull, rebase, see, view
from tests.qemu import RandomChain, assert_clean, content, qemu_img, qemu_io, random_chain, run

FILES = LocalFiles()


def test_commit_lets_the_base_show_through_holes():
    assert commit(top="A-0-", base="BB-C") == "AB0C"


def test_commit_into_raw():
    assert commit(top="A-0-", base="BBBC", raw_base=True) == "AB0C"


def test_commit_overwrites_compressed_and_kept_clusters():
    assert commit(top="AA0-0a", base="boboBo") == "AA000A"


def test_commit_takes_what_lies_between_along():
    assert commit(top="A---", between=["-B--", "bbC-"], base="ZZZZ") == "ABCZ"


def test_commit_into_a_layer_in_the_middle_leaves_what_lies_below():
    made = family("A--0", "-B--", "--C-", "DDDD")
    permits.commit(made.files, made.top, into=Into(made.names[2]))
    assert (made.held(2), made.held(3)) == ("ABC0", "DDDD")


def test_commit_makes_a_short_base_longer():
    assert commit(top="A---B", base="ZZ") == "AZ00B"
    assert commit(top="A---B", base="ZZ", raw_base=True) == "AZ00B"


def test_a_base_that_grows_does_not_show_what_backs_it_further_on():
    made = family("A----", "BB", "CCCCC")
    permits.commit(made.files, made.top)
    assert (made.seen(0), made.seen(1)) == ("AB000", "AB000")


def test_a_base_that_is_longer_keeps_its_length():
    assert commit(top="A-", base="ZZZZ") == "AZZZ"


def test_what_a_longer_base_holds_in_the_last_cluster_of_the_top_stays():
    made = family("A", "--" + "--", "BBBBBB", base_cluster_bits=11)
    permits.commit(made.files, made.top, into=Into(made.names[2]))
    assert made.seen(2) == "ABBBBB"


def test_what_a_longer_base_shows_of_its_own_backing_in_that_cluster_stays_too():
    made = family("CCCCCC")
    middle = NewImage("middle", "qcow2", 6 * CLUSTER_BYTES, 12, backing_file=made.top, backing_format="qcow2")
    draw(made.files, middle, "------")
    top = NewImage("top", "qcow2", CLUSTER_BYTES, 9, backing_file="middle", backing_format="qcow2")
    draw(made.files, top, "A")
    permits.commit(made.files, "top")
    assert see(made.files, "middle") == "ACCCCC"


def test_zeroes_behind_a_short_layer_in_the_middle_hide_the_base():
    assert commit(top="A----", between=["-B"], base="ZZZZZ") == "AB000"


def test_an_overlay_that_is_longer_than_the_top_sees_zeroes_behind_it_and_not_the_base():
    # qemu-img and libvirt get this one wrong: after their commit the overlay sees old data of the base.
    made = family("-----", "-B", "ZZZZZ")
    before = made.seen()
    permits.commit(made.files, made.names[1], into=Into(overlays=[made.top]))
    assert made.seen() == before == "ZB000"
    assert made.seen(2) == "ZB000"


def test_an_overlay_that_is_longer_than_the_base_changes_nothing_behind_it():
    made = family("-----", "-B", "ZZZ")
    permits.commit(made.files, made.names[1], into=Into(overlays=[made.top]))
    assert (made.seen(), made.seen(2)) == ("ZB000", "ZB0")


def test_the_top_is_emptied_when_nothing_else_lies_on_it():
    made = family("A-0-", "BB-C")
    outcome = permits.commit(made.files, made.top)
    assert (made.held(), made.seen(), outcome.invalid) == ("----", "AB0C", ())


def test_an_emptied_top_takes_no_more_space_than_a_new_one():
    made, new = family("A-0-BbCDEFGH", "BB-C--------"), family("------------", "BB-C--------")
    permits.commit(made.files, made.top)
    assert len(made.files.content(made.top)) <= len(new.files.content(new.top)) + CLUSTER_BYTES


def test_the_top_may_be_kept_as_it_is():
    made = family("A-0-", "BB-C")
    permits.commit(made.files, made.top, into=Into(empties_top=False))
    assert (made.held(), made.seen()) == ("A-0-", "AB0C")


def test_what_lies_between_top_and_base_is_invalid_afterwards():
    made = family("A---", "-B--", "--C-", "DDDD")
    outcome = permits.commit(made.files, made.top, into=Into(made.names[3]))
    assert outcome.invalid == made.names[1:3]
    assert made.seen() == "ABCD"


def test_a_top_that_is_parted_from_its_overlays_is_invalid_too():
    made = family("A---", "-B--", "--C-", "DDDD")
    outcome = permits.commit(made.files, made.names[1], into=Into(made.names[3], [made.top]))
    assert outcome.invalid == made.names[1:3]
    assert (made.seen(), made.held()) == ("ABCD", "A---")


def test_version_2_has_no_zero_clusters_so_zeroes_are_written_over_what_lies_below():
    made = family("0--", "B--", "CCC", version=2)
    top = NewImage("top", "qcow2", 3 * CLUSTER_BYTES, 9, backing_file=made.names[1], backing_format="qcow2")
    draw(made.files, top, "00-")
    permits.commit(made.files, "top")
    assert (see(made.files, made.names[1]), made.held(1)) == ("00C", "00-")


def test_pull_takes_all_into_the_top():
    assert pull("A--0-", "-B-B-", "CCC--") == "ABC0-"


def test_pull_stops_above_the_base():
    assert pull("A--0", "-B-B", "CCC-", base=2) == "AB-0"


def test_pull_from_a_compressed_layer():
    assert pull("A---", "-bo-", "ccc-") == "AB--"
    assert pull("A---", "-b--", "ccc-") == "ABC-"


def test_pull_keeps_the_zeroes_behind_a_short_layer():
    assert pull("A----", "-B", "CCCCC") == "AB---"
    assert pull("A----", "-B", "CCCCC", base=2) == "AB000"


def test_a_layer_in_the_middle_can_be_pulled_into():
    made = family("A---", "-B--", "--C-", "DDDD")
    merge.pull(made.files, made.names[1], base=made.names[3])
    assert (made.held(1), made.seen(), made.seen(1)) == ("-BC-", "ABCD", "DBCD")


def test_rebase_copies_what_differs_and_nothing_else():
    assert rebase(top="A---", old="-BC0", new="XBXX") == "A-C0"


def test_rebase_onto_a_shorter_base():
    assert rebase(top="A----", old="BBBBB", new="BB") == "A-BBB"


def test_rebase_from_a_shorter_base():
    assert rebase(top="A----", old="BB", new="BBBB") == "A-00-"


def test_rebase_to_nothing_makes_an_image_stand_alone():
    made = family("A--0", "-B--", "CCCC")
    merge.rebase(made.files, made.top, backing=None)
    made.files.unlink(made.names[1])
    assert (made.held(), see(made.files, made.top)) == ("ABC0", "ABC0")


def test_rebase_to_a_layer_of_the_same_chain_is_a_pull():
    made = family("A--0", "-B-B", "CCC-")
    merge.rebase(made.files, made.top, backing=(made.names[2], "qcow2"))
    assert (made.held(), made.seen()) == ("AB-0", "ABC0")


def test_rebase_upwards_in_the_same_chain():
    made = family("A---", "-B--", "CCCC")
    merge.rebase(made.files, made.top, backing=(made.names[2], "qcow2"))
    merge.rebase(made.files, made.top, backing=(made.names[1], "qcow2"))
    assert (made.held(), made.seen()) == ("AB--", "ABCC")


def test_relink_changes_the_name_only():
    made = family("A---", "BBBB", "CCCC")
    merge.relink(made.files, made.top, backing=(made.names[2], "qcow2"))
    assert (made.held(), made.seen()) == ("A---", "ACCC")
    merge.relink(made.files, made.top, backing=None)
    assert made.seen() == "A000"


def test_what_both_chains_share_is_not_expected_to_move():
    made, counting = family("A---", "-B--", "CCCC"), Counting()
    merge.pull(made.files, made.top, base=made.names[2], monitor=counting)
    assert counting.total_bytes == counting.moved_bytes == CLUSTER_BYTES


def test_the_monitor_hears_of_every_byte():
    made = family("AB-D", "---C", "CCCC")
    counting = Counting()
    outcome = permits.commit(made.files, made.top, into=Into(made.names[2]), monitor=counting)
    assert counting.total_bytes == counting.moved_bytes == outcome.moved_bytes == 3 * CLUSTER_BYTES
    counting = Counting()
    made = family("A---", "-BC-", "-BXX")
    outcome = merge.rebase(made.files, made.top, backing=(made.names[2], "qcow2"), monitor=counting)
    # One cluster is equal in both: it is done without being moved.
    assert (counting.moved_bytes, outcome.moved_bytes) == (counting.total_bytes, CLUSTER_BYTES)


class Case:
    """A random chain on disk, and what the guest saw through each layer before; layer 0 is the base."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.choose = random.Random(seed)
        self.folder = folder / "chain"
        self.folder.mkdir()
        self.chain: RandomChain = random_chain(self.folder, seed, self.choose.randint(3, 5))
        self.paths, self.formats = self.chain.paths, self.chain.formats
        # There is always something above and something below.
        self.top = self.choose.randint(1, len(self.paths) - 2)
        self.base = self.choose.randrange(self.top)
        self.before = [view(FILES, str(path), kind) for path, kind in zip(self.paths, self.formats, strict=True)]
        assert self.before[-1] == content(self.chain.top, self.formats[-1])

    def path(self, index: int) -> str:
        return str(self.paths[index])

    def copy(self, name: str) -> list[Path]:
        """The same images in another folder."""
        shutil.copytree(self.folder, self.folder.with_name(name))
        return [self.folder.with_name(name) / path.name for path in self.paths]

    def assert_same(self, *indexes: int) -> None:
        """Fail unless QEMU sees the same through these layers as before, and finds every image clean."""
        for index in indexes:
            assert content(self.paths[index], self.formats[index]) == self.before[index], index
        for path, kind in zip(self.paths, self.formats, strict=True):
            if kind == "qcow2" and path.exists():
                assert_clean(path)


@pytest.mark.slow
@pytest.mark.soak
def test_commit_does_what_qemu_img_does(seed, tmp_path):
    case = Case(tmp_path, seed)
    twins = case.copy("twin")
    is_direct = case.base == case.top - 1 and case.choose.random() < 0.7
    permits.commit(FILES, case.path(case.top), into=Into(None if is_direct else case.path(case.base)))
    case.assert_same(case.top)
    words = [] if is_direct else ["-b", str(twins[case.base])]
    stock = run("qemu-img", "commit", "-f", "qcow2", *words, twins[case.top])
    # A version 2 image with snapshots that must grow is more than qemu-img can do.
    assert stock.returncode == 0 or "not supported" in stock.stderr
    if stock.returncode == 0:
        kind = case.formats[case.base]
        assert content(case.paths[case.base], kind) == content(twins[case.base], kind)


@pytest.mark.slow
@pytest.mark.soak
def test_commit_below_an_overlay_changes_nothing_that_its_guest_sees(seed, tmp_path):
    case = Case(tmp_path, seed)
    outcome = permits.commit(FILES, case.path(case.top), into=Into(case.path(case.base), [case.path(case.top + 1)]))
    assert outcome.invalid == tuple(case.path(index) for index in range(case.top, case.base, -1))
    for path in outcome.invalid:
        os.unlink(path)
    case.assert_same(*range(case.top + 1, len(case.paths)))


@pytest.mark.slow
@pytest.mark.soak
def test_pull_changes_nothing_that_a_guest_sees(seed, tmp_path):
    case = Case(tmp_path, seed)
    base = case.choose.choice([-1, case.base])
    merge.pull(FILES, case.path(case.top), base=None if base < 0 else case.path(base))
    case.assert_same(*range(len(case.paths)))
    for index in range(base + 1, case.top):
        os.unlink(case.paths[index])
    case.assert_same(case.top)


@pytest.mark.slow
@pytest.mark.soak
def test_rebase_does_what_qemu_img_does(seed, tmp_path):
    case = Case(tmp_path, seed)
    (case.folder / "other").mkdir()
    other = random_chain(case.folder / "other", seed + 1_000_000, 2)
    twin = case.copy("twin")[case.top]
    name = case.choose.choice([f"other/{other.top.name}", case.paths[case.base].name])
    kind = "raw" if name.endswith("raw") else "qcow2"
    merge.rebase(FILES, case.path(case.top), backing=(name, kind))
    case.assert_same(*range(len(case.paths)))
    qemu_img("rebase", "-f", "qcow2", "-b", name, "-F", kind, twin)
    qemu_img("compare", "-f", "qcow2", "-F", "qcow2", case.paths[case.top], twin)
    assert_same_links(case.paths[case.top], twin)


@pytest.mark.slow
@pytest.mark.soak
def test_relink_does_what_qemu_img_does(seed, tmp_path):
    choose = random.Random(seed)
    path, twin = tmp_path / "image", tmp_path / "twin"
    qemu_img("create", "-q", "-f", "raw", tmp_path / "base", "1M")
    options = f"cluster_size={1 << choose.randint(9, 21)},compat={choose.choice(['0.10', '1.1'])}"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, "-b", "base", "-F", "raw", path)
    for _ in range(4):
        shutil.copy(path, twin)
        name = "./" * choose.choice([0, 1, 50, 150, 250, 509]) + "base" if choose.random() < 0.8 else ""
        stock = run("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", name, *(["-F", "raw"] if name else []), twin)
        if stock.returncode == 0:
            merge.relink(FILES, str(path), backing=(name, "raw") if name else None)
            assert_same_links(path, twin)
        else:
            with pytest.raises(Refused):
                merge.relink(FILES, str(path), backing=(name, "raw"))
        assert_clean(path)


def assert_same_links(path: Path, twin: Path) -> None:
    """Fail unless both images name the same backing file in the same format."""
    keys = ("backing-filename", "backing-filename-format")
    first, second = (json.loads(qemu_img("info", "-U", "--output=json", each)) for each in (path, twin))
    assert [first.get(key) for key in keys] == [second.get(key) for key in keys]


def stack(folder: Path, *options: str, size: str = "1M") -> tuple[Path, Path]:
    """A base with data in it, made with these options, and an overlay with other data. Returns: base and overlay."""
    base, top = folder / "base.qcow2", folder / "top.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", *options, base, "1M")
    qemu_io(base, "write -P 1 0 300k", "write -P 2 400k 200k")
    qemu_img("create", "-q", "-f", "qcow2", "-b", base.name, "-F", "qcow2", top, size)
    qemu_io(top, "write -P 3 100k 400k", "write -z 700k 100k")
    return base, top


def test_parts_of_compressed_and_of_shared_clusters_are_written_over(tmp_path):
    plain, base, top = (tmp_path / name for name in ("plain", "base", "top"))
    plain.write_bytes(random.Random(1).randbytes(1000) * 1000)
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", plain, base)
    qemu_io(base, "write -P 1 0 128k")
    qemu_img("snapshot", "-c", "before", base)
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", "-b", "base", "-F", "qcow2", top)
    qemu_io(top, "write -P 2 1k 1k", "write -P 3 300k 5k", "write -z 500k 1k")
    seen = content(top)
    permits.commit(FILES, str(top))
    assert content(base) == content(top) == seen
    assert_clean(base)


def test_a_snapshot_in_the_base_keeps_its_content(tmp_path):
    base, top = stack(tmp_path)
    qemu_img("snapshot", "-c", "before", base)
    qemu_io(base, "write -P 9 50k 100k")
    seen = content(top)
    permits.commit(FILES, str(top))
    assert content(top) == content(base) == seen
    assert_clean(base)
    assert_clean(top)
    qemu_img("snapshot", "-a", "before", base)
    assert content(base) == bytes([1]) * (300 << 10) + bytes(100 << 10) + bytes([2]) * (200 << 10) + bytes(424 << 10)


def test_a_snapshot_in_the_top_survives_the_emptying(tmp_path):
    base, top = stack(tmp_path)
    qemu_img("snapshot", "-c", "before", top)
    seen = content(top)
    qemu_io(top, "write -P 8 0 64k")
    permits.commit(FILES, str(top))
    assert_clean(top)
    qemu_img("rebase", "-u", "-b", "", top)
    qemu_img("snapshot", "-a", "before", top)
    assert content(top)[100 << 10 : 500 << 10] == seen[100 << 10 : 500 << 10]
    assert_clean(base)


def test_a_snapshot_that_does_not_know_its_size_keeps_the_base_from_growing(tmp_path):
    base, top = stack(tmp_path, size="2M")
    qemu_img("snapshot", "-c", "before", base)
    layer = gate.open_layer(FILES, str(base), "qcow2", Access.WRITE)
    assert layer.header is not None
    table = layer.header.snapshot_table_offset
    entry = layer.file.pread(table, 40 + 24 + 16)
    # The entry again as programs wrote it that knew no extra data.
    layer.file.pwrite(table, entry[:36] + bytes(4) + entry[64:80])
    layer.close()
    before = base.read_bytes()
    with pytest.raises(Refused, match="snapshot 'before' does not say how large the disk was"):
        permits.commit(FILES, str(top))
    assert base.read_bytes() == before


def test_bitmaps_of_the_base_are_kept_right(tmp_path):
    base, top = stack(tmp_path)
    for words in (("--add", base, "active"), ("--add", "--disable", base, "frozen")):
        qemu_img("bitmap", *words)
    permits.commit(FILES, str(top))
    named = json.loads(qemu_img("info", "--output=json", base))["format-specific"]["data"]["bitmaps"]
    assert {each["name"]: each["flags"] for each in named} == {"active": ["auto"], "frozen": []}
    assert_clean(base)


def test_a_base_with_bitmaps_can_grow(tmp_path):
    base, top = stack(tmp_path, "-o", "cluster_size=512", size="64M")
    for words in (("--add", base, "active"), ("--add", "--disable", base, "frozen")):
        qemu_img("bitmap", "-g", "512", *words)
    qemu_io(top, "write -P 7 50M 64k")
    seen = content(top)
    permits.commit(FILES, str(top))
    # Bitmaps that are too short for the disk must say so, or QEMU does not open the image at all.
    assert content(base) == seen
    assert_clean(base)


def test_an_image_that_a_stopped_run_left_dirty_is_mended_first(tmp_path):
    base, top = stack(tmp_path)
    seen = content(top)
    layer = gate.open_layer(FILES, str(base), "qcow2", Access.WRITE)
    image = load.load_image(layer)
    assert image is not None
    layer.file.pwrite(72, qcow2.DIRTY.to_bytes(8, "big"))
    layer.file.pwrite(int(image.refcount_table[0]) + 2 * image.host_cluster_count - 8, bytes(8))
    layer.close()
    permits.commit(FILES, str(top))
    assert content(base) == seen
    assert_clean(base)


@pytest.mark.parametrize("is_relative", [True, False])
def test_links_are_followed_where_words_alone_would_go_astray(tmp_path, is_relative):
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "near").symlink_to(tmp_path / "far" / "away")
    base, middle, top = (tmp_path / name for name in ("base.raw", "near/middle.qcow2", "near/top.qcow2"))
    qemu_img("create", "-q", "-f", "raw", base, "1M")
    qemu_io(base, "write -P 1 0 1M", image_format="raw")
    names = ("../../base.raw", "middle.qcow2") if is_relative else (base, middle)
    qemu_img("create", "-q", "-f", "qcow2", "-b", names[0], "-F", "raw", middle)
    qemu_img("create", "-q", "-f", "qcow2", "-b", names[1], "-F", "qcow2", top)
    qemu_io(middle, "write -P 2 64k 64k")
    seen = content(top)
    permits.commit(FILES, str(middle), into=Into(overlays=[str(top)]))
    middle.unlink()
    assert content(top) == content(base, "raw") == seen


def test_a_pulled_link_keeps_its_words_where_it_can(tmp_path):
    (tmp_path / "deeper").mkdir()
    base, middle, top = (tmp_path / name for name in ("base:1.qcow2", "middle.qcow2", "deeper/top.qcow2"))
    qemu_img("create", "-q", "-f", "qcow2", tmp_path / "x", "1M")
    (tmp_path / "x").rename(base)
    qemu_img("create", "-q", "-f", "qcow2", "-b", "./base:1.qcow2", "-F", "qcow2", middle)
    qemu_img("create", "-q", "-f", "qcow2", "-b", "../middle.qcow2", "-F", "qcow2", top)
    merge.pull(FILES, str(top), base=str(base))
    assert json.loads(qemu_img("info", "--output=json", top))["backing-filename"] == "../base:1.qcow2"
    assert_clean(top)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("cluster_bits", [9, 12, 16])
def test_a_link_can_be_changed_as_often_as_one_likes(cluster_bits, version):
    files = MemoryFiles()
    create(files, NewImage("image", "qcow2", 1 << 20, cluster_bits, version))
    for backing in (("a", "raw"), ("b" * 99, "qcow2"), None, ("c", "qcow2"), ("d" * 200, "raw"), ("e", "qcow2")):
        merge.relink(files, "image", backing=backing)
        layer = gate.open_layer(files, "image", "qcow2")
        assert layer.header is not None
        assert layer.header.backing_file == (backing[0] if backing else None)
        assert backing is None or layer.header.backing_format == backing[1]
        layer.close()


def test_another_format_for_the_same_file_is_another_content():
    made = family("A---", "BBBB", "CCCC")
    before = made.seen()
    # Seen as raw, the base is the bytes of its file.
    merge.rebase(made.files, made.top, backing=(made.names[1], "raw"))
    assert view(made.files, made.top)[:2048] == b"".join(sign.encode() * 512 for sign in before)


def test_an_image_of_no_size_can_be_rebased():
    files = MemoryFiles()
    draw(files, NewImage("alone", "qcow2", 0, 9), "")
    merge.rebase(files, "alone", backing=None)
    assert view(files, "alone") == b""
