"""Families as they are found on disk, and the proof that a commit needs."""

from pathlib import Path

import pytest

from cowtree.chain import gate
from cowtree.errors import MissingImage, NotInChain, Refused, WrongUse
from cowtree.images import merge, wish
from cowtree.images.family import Kin, around, find, permit_commit
from cowtree.images.wish import Wish
from cowtree.storage.contract import Access
from cowtree.storage.file import LocalFiles
from tests.cli.img.differential import held
from tests.families import overwrite
from tests.qemu import qemu_img, qemu_io

FILES = LocalFiles()


def image(path: Path, base: str | None = None, image_format: str = "qcow2") -> Path:
    """An empty image."""
    backing = () if base is None else ("-b", base, "-F", image_format)
    qemu_img("create", "-q", "-f", "qcow2", "-u", *backing, path, "1M")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A raw root with two branches, one of which names its base by an address, and a stranger."""
    (tmp_path / "root.img").write_bytes(bytes(1 << 20))
    image(tmp_path / "a", "root.img", "raw")
    image(tmp_path / "a1", "a")
    image(tmp_path / "b", f"json:{{'driver':'raw','file.filename':'{tmp_path}/root.img'}}", "raw")
    image(tmp_path / "stranger")
    return tmp_path


def lines(kin: Kin) -> set[str]:
    """Who lies on whom."""
    members = kin.family.members
    return {
        Path(each.path).name + ("" if each.parent is None else f" on {Path(members[each.parent].path).name}")
        for each in members
    }


def test_a_family_is_all_that_hangs_together(folder: Path):
    kin = find(FILES, str(folder / "a1"))
    assert lines(kin) == {"root.img", "a on root.img", "a1 on a", "b on root.img"}
    root = kin.family.members[kin.find(FILES, str(folder / "root.img"))]
    assert (root.format, root.size_bytes, root.why_not) == ("raw", 1 << 20, None)
    assert root.device == (folder / "a").stat().st_dev
    (folder / "link").symlink_to("a")
    assert kin.find(FILES, str(folder / "link")) == kin.find(FILES, str(folder / "a"))
    with pytest.raises(MissingImage, match="nothing to do with"):
        kin.find(FILES, str(folder / "stranger"))


def test_what_is_broken_or_in_use_says_so(folder: Path):
    overwrite(folder / "b", 4, b"\0\0\0\x09")
    with held(folder / "a1"):
        kin = find(FILES, str(folder / "a"))
    assert {Path(each.path).name: each.use for each in kin.family.members} == {
        # Through a raw base qemu-io lets others write; a guest would not.
        "root.img": None,
        "a": "read",
        "a1": "written",
    }
    assert kin.forest.doubtful == (str(folder / "b"),)
    overwrite(folder / "a1", 72, b"\x80")
    found = find(FILES, str(folder / "a1")).family.members
    assert [each.why_not is None for each in found] == [False]


@pytest.mark.parametrize(("options", "verb"), [([], "writes to"), (["-r"], "reads")])
def test_a_merge_is_refused_beforehand_with_the_name_of_who_is_in_use(folder: Path, options: list[str], verb: str):
    before = (folder / "a").read_bytes()
    with held(folder / "a1", *options):
        with pytest.raises(Refused, match=f"{folder}/a1 is in use: another process {verb} it"):
            wish.make_plan(FILES, Wish("flatten", str(folder / "a1")))
        with pytest.raises(Refused, match=f"{folder}/a is in use: another process reads it"):
            wish.make_plan(FILES, Wish("commit", str(folder / "a1")))
        with pytest.raises(Refused, match=f"{folder}/a1 is in use: another process {verb} it"):
            wish.make_plan(FILES, Wish("delete", str(folder / "a")))
    assert (folder / "a").read_bytes() == before
    assert wish.make_plan(FILES, Wish("delete", str(folder / "a"))).plan.acts


def test_around_an_open_chain_its_images_come_first_whatever_they_say(folder: Path):
    name = f"json:{{'driver':'qcow2','file.filename':'{folder}/a1','backing.file.filename':'{folder}/stranger'}}"
    layers = gate.open_chain(FILES, name, None, Access.SHARED)
    gate.close_all(layers)
    kin = around(FILES, layers)
    assert [Path(each.path).name for each in kin.family.members[:2]] == ["a1", "stranger"]
    assert lines(kin) >= {"a1 on stranger", "stranger", "a on root.img"}


def test_a_permit_for_a_commit_names_who_reads_the_base(folder: Path):
    with pytest.raises(Refused) as caught:
        permit_commit(FILES, str(folder / "a"))
    assert caught.value.facts["harmed"] == (str(folder / "b"),)
    with pytest.raises(NotInChain):
        permit_commit(FILES, str(folder / "a1"), str(folder / "stranger"))
    with pytest.raises(NotInChain):
        permit_commit(FILES, str(folder / "stranger"))
    assert permit_commit(FILES, str(folder / "a1")).acts


def test_a_reader_elsewhere_counts_when_that_place_is_looked_at(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    far = image(tmp_path_factory.mktemp("far") / "far", str(folder / "a"))
    assert permit_commit(FILES, str(folder / "a1")).acts
    with pytest.raises(Refused, match=str(far)):
        permit_commit(FILES, str(folder / "a1"), places=[str(far.parent)])


def test_a_permit_is_for_one_merge_only(folder: Path):
    qemu_io(folder / "a1", "write -P 7 0 64k")
    permit = permit_commit(FILES, str(folder / "a1"))
    (folder / "b").unlink()
    before = (folder / "root.img").read_bytes()
    for path, base in (("a", None), ("a1", "root.img")):
        into = merge.Into(permit, base and str(folder / base))
        with pytest.raises(WrongUse, match="was not looked at"):
            merge.commit(FILES, str(folder / path), into=into)
    assert (folder / "root.img").read_bytes() == before
    assert merge.commit(FILES, str(folder / "a1"), into=merge.Into(permit)).moved_bytes == 65536
