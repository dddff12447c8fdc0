"""Trim: what need not be held goes, whoever reads sees the same, and what was promised comes free."""

import contextlib
import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from cowtree.chain.forest import Forest, Node, survey
from cowtree.chain.gate import open_alone
from cowtree.errors import ImageLocked, Locked, MarkedCorrupt, Refused
from cowtree.images import lineage, trim
from cowtree.images.create import create
from cowtree.images.trim import Asked, Plan, trim_image
from cowtree.luks.volume import Encryption
from cowtree.monitor import Counting
from cowtree.plan.create import NewImage
from cowtree.storage.contract import Access
from cowtree.storage.file import LocalFiles
from tests.families import overwrite
from tests.pictures import Family, family
from tests.qemu import assert_clean, check_of, content, qemu_img, qemu_io, random_chain
from tests.sparse import sparse_image

FILES = LocalFiles()


def look(*names: str):
    """Survey real images."""

    def found(folders: Sequence[str]) -> Forest:
        return survey(FILES, [*names, *folders])

    return found


def line(made: Family) -> Forest:
    """A family in memory as a forest; each image reads the next one alone."""
    count = len(made.names)
    nodes = [
        Node(name, format=kind, parent=number - 1 if number else None)
        for number, (name, kind) in enumerate(zip(made.names[::-1], made.formats[::-1], strict=True))
    ]
    children = [(number + 1,) for number in range(count - 1)]
    return Forest(tuple(nodes), (*children, ()), (), ())


def trimmed(*layers: str, hides: bool = False, raw_base: bool = False) -> str:
    """Trim a picture. Returns: what the layers hold then, from the top down."""
    made = family(*layers, raw_base=raw_base)
    views = made.seen()
    plans: list[Plan] = []
    freed_bytes = trim_image(made.files, made.top, Asked(None, lambda _: line(made), hides), plans.append)
    assert made.seen() == views
    assert freed_bytes == plans[0].freed_bytes
    return " ".join(made.held(index) for index in range(len(layers)))


def test_what_the_base_shows_as_well_goes():
    assert trimmed("AB-C", "AAAC") == "-B-- AAAC"


def test_zeroes_over_zeroes_go_and_zeroes_over_data_stay():
    assert trimmed("00-0", "A00-") == "0--- A00-"


def test_kept_clusters_of_zeroes_lose_their_space():
    assert trimmed("oo", "A-") == "0- A-"


def test_compressed_clusters_are_compared_by_what_they_hold():
    assert trimmed("aBc", "Ab-") == "--c Ab-"


def test_an_image_without_a_base_loses_its_zeroes():
    assert trimmed("A0oa") == "A--a"


def test_without_hidden_no_base_changes():
    assert trimmed("AAA", "BBB") == "AAA BBB"


def test_a_base_loses_what_its_only_reader_hides():
    assert trimmed("A0-a", "BBBB", hides=True) == "A0-a --B-"


def test_each_base_is_judged_by_the_layer_above_it():
    assert trimmed("ABC-", "ADDD", "EEEE", hides=True) == "-BC- A--D ----"


def test_what_lies_past_the_end_of_the_only_reader_is_hidden():
    assert trimmed("A-", "-BBB", hides=True) == "A- -B--"


def test_a_raw_base_gets_holes():
    found = trimmed("A" * 8 + "-" * 8, "B" * 16, hides=True, raw_base=True)
    assert found == f"{'A' * 8}{'-' * 8} {'o' * 8}{'B' * 8}"


def test_a_dry_run_says_the_same_and_changes_nothing():
    made = family("A" * 16 + "0" * 16, "A" * 8 + "B" * 24)
    before, plans = made.files.snapshot(), list[Plan]()
    asked = Asked(None, lambda _: line(made), hides=True, is_dry=True)
    assert trim_image(made.files, made.top, asked, plans.append) == 0
    assert made.files.snapshot() == before
    freed_bytes = trim_image(made.files, made.top, asked._replace(is_dry=False), plans.append)
    assert plans[0].freed_bytes == plans[1].freed_bytes == freed_bytes > 0
    assert plans[0].altered == ("layer-1",)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(name: str, *commands: str, backing: str | None = None, options: str = "cluster_size=4k") -> Path:
    """Make an image of 1 MiB."""
    words = ["-b", backing, "-F", "raw" if backing.endswith("raw") else "qcow2"] if backing else []
    qemu_img("create", "-q", "-f", "qcow2", *words, "-o", options, name, "1M")
    if commands:
        qemu_io(Path(name), *commands)
    return Path(name)


def trim_there(name: str, *, hides: bool = False) -> Plan:
    """Trim a real image; every promise of the plan is kept."""
    plans: list[Plan] = []
    freed_bytes = trim_image(FILES, name, Asked(None, look(name), hides), plans.append)
    assert freed_bytes == plans[0].freed_bytes
    return plans[0]


def test_a_base_with_another_reader_is_left_alone_and_named(folder: Path):
    make("root.qcow2", "write -P 1 0 64k")
    make("base.qcow2", "write -P 2 0 64k", backing="root.qcow2")
    make("top.qcow2", "write -P 3 0 64k", backing="base.qcow2")
    make("other.qcow2", backing="root.qcow2")
    views = [content(Path(name)) for name in ("top.qcow2", "other.qcow2")]
    plan = trim_there("top.qcow2", hides=True)
    assert [content(Path(name)) for name in ("top.qcow2", "other.qcow2")] == views
    assert [os.path.basename(path) for path in plan.altered] == ["base.qcow2"]
    assert [(os.path.basename(path), list(map(os.path.basename, names))) for path, names in plan.kept] == [
        ("root.qcow2", ["other.qcow2"])
    ]


def test_it_is_refused_when_others_read_every_base(folder: Path):
    make("base.qcow2", "write -P 2 0 64k")
    make("top.qcow2", "write -P 3 0 64k", backing="base.qcow2")
    make("other.qcow2", backing="base.qcow2")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(Refused, match=r"read by .*other\.qcow2 as well"):
        trim_there("top.qcow2", hides=True)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_it_is_refused_while_nobody_knows_who_reads_a_base(folder: Path):
    make("base.qcow2", "write -P 2 0 64k")
    make("top.qcow2", "write -P 3 0 64k", backing="base.qcow2")
    overwrite(make("broken.qcow2", backing="base.qcow2"), 4, b"\xff" * 4)
    with pytest.raises(Refused, match=r"could not be read: .*broken\.qcow2"):
        trim_there("top.qcow2", hides=True)
    trim_there("top.qcow2")


def test_an_internal_snapshot_keeps_what_it_holds(folder: Path):
    base = make("base.qcow2", "write -P 1 0 256k")
    top = make("top.qcow2", "write -P 1 0 128k", backing="base.qcow2")
    qemu_img("snapshot", "-c", "s", "top.qcow2")
    qemu_io(top, "write -P 1 64k 128k", "write -P 5 200k 4k")
    view = content(top)
    trim_there("top.qcow2", hides=True)
    assert content(top) == view
    assert_clean(top)
    assert_clean(base)
    qemu_img("snapshot", "-a", "s", "top.qcow2")
    # What the snapshot leaves to the base it still finds there.
    assert content(top) == b"\1" * (256 << 10) + bytes((1024 - 256) << 10)


def test_a_cluster_goes_when_all_its_subclusters_may(folder: Path):
    options = "cluster_size=64k,extended_l2=on"
    make("base.qcow2", "write -P 1 0 128k", options=options)
    top = make("top.qcow2", "write -P 1 0 8k", "write -P 0 8k 4k", backing="base.qcow2", options=options)
    qemu_io(top, "write -P 1 64k 8k", "write -P 2 72k 2k")
    view = content(top)
    plan = trim_there("top.qcow2")
    assert content(top) == view
    assert_clean(top)
    assert plan.parts[0].same_bytes + plan.parts[0].zero_bytes == 64 << 10
    assert check_of(top)["allocated-clusters"] == 1


def test_an_external_data_file_gets_holes(folder: Path):
    make("base.qcow2", "write -P 1 0 64k")
    options = "cluster_size=4k,data_file=data.raw"
    writes = "write -P 1 0 64k", "write -P 2 64k 64k", "write -P 0 128k 64k"
    top = make("top.qcow2", *writes, backing="base.qcow2", options=options)
    view = content(top)
    blocks = os.stat("data.raw").st_blocks
    plan = trim_there("top.qcow2")
    assert content(top) == view
    assert plan.parts[0].same_bytes == 128 << 10
    assert (blocks - os.stat("data.raw").st_blocks) * 512 == 128 << 10


def test_a_data_file_that_is_read_as_raw_stays_the_disk(folder: Path):
    options = "cluster_size=4k,data_file=data.raw,data_file_raw=on"
    top = make("top.qcow2", "write -P 2 64k 64k", "write -P 0 128k 64k", options=options)
    view = content(top)
    trim_there("top.qcow2")
    assert content(top) == view == Path("data.raw").read_bytes()


def test_bitmaps_stay_as_they_are(folder: Path):
    make("base.qcow2", "write -P 1 0 64k")
    top = make("top.qcow2", "write -P 1 0 64k", "write -P 3 64k 64k", backing="base.qcow2")
    qemu_img("bitmap", "--add", "top.qcow2", "b")
    before = qemu_img("info", "top.qcow2").partition("bitmaps:")[2].partition("refcount")[0]
    trim_there("top.qcow2")
    assert "auto" in before
    assert qemu_img("info", "top.qcow2").partition("bitmaps:")[2].partition("refcount")[0] == before
    assert_clean(top)


def test_an_image_that_somebody_has_open_is_left_alone(folder: Path):
    make("base.qcow2", "write -P 1 0 64k")
    make("top.qcow2", "write -P 1 0 64k", backing="base.qcow2")
    for name in ("top.qcow2", "base.qcow2"):
        with contextlib.closing(FILES.open(name, Access.READ)), pytest.raises(ImageLocked):
            trim_there("top.qcow2", hides=True)
    trim_there("top.qcow2", hides=True)


def test_damage_and_keys_are_asked_for_first(folder: Path):
    make("corrupt.qcow2", "write -P 1 0 64k")
    overwrite(Path("corrupt.qcow2"), 79, b"\2")
    with pytest.raises(MarkedCorrupt):
        trim_there("corrupt.qcow2")
    files = LocalFiles({"k": b"horse"})
    create(files, NewImage("secret.qcow2", "qcow2", 1 << 20, encryption=Encryption("luks", "k", iteration_time_ms=10)))
    with pytest.raises(Locked):
        trim_there("secret.qcow2")


def test_overlays_keep_a_true_record_of_their_base(folder: Path):
    make("base.qcow2", "write -P 1 0 64k")
    middle = NewImage("middle.qcow2", "qcow2", 1 << 20, backing_file="base.qcow2", backing_format="qcow2")
    create(FILES, lineage.noted(FILES, middle))
    qemu_io(Path("middle.qcow2"), "write -P 1 0 64k", "write -P 2 64k 64k")
    top = NewImage("top.qcow2", "qcow2", 1 << 20, backing_file="middle.qcow2", backing_format="qcow2")
    create(FILES, lineage.noted(FILES, top))
    trim_there("middle.qcow2")
    assert state("top.qcow2") == lineage.UNCHANGED
    qemu_io(Path("top.qcow2"), "write -P 3 64k 64k")
    trim_there("top.qcow2", hides=True)
    assert state("top.qcow2") == lineage.UNCHANGED
    assert state("middle.qcow2") == lineage.UNCHANGED


@pytest.mark.parametrize("moment", ["before", "between"])
def test_a_stop_leaves_no_record_that_is_wrong(folder: Path, monkeypatch: pytest.MonkeyPatch, moment: str):
    make("base.qcow2", "write -P 1 0 64k")
    for name, base in (("middle", "base"), ("top", "middle")):
        new = NewImage(f"{name}.qcow2", "qcow2", 1 << 20, backing_file=f"{base}.qcow2", backing_format="qcow2")
        create(FILES, lineage.noted(FILES, new))
        if name == "middle":
            qemu_io(Path("middle.qcow2"), "write -P 1 0 64k", "write -P 2 64k 64k")
    qemu_io(Path("top.qcow2"), "write -P 3 64k 64k")
    carry_out = trim._carry_out

    def stop(*arguments: object) -> int:
        if moment == "between":
            carry_out(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trim, "_carry_out", stop)
        for name, hides in (("middle.qcow2", False), ("top.qcow2", True)):
            with pytest.raises(KeyboardInterrupt):
                trim_there(name, hides=hides)
            assert state("top.qcow2") == lineage.UNKNOWN
    assert state("middle.qcow2") in (lineage.UNKNOWN, lineage.UNCHANGED)
    trim_there("top.qcow2", hides=True)
    assert_clean(Path("top.qcow2"))
    assert lineage.CHANGED not in (state("top.qcow2"), state("middle.qcow2"))


def test_a_record_that_was_wrong_before_stays_wrong(folder: Path):
    make("base.qcow2", "write -P 1 0 64k")
    top = NewImage("top.qcow2", "qcow2", 1 << 20, backing_file="base.qcow2", backing_format="qcow2")
    create(FILES, lineage.noted(FILES, top))
    qemu_io(Path("base.qcow2"), "write -P 9 0 1M")
    qemu_io(Path("base.qcow2"), "write -P 0 512k 64k")
    trim_there("base.qcow2")
    assert state("top.qcow2") == lineage.CHANGED


def state(name: str) -> str:
    layer = open_alone(FILES, name)
    layer.close()
    assert layer.header is not None
    return lineage.compare(FILES, name, layer.header).state


@pytest.mark.soak
@pytest.mark.slow
def test_chains_of_any_kind_show_the_same_and_free_what_was_said(tmp_path: Path, seed: int):
    chain, choose = random_chain(tmp_path, seed, 1 + seed % 4), random.Random(seed)
    view = content(chain.top, chain.formats[-1])
    if chain.formats[-1] == "qcow2":
        write_again(chain.top, view, choose)
    hides = choose.random() < 0.6
    plans: list[Plan] = []
    asked = Asked(chain.formats[-1], look(str(chain.top)), hides)
    trim_image(FILES, str(chain.top), asked._replace(is_dry=True), plans.append)
    freed_bytes = trim_image(FILES, str(chain.top), asked, plans.append)
    assert [plan.freed_bytes for plan in plans] == [freed_bytes] * 2
    assert content(chain.top, chain.formats[-1]) == view
    for path, image_format in zip(chain.paths, chain.formats, strict=True):
        if image_format == "qcow2":
            assert_clean(path)
    if not hides:
        trim_image(FILES, str(chain.top), asked, plans.append)
        assert plans[-1].parts[0].is_empty


def write_again(path: Path, view: bytes, choose: random.Random) -> None:
    """Let the image hold a piece of what it shows anyway."""
    start = choose.randrange(len(view) // 512) * 512
    piece = path.with_name("piece")
    piece.write_bytes(view[start : start + choose.randrange(1, 300) * 512])
    qemu_io(path, f"write -s {piece} {start} {piece.stat().st_size}")
    piece.unlink()


def test_nothing_is_read_where_both_files_have_holes(folder: Path):
    sparse_image(folder / "base", 3000, seed=1)
    sparse_image(folder / "top", 3000, seed=2)
    qemu_img("rebase", "-f", "qcow2", "-u", "-b", "base", "-F", "qcow2", folder / "top")
    counted = Counting()
    plans: list[Plan] = []
    asked = Asked(None, look(str(folder / "top")), hides=True, is_dry=True)
    trim_image(FILES, str(folder / "top"), asked, plans.append, counted)
    assert counted.total_bytes == 0
    assert plans[0].parts[0].same_bytes > 2900 << 16


@pytest.mark.parametrize("hidden", ["", "write -P 0 64k 64k", "write -P 7 66k 2k"])
def test_a_hole_is_compared_where_its_base_or_its_own_cluster_holds_something(folder: Path, hidden: str):
    make("base.qcow2", *([hidden] if hidden else []))
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=64k,preallocation=metadata", "top.qcow2", "1M")
    qemu_img("rebase", "-f", "qcow2", "-u", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2")
    qemu_io(Path("top.qcow2"), "write -P 3 200k 4k")
    view = content(Path("top.qcow2"))
    trim_there("top.qcow2")
    assert content(Path("top.qcow2")) == view
    assert_clean(Path("top.qcow2"))
