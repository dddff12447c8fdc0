"""Who backs whom: families, loops, names, and whose word counts on what is raw."""

import random
from pathlib import Path

from cowtree.chain.graph import Edge, Graph, Key, connect, keys_of, target
from cowtree.chain.search import Bounds, Search
from cowtree.errors import ChainError, NotAnImage
from cowtree.storage.file import LocalFiles
from tests.qemu import qemu_img


def graph(**parents: str) -> Graph:
    """A graph in which each keyword names an image and its value what backs it."""
    edges: dict[Key, Edge] = {name: Edge(parent, "qcow2", parent) for name, parent in parents.items()}
    names: set[Key] = {*parents, *parents.values()}
    overlays: dict[Key, tuple[Key, ...]] = {
        base: tuple(sorted(name for name, parent in parents.items() if parent == base)) for base in parents.values()
    }
    return Graph({name: str(name) for name in names}, edges, overlays, frozenset())


def connected(*places: Path) -> tuple[Search, Graph]:
    """What a search of real images makes."""
    search = Search(LocalFiles(), Bounds())
    for place in places:
        search.begin(str(place))
    return search, connect(search)


def image(path: Path, *more: str) -> Path:
    """An empty image of 1 MiB."""
    qemu_img("create", "-q", "-f", "qcow2", "-u", *more, path, "1M")
    return path


def test_all_that_hangs_together_is_one_family():
    one = graph(b="a", c="b", d="a", y="x")
    assert one.related(["c"]) == one.related(["d"]) == one.related(["a"]) == {"a", "b", "c", "d"}
    assert one.hanging(["b"]) == {"b", "c"}
    assert one.related(["c", "y"]) == {"a", "b", "c", "d", "x", "y"}


def test_a_loop_is_known_by_its_first_image():
    one = graph(c="b", b="d", d="c", hanging="c", apart="root", own="own")
    keys = one.related(one.paths)
    assert one.loops(keys) == {"b", "own"}
    assert one.related(["hanging"]) == {"b", "c", "d", "hanging"}


def test_each_image_hangs_on_a_root_or_on_a_loop_and_never_on_two(seed: int):
    choose = random.Random(seed)
    names = [f"image-{number}" for number in range(choose.randint(1, 60))]
    one = graph(**{name: choose.choice(names) for name in names if choose.random() < 0.95})
    keys = one.related(one.paths)
    roots = {key for key in keys if one.parent(key) is None} | one.loops(keys)
    seen: list[Key] = []
    for root in roots:
        # A loop that is not cut at its first image would bring that one round again.
        cut = one._replace(overlays={key: tuple(set(value) - roots) for key, value in one.overlays.items()})
        seen += cut.hanging([root])
    assert sorted(map(str, seen)) == sorted(map(str, keys))


def test_names_are_sorted_as_people_do():
    one = graph(**{"Snap-10": "Base", "Snap-2": "Base", "Snap-2b": "Base", "snap": "Base"})
    assert sorted(one.paths, key=one.order) == ["Base", "Snap-2", "Snap-2b", "Snap-10", "snap"]


def test_a_name_that_another_one_begins_with_comes_first():
    one = graph(**{"disk1": "Base", "disk": "Base", "disk1a": "disk", "disk10": "disk", "disk01": "disk"})
    assert sorted(one.paths, key=one.order) == ["Base", "disk", "disk01", "disk1", "disk1a", "disk10"]


def test_what_all_overlays_declare_raw_says_nothing_of_its_own(tmp_path: Path):
    base = image(tmp_path / "base.qcow2")
    disk = image(tmp_path / "disk.img", "-b", "base.qcow2", "-F", "qcow2")
    top = image(tmp_path / "top.qcow2", "-b", "disk.img", "-F", "raw")
    search, one = connected(tmp_path)
    base_key, disk_key, top_key = keys_of(search, map(str, (base, disk, top)))
    assert one.raw == {disk_key}
    assert one.parent(top_key) == disk_key
    assert one.parent(disk_key) is None
    assert base_key not in one.overlays


def test_a_guest_that_writes_a_header_cannot_declare_other_images_raw(tmp_path: Path):
    image(tmp_path / "victim.qcow2")
    image(tmp_path / "disk.img", "-b", "victim.qcow2", "-F", "raw")
    image(tmp_path / "top.qcow2", "-b", "disk.img", "-F", "raw")
    search, one = connected(tmp_path)
    assert one.raw == set(keys_of(search, [str(tmp_path / "disk.img")]))


def test_overlays_that_disagree_leave_an_image_what_it_is(tmp_path: Path):
    image(tmp_path / "base.qcow2")
    image(tmp_path / "one.qcow2", "-b", "base.qcow2", "-F", "raw")
    image(tmp_path / "two.qcow2", "-b", "base.qcow2", "-F", "qcow2")
    assert connected(tmp_path)[1].raw == frozenset()


def test_an_image_is_known_by_the_name_from_which_its_base_is_found(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    image(tmp_path / "b/base.qcow2")
    top = image(tmp_path / "b/top.qcow2", "-b", "base.qcow2", "-F", "qcow2")
    (tmp_path / "a/top.qcow2").hardlink_to(top)
    search, one = connected(tmp_path)
    assert one.paths[keys_of(search, [str(top)])[0]] == str(top)
    assert target(search, str(tmp_path / "a/top.qcow2")) is None


def test_an_image_is_known_by_its_own_name_before_that_of_a_link(tmp_path: Path):
    path = image(tmp_path / "z.qcow2")
    (tmp_path / "a.qcow2").symlink_to("z.qcow2")
    search, one = connected(tmp_path)
    assert one.paths[keys_of(search, [str(path)])[0]] == str(path)


def test_a_base_that_cannot_serve_is_a_problem_of_the_overlay(tmp_path: Path):
    (tmp_path / "base").write_bytes(bytes(512))
    tops = [
        image(tmp_path / "wrong.qcow2", "-b", "base", "-F", "qcow2"),
        image(tmp_path / "foreign.qcow2", "-b", "base", "-F", "vmdk"),
        image(tmp_path / "address.qcow2", "-b", "nbd://localhost/x", "-F", "raw"),
        image(tmp_path / "right.qcow2", "-b", "base", "-F", "raw"),
    ]
    search, one = connected(tmp_path)
    found = [one.edges[key].problem for key in keys_of(search, map(str, tops))]
    assert [type(each) for each in found] == [NotAnImage, ChainError, ChainError, type(None)]
