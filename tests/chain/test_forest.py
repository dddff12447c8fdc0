"""Forests: real families of every shape, and every way in which one can be broken."""

import os
import random
import shlex
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from cowtree.chain import gate
from cowtree.chain.forest import Forest, Node, survey
from cowtree.chain.search import Unseen
from cowtree.cli.main import main
from cowtree.errors import (
    BrokenHeader,
    ChainError,
    ChainTooDeep,
    CowtreeError,
    LoopInChain,
    MissingImage,
    NotAnImage,
    TruncatedImage,
    UnknownFeature,
)
from cowtree.storage.contract import Access
from cowtree.storage.file import LocalFiles
from tests.cli.img.differential import held
from tests.families import overwrite, stamp
from tests.qemu import qemu_img
from tests.rights import as_nobody


def image(path: Path, *more: str, size: str = "1M") -> Path:
    """An empty image."""
    qemu_img("create", "-q", "-f", "qcow2", "-u", *more, path, size)
    return path


def on(base: str, image_format: str = "qcow2") -> tuple[str, ...]:
    """The options that name a base."""
    return ("-b", base, "-F", image_format)


def look(*places: Path) -> Forest:
    """The forest below folders and around images."""
    return survey(LocalFiles(), [str(place) for place in places])


def picture(forest: Forest) -> list[str]:
    """The names, moved to the right by two dots for each level."""
    return [".." * node.depth + os.path.basename(node.path) for node in forest.nodes]


def one(forest: Forest, name: str) -> Node:
    """The node of this name."""
    (found,) = (node for node in forest.nodes if os.path.basename(node.path) == name)
    return found


def trouble(forest: Forest) -> dict[str, type[Exception]]:
    """What is wrong with which image."""
    return {os.path.basename(node.path): type(node.problem) for node in forest.nodes if node.problem}


@pytest.fixture
def family(tmp_path: Path) -> Path:
    """A raw base, two overlays on it and one on one of these, and two strangers in the same folder."""
    (tmp_path / "base.img").write_bytes(bytes(1 << 20))
    image(tmp_path / "a.qcow2", *on("base.img", "raw"))
    image(tmp_path / "b.qcow2", *on(str(tmp_path / "base.img"), "raw"))
    image(tmp_path / "a1.qcow2", *on("a.qcow2"))
    image(tmp_path / "stranger.qcow2")
    (tmp_path / "notes.txt").write_text("nothing")
    return tmp_path


def test_a_folder_is_drawn_with_each_base_before_what_hangs_on_it(family: Path):
    forest = look(family)
    assert picture(forest) == ["base.img", "..a.qcow2", "....a1.qcow2", "..b.qcow2", "stranger.qcow2"]
    assert forest.roots == (0, 4)
    assert forest.leaves == (2, 3, 4)
    assert forest.children == ((1, 3), (2,), (), (), ())
    assert [node.parent for node in forest.nodes] == [None, 0, 1, 0, None]
    assert all(node.is_whole for node in forest.nodes)
    assert forest.problems == ()


def test_any_image_brings_its_family_and_no_stranger(family: Path):
    for name in ("base.img", "a.qcow2", "b.qcow2", "a1.qcow2"):
        assert picture(look(family / name)) == ["base.img", "..a.qcow2", "....a1.qcow2", "..b.qcow2"]


def test_an_image_says_its_format_sizes_and_base(family: Path):
    forest = look(family)
    base, overlay = one(forest, "base.img"), one(forest, "a.qcow2")
    assert (base.format, base.size_bytes, base.backing) == ("raw", 1 << 20, None)
    assert (overlay.format, overlay.size_bytes, overlay.backing) == ("qcow2", 1 << 20, ("base.img", "raw"))
    assert overlay.own_size_bytes == (family / "a.qcow2").stat().st_blocks * 512


def test_a_family_that_is_spread_over_folders_is_looked_for_in_each_of_them(tmp_path: Path):
    for name in ("bases", "middle", "tops"):
        (tmp_path / name).mkdir()
    image(tmp_path / "bases/base.qcow2")
    image(tmp_path / "middle/middle.qcow2", *on("../bases/base.qcow2"))
    image(tmp_path / "bases/sibling.qcow2", *on("../middle/middle.qcow2"))
    top = image(tmp_path / "tops/top.qcow2", *on("../middle/middle.qcow2"))
    image(tmp_path / "middle/other.qcow2", *on("../bases/base.qcow2"))
    forest = look(top)
    assert picture(forest) == ["base.qcow2", "..middle.qcow2", "....sibling.qcow2", "....top.qcow2", "..other.qcow2"]
    assert {os.path.basename(each.folder) for each in forest.looked} == {"bases", "middle", "tops"}
    # From the base nothing leads to the folder of the top; that it was not looked into can be seen.
    assert "....top.qcow2" not in picture(look(tmp_path / "bases/base.qcow2"))


def test_raw_files_count_when_they_are_named_or_called_as_images(tmp_path: Path):
    for name in ("a.img", "b.RAW", "c.bin", "d.bin", "e.txt"):
        (tmp_path / name).write_bytes(bytes(1000))
    image(tmp_path / "top.qcow2", *on("c.bin", "raw"))
    assert picture(look(tmp_path)) == ["a.img", "b.RAW", "c.bin", "..top.qcow2"]
    assert picture(look(tmp_path / "d.bin")) == ["d.bin"]
    assert one(look(tmp_path / "d.bin"), "d.bin").size_bytes == 1024


def test_an_external_data_file_is_no_image_of_its_own(tmp_path: Path):
    image(tmp_path / "a.qcow2", "-o", f"data_file={tmp_path}/a.raw")
    forest = look(tmp_path)
    assert picture(forest) == ["a.qcow2"]
    assert forest.nodes[0].notes == (f"data in {tmp_path}/a.raw",)


def test_a_file_of_many_names_is_one_image(family: Path):
    (family / "link.qcow2").symlink_to("a.qcow2")
    (family / "hard.qcow2").hardlink_to(family / "a.qcow2")
    image(family / "c.qcow2", *on("link.qcow2"))
    forest = look(family)
    assert picture(forest)[:4] == ["base.img", "..a.qcow2", "....a1.qcow2", "....c.qcow2"]
    assert one(forest, "a.qcow2").other_names == (str(family / "hard.qcow2"), str(family / "link.qcow2"))


def test_a_name_from_which_the_base_is_not_found_is_told(family: Path):
    (family / "elsewhere").mkdir()
    (family / "elsewhere/a.qcow2").hardlink_to(family / "a.qcow2")
    assert one(look(family), "a.qcow2").notes == (f"no such base when opened as {family}/elsewhere/a.qcow2",)


def test_an_overlay_larger_than_its_base_is_told_and_is_no_problem(family: Path):
    image(family / "large.qcow2", *on("base.img", "raw"), size="3M")
    forest = look(family)
    assert one(forest, "large.qcow2").notes == ("base ends at 1 MiB",)
    assert forest.problems == ()


def test_a_base_without_a_declared_format_is_told(family: Path):
    path = family / "a.qcow2"
    path.write_bytes(path.read_bytes().replace(b"\xe2\x79\x2a\xca", b"\x12\x34\x56\x78"))
    assert one(look(family), "a.qcow2").notes == ("format of the base not declared",)


def test_a_base_that_is_missing_is_a_root_without_a_format(tmp_path: Path):
    for name in ("a", "b"):
        image(tmp_path / f"{name}.qcow2", *on("gone.qcow2"))
    image(tmp_path / "c.qcow2", *on("a.qcow2"))
    forest = look(tmp_path)
    assert picture(forest) == ["gone.qcow2", "..a.qcow2", "....c.qcow2", "..b.qcow2"]
    assert trouble(forest) == {"gone.qcow2": MissingImage}
    assert forest.nodes[0].format is None
    assert not any(node.is_whole for node in forest.nodes)
    assert str(forest.problems[0]).startswith(f"{tmp_path}/gone.qcow2: No such file or directory")
    assert str(tmp_path / "a.qcow2") in forest.problems[0].advice
    assert picture(look(tmp_path / "b.qcow2")) == picture(forest)


def test_a_base_that_is_missing_is_one_by_whatever_way_it_is_named(tmp_path: Path):
    for name in ("a", "b/c"):
        (tmp_path / name).mkdir(parents=True)
    image(tmp_path / "a/one.qcow2", *on("../gone/base.qcow2"))
    image(tmp_path / "b/c/two.qcow2", *on("../../gone/./base.qcow2"))
    forest = look(tmp_path)
    assert picture(forest) == ["base.qcow2", "..one.qcow2", "..two.qcow2"]
    assert forest.nodes[0].path == f"{tmp_path}/gone/base.qcow2"


def test_a_loop_is_cut_and_told_once(tmp_path: Path):
    for name, base in (("a", "c"), ("b", "a"), ("c", "b"), ("top", "b")):
        image(tmp_path / f"{name}.qcow2", *on(f"{base}.qcow2"))
    forest = look(tmp_path)
    assert picture(forest) == ["a.qcow2", "..b.qcow2", "....c.qcow2", "....top.qcow2"]
    assert trouble(forest) == {"a.qcow2": LoopInChain}
    assert forest.leaves == (3,)
    assert not any(node.is_whole for node in forest.nodes)
    assert picture(look(tmp_path / "top.qcow2")) == picture(forest)


def test_an_image_that_backs_itself_is_told(tmp_path: Path):
    image(tmp_path / "own.qcow2", *on("own.qcow2"))
    forest = look(tmp_path)
    assert trouble(forest) == {"own.qcow2": LoopInChain}
    assert forest.leaves == ()


class Damage(NamedTuple):
    """What is written where, and what that is called."""

    offset: int
    data: bytes
    wanted: type[Exception]


@pytest.mark.parametrize(
    "damage",
    [
        Damage(4, b"\0\0\0\x09", BrokenHeader),
        Damage(72, b"\x80", UnknownFeature),
        Damage(48, b"\0\0\0\0\xff", TruncatedImage),
    ],
)
def test_damage_is_told_of_the_image_and_its_overlays_are_not_whole(family: Path, damage: Damage):
    overwrite(family / "a.qcow2", damage.offset, damage.data)
    forest = look(family)
    assert trouble(forest) == {"a.qcow2": damage.wanted}
    # What backs a damaged image is not known any more.
    assert picture(forest) == ["a.qcow2", "..a1.qcow2", "base.img", "..b.qcow2", "stranger.qcow2"]
    assert [node.is_whole for node in forest.nodes] == [False, False, True, True, True]


def test_a_base_that_lost_its_header_is_told_once(tmp_path: Path):
    base = image(tmp_path / "base.qcow2")
    for name in "abc":
        image(tmp_path / f"{name}.qcow2", *on("base.qcow2"))
    overwrite(base, 0, bytes(512))
    forest = look(tmp_path)
    assert trouble(forest) == {f"{name}.qcow2": NotAnImage for name in "abc"}
    (problem,) = forest.problems
    assert str(problem).startswith(f"{base}: Image is not in qcow2 format (it backs {tmp_path}/a.qcow2)")


def test_a_base_of_a_foreign_format_is_told(tmp_path: Path):
    (tmp_path / "base.vmdk").write_bytes(bytes(1024))
    image(tmp_path / "a.qcow2", *on("base.vmdk", "vmdk"))
    forest = look(tmp_path)
    assert trouble(forest) == {"a.qcow2": ChainError}
    assert (forest.nodes[0].format, forest.nodes[0].size_bytes) == ("vmdk", None)


def test_a_base_behind_an_address_is_told(tmp_path: Path):
    image(tmp_path / "a.qcow2", *on("nbd://localhost/x", "raw"))
    assert trouble(look(tmp_path)) == {"a.qcow2": ChainError}


def test_what_is_declared_raw_is_raw_whatever_it_begins_with(tmp_path: Path):
    disk = image(tmp_path / "disk.img", *on("gone.qcow2"))
    image(tmp_path / "top.qcow2", *on("disk.img", "raw"))
    forest = look(tmp_path)
    assert picture(forest) == ["disk.img", "..top.qcow2"]
    assert (forest.nodes[0].format, forest.nodes[0].size_bytes) == ("raw", -(-disk.stat().st_size // 512) * 512)
    assert forest.nodes[0].notes == ("raw as declared, though it begins like qcow2",)
    assert all(node.is_whole for node in forest.nodes)
    overwrite(disk, 4, b"\0\0\0\x09")
    assert look(tmp_path).problems == ()


def test_overlays_that_disagree_on_the_format_of_their_base_are_told(tmp_path: Path):
    base = image(tmp_path / "base.qcow2", *on("gone.qcow2"))
    image(tmp_path / "one.qcow2", *on("base.qcow2", "raw"))
    image(tmp_path / "two.qcow2", *on("base.qcow2"))
    forest = look(tmp_path)
    assert one(forest, "one.qcow2").notes == ("base declared raw, though it is qcow2",)
    # Read as raw the base needs nothing; read as qcow2 it lacks its own base.
    assert (one(forest, "one.qcow2").is_whole, one(forest, "two.qcow2").is_whole) == (True, False)
    assert one(forest, base.name).format == "qcow2"


@pytest.mark.parametrize("declared", ["raw", "qcow2"])
@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_a_base_that_is_no_file_is_told(tmp_path: Path, kind: str, declared: str):
    if kind == "pipe":
        os.mkfifo(tmp_path / "base")
    else:
        (tmp_path / "base").mkdir()
    image(tmp_path / "a.qcow2", *on("base", declared))
    forest = look(tmp_path)
    assert trouble(forest) == {"base": MissingImage}
    assert (forest.nodes[0].format, forest.nodes[0].own_size_bytes) == (None, None)
    assert picture(forest) == ["base", "..a.qcow2"]


def test_a_file_that_may_not_be_read_is_an_image_when_it_is_called_so():
    with as_nobody() as folder:
        for name in ("a.qcow2", "b.txt"):
            (folder / name).write_text("secret")
            (folder / name).chmod(0o000)
        forest = look(folder)
    assert trouble(forest) == {"a.qcow2": MissingImage}
    assert forest.nodes[0].format is None
    assert forest.unseen == (Unseen(f"{folder}/b.txt", "Permission denied", is_failure=True),)


def test_a_link_that_leads_nowhere_is_told_when_it_is_called_as_an_image(tmp_path: Path):
    (tmp_path / "a.qcow2").symlink_to("gone.qcow2")
    (tmp_path / "b.txt").symlink_to("gone.txt")
    forest = look(tmp_path)
    assert trouble(forest) == {"a.qcow2": MissingImage}
    assert forest.leaves == ()


class Vanishing(LocalFiles):
    """Files of which one goes away while the search goes on."""

    def identity(self, path: str) -> tuple[int, int]:
        """Remove it just before it is looked at."""
        if path.endswith("stranger.qcow2"):
            os.unlink(path)
        return super().identity(path)


def test_a_file_that_goes_away_meanwhile_is_nobodys_loss(family: Path):
    forest = survey(Vanishing(), [str(family)])
    assert "stranger.qcow2" not in picture(forest)
    assert forest.problems == ()


def test_an_overlay_of_256_layers_is_whole_and_each_deeper_tree_is_told_once(tmp_path: Path):
    stamp(tmp_path / "deep", [None, *range(299)])
    # Two more that hang on layer 257, and a second tree of 257 layers.
    branches = stamp(tmp_path / "branches", [None, *range(256), 255, 255])
    forest = look(tmp_path)
    assert [type(each) for each in forest.problems] == [ChainTooDeep, ChainTooDeep]
    assert trouble(look(tmp_path / "branches")) == {branches[256].name: ChainTooDeep}
    assert [node.is_whole for node in look(tmp_path / "branches").nodes] == [True] * 256 + [False] * 3
    whole = [node.is_whole for node in look(tmp_path / "deep").nodes]
    assert whole == [True] * 256 + [False] * 44


def opens(path: str, image_format: str | None) -> bool:
    """Whether the chain of an image can be opened."""
    try:
        gate.close_all(gate.open_chain(LocalFiles(), path, image_format, Access.SHARED))
    except CowtreeError:
        return False
    return True


@pytest.mark.soak
def test_an_image_is_whole_when_its_chain_can_be_opened(tmp_path: Path, seed: int):
    choose = random.Random(seed)
    count = choose.randint(2, 30)
    # A loop that one of its images declares raw is an end for some of them; the forest calls it a loop all the same.
    has_loops = choose.random() < 0.5
    bases = [choose.randrange(count if has_loops else max(number, 1)) for number in range(count)]
    parents = [base if choose.random() < 0.7 and (number or has_loops) else None for number, base in enumerate(bases)]
    paths = stamp(tmp_path, parents)
    for path in choose.sample(paths, choose.randint(0, count // 3)):
        kind = choose.randrange(3 if has_loops else 4)
        if kind == 0:
            path.unlink()
        elif kind == 1:
            os.truncate(path, choose.randrange(200_000))
        elif kind == 2:
            overwrite(path, choose.choice([0, 4, 48]), b"\0\0\xff\xff\xff")
        else:
            path.write_bytes(path.read_bytes().replace(b"\5qcow2", b"\3raw\0\0"))
    forest = look(tmp_path)
    images = {str(path) for path in paths if path.exists() and path.read_bytes()[:4] == b"QFI\xfb"}
    assert {node.path for node in forest.nodes} >= images
    for node in forest.nodes:
        assert node.is_whole == opens(node.path, node.format), node


def test_a_chain_is_too_deep_when_it_cannot_be_opened(tmp_path: Path):
    paths = stamp(tmp_path, [None, *range(256)])
    assert [opens(str(path), None) for path in paths[-2:]] == [True, False]
    assert [node.is_whole for node in look(tmp_path).nodes[-2:]] == [True, False]


@pytest.mark.slow
def test_a_chain_of_5000_is_drawn_without_recursion(tmp_path: Path):
    stamp(tmp_path, [None, *range(4999)])
    forest = look(tmp_path)
    assert forest.nodes[-1].depth == 4999
    assert len(forest.problems) == 1


def test_random_families_are_found_as_they_were_made(tmp_path: Path, seed: int):
    choose = random.Random(seed)
    parents = [
        None if choose.random() < 0.2 else choose.randrange(number) for number in range(1, choose.randint(2, 80))
    ]
    parents.insert(0, None)
    paths = [str(path) for path in stamp(tmp_path, parents)]
    forest = look(tmp_path)
    assert len(forest.nodes) == len(paths)
    for node in forest.nodes:
        parent = parents[paths.index(node.path)]
        assert (None if node.parent is None else forest.nodes[node.parent].path) == (
            None if parent is None else paths[parent]
        )
        assert node.depth == (0 if node.parent is None else forest.nodes[node.parent].depth + 1)
        assert node.is_leaf == (paths.index(node.path) not in parents)
    given = choose.choice(paths)
    family = {node.path for node in look(Path(given)).nodes}
    assert given in family
    assert all(
        (path in family) == (_root(parents, paths.index(path)) == _root(parents, paths.index(given))) for path in paths
    )


def _root(parents: list[int | None], number: int) -> int:
    parent = parents[number]
    return number if parent is None else _root(parents, parent)


@pytest.mark.slow
def test_ten_thousand_images_are_read_in_under_five_seconds_of_work(tmp_path: Path):
    choose = random.Random(1)
    stamp(tmp_path, [None, *(choose.randrange(max(number - 200, 0), number) for number in range(1, 10_000))])
    began = time.process_time()
    forest = look(tmp_path)
    assert time.process_time() - began < 5
    assert len(forest.nodes) == 10_000
    assert forest.problems == ()


@pytest.mark.parametrize(
    "name",
    [
        "json:{{'driver':'qcow2','file':{{'driver':'file','filename':'{0}'}}}}",
        "json:{{'file.filename':'{0}'}}",
        "file:{0}",
    ],
)
def test_an_overlay_that_names_its_base_by_an_address_hangs_on_it(tmp_path: Path, name: str):
    base = image(tmp_path / "base.qcow2")
    (tmp_path / "link").symlink_to("base.qcow2")
    image(tmp_path / "top.qcow2", *on(name.format(tmp_path / "link")))
    forest = look(base)
    assert picture(forest) == ["base.qcow2", "..top.qcow2"]
    assert forest.problems == ()
    assert one(forest, "top.qcow2").is_whole
    assert picture(look(tmp_path / "top.qcow2")) == picture(forest)


def test_an_address_that_says_raw_makes_its_base_raw(tmp_path: Path):
    image(tmp_path / "base.img", *on("gone"))
    path = image(
        tmp_path / "top.qcow2", "-b", f"json:{{'driver':'raw','file.filename':'{tmp_path}/base.img'}}", "-F", "raw"
    )
    path.write_bytes(path.read_bytes().replace(b"\xe2\x79\x2a\xca", b"\x12\x34\x56\x78"))
    forest = look(tmp_path)
    assert picture(forest) == ["base.img", "..top.qcow2"]
    assert forest.problems == ()
    assert forest.nodes[0].format == "raw"


@pytest.mark.parametrize(
    "more",
    [
        "'driver':'raw','offset':512",
        "'driver':'qcow2','backing.file.filename':'/other'",
        "'driver':'qcow2','backing':null",
    ],
)
def test_an_address_that_says_more_than_a_file_hangs_on_the_file_and_is_told(tmp_path: Path, more: str):
    image(tmp_path / "base.qcow2")
    image(tmp_path / "top.qcow2", "-b", f"json:{{{more},'file.filename':'{tmp_path}/base.qcow2'}}", "-F", "qcow2")
    forest = look(tmp_path)
    assert picture(forest) == ["base.qcow2", "..top.qcow2"]
    assert trouble(forest) == {"top.qcow2": ChainError}


@pytest.mark.parametrize(("options", "wanted"), [(["-r"], "read"), ([], "written")])
def test_who_has_an_image_open_is_told_of_it_and_of_what_backs_it(family: Path, options: list[str], wanted: str):
    with held(family / "a1.qcow2", *options):
        forest = look(family)
    used = {os.path.basename(node.path): node.use for node in forest.nodes if node.use}
    # Through a raw base qemu-io lets others write; a guest would not.
    assert used == {"a1.qcow2": wanted, "a.qcow2": "read"}
    assert not any(node.use for node in look(family).nodes)


def hint(forest: Forest, name: str) -> str:
    """The advice on a missing base."""
    problem = one(forest, name).problem
    assert isinstance(problem, MissingImage)
    return problem.advice


def test_a_base_that_was_moved_is_found_by_its_name(tmp_path: Path):
    for name in ("old", "new", "more"):
        (tmp_path / name).mkdir()
    base = image(tmp_path / "old/base 1.qcow2")
    top = image(tmp_path / "top.qcow2", *on("old/base 1.qcow2"))
    # What hangs on the missing one cannot be it, whatever it is called.
    image(tmp_path / "more/base 1.qcow2", *on("../old/base 1.qcow2"))
    new = base.rename(tmp_path / "new/base 1.qcow2")
    forest = look(tmp_path)
    assert len([node for node in forest.nodes if node.problem]) == 1
    (problem,) = forest.problems
    overlay = str(problem.facts["overlay"])
    words = ["cowtree", "img", "rebase", "-u", "-b", str(new), "-F", "qcow2", overlay]
    assert problem.advice == f"it may be the one at {new}: {shlex.join(words)}; or put the file back"
    assert main(words) == 0
    assert main(["cowtree", "img", "rebase", "-u", "-b", str(new), "-F", "qcow2", str(top)]) == 0
    assert look(top).problems == ()


def test_of_those_that_are_called_alike_the_one_is_meant_that_the_overlay_remembers(tmp_path: Path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    base = tmp_path / "base.img"
    base.write_bytes(b"x" * 4096)
    words = ["img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "raw", str(tmp_path / "top.qcow2")]
    assert main(["cowtree", *words]) == 0
    (tmp_path / "a/base.img").write_bytes(b"x" * 2048)
    shutil.copy2(base, tmp_path / "c/base.img")
    base.unlink()
    (tmp_path / "b/base.img").write_bytes(b"x" * 4096)

    def guess() -> str:
        (missing,) = (node.problem for node in look(tmp_path).nodes if node.problem)
        return missing.advice.split(":")[0]

    # First the one of its age, then one of its length, and none of another length.
    assert guess() == f"it may be the one at {tmp_path}/c/base.img"
    (tmp_path / "c/base.img").unlink()
    assert guess() == f"it may be the one at {tmp_path}/b/base.img"
    (tmp_path / "b/base.img").unlink()
    assert guess().startswith("put the file back")


def test_a_file_elsewhere_is_no_guess_when_nothing_is_called_like_it(tmp_path: Path):
    image(tmp_path / "other.qcow2")
    image(tmp_path / "top.qcow2", *on("gone.qcow2"))
    assert hint(look(tmp_path), "gone.qcow2").startswith("put the file back")
