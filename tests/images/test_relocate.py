"""Relocate: what moves where, what keeps it from moving, and that every image opens there."""

import contextlib
import errno
import os
from pathlib import Path

import pytest

from cowtree.errors import ImageLocked, LoopInChain, MarkedCorrupt, MissingImage, Refused, StorageFailed
from cowtree.images import relocate as module
from cowtree.images.digest import digest
from cowtree.images.relocate import Wanted, plan, relocate
from cowtree.images.relocation import JOURNAL, begun
from cowtree.storage.contract import Access
from cowtree.storage.file import LocalFiles
from tests.families import overwrite, stamp
from tests.qemu import assert_clean, qemu_img, qemu_io

FILES = LocalFiles()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base, and overlays beside and below it that name it in different ways."""
    place = tmp_path / "old"
    (place / "below").mkdir(parents=True)
    monkeypatch.chdir(place)
    make("base.qcow2", 1)
    make("below/near.qcow2", 2, "../base.qcow2")
    make("far.qcow2", 3, f"{place}/below/near.qcow2")
    return tmp_path


def make(name: str, byte: int, backing: str | None = None, options: str = "cluster_size=4k") -> None:
    words = ["-b", backing, "-F", "qcow2"] if backing else []
    qemu_img("create", "-q", "-f", "qcow2", *words, "-o", options, name, "1M")
    qemu_io(Path(name).absolute(), f"write -P {byte} {byte * 64}k 32k")


def move(*places: str, to: object, is_flat: bool = False, is_absolute: bool = False) -> None:
    relocate(FILES, plan(FILES, Wanted(places, str(to), (), is_flat, is_absolute)))


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def backing(path: Path) -> str:
    return next(
        line.split(": ", 1)[1].split(" (actual")[0]
        for line in qemu_img("info", path).splitlines()
        if line.startswith("backing file:")
    )


def test_a_family_keeps_its_shape_and_its_content(folder: Path):
    seen = [digest(FILES, name) for name in ("base.qcow2", "below/near.qcow2", "far.qcow2")]
    move("far.qcow2", to=folder / "new" / "deep")
    new = folder / "new" / "deep"
    assert names(folder) == [f"new/deep/{name}" for name in ("base.qcow2", "below/near.qcow2", "far.qcow2")]
    assert [digest(FILES, str(new / name)) for name in ("base.qcow2", "below/near.qcow2", "far.qcow2")] == seen
    assert backing(new / "below/near.qcow2") == "../base.qcow2"
    assert backing(new / "far.qcow2") == "below/near.qcow2"
    for name in ("base.qcow2", "below/near.qcow2", "far.qcow2"):
        assert_clean(new / name)


def test_it_may_be_flat_and_absolute(folder: Path):
    move("base.qcow2", to=folder / "new", is_flat=True, is_absolute=True)
    assert names(folder) == ["new/base.qcow2", "new/far.qcow2", "new/near.qcow2"]
    assert backing(folder / "new/near.qcow2") == str(folder / "new/base.qcow2")


def test_a_family_that_stays_gets_other_links(folder: Path):
    move("base.qcow2", to=".")
    assert backing(folder / "old/far.qcow2") == "below/near.qcow2"
    assert names(folder) == ["old/base.qcow2", "old/below/near.qcow2", "old/far.qcow2"]


def test_a_data_file_moves_along(folder: Path):
    make("data.qcow2", 4, "base.qcow2", "cluster_size=4k,data_file=data.raw")
    seen = digest(FILES, "data.qcow2")
    move("base.qcow2", to=folder / "new")
    assert "new/data.raw" in names(folder)
    assert digest(FILES, str(folder / "new/data.qcow2")) == seen
    assert_clean(folder / "new/data.qcow2")


def test_files_on_another_file_system_are_copied(folder: Path, monkeypatch: pytest.MonkeyPatch):
    os.truncate("base.qcow2", 1 << 30)
    os.chmod("base.qcow2", 0o640)
    os.utime("base.qcow2", ns=(10**18, 10**18))
    seen = digest(FILES, "far.qcow2")
    relocate(NoLinks(), plan(FILES, Wanted(["base.qcow2"], str(folder / "new"))))
    found = (folder / "new/base.qcow2").stat()
    assert (found.st_mode & 0o777, found.st_mtime_ns, found.st_size) == (0o640, 10**18, 1 << 30)
    assert found.st_blocks * 512 < 1 << 20
    assert digest(FILES, str(folder / "new/far.qcow2")) == seen
    assert backing(folder / "new/far.qcow2") == "below/near.qcow2"
    assert not names(folder / "old")


class NoLinks(LocalFiles):
    """A file system that knows no second names."""

    def link(self, source: str, target: str) -> None:
        raise StorageFailed(path=target, action="link", reason=os.strerror(errno.EXDEV), errno=errno.EXDEV)


def test_odd_names_stay_as_they_are(folder: Path):
    odd = [" ", "a:b", "new\nline", os.fsdecode(b"\xff\xfe"), "json:{}", "-o"]
    for number, name in enumerate(odd):
        make(f"./{name}", number + 4, "base.qcow2")
        make(f"./below/{name}", number + 4, f"{folder}/old/{name}")
    seen = {name: digest(FILES, f"./below/{name}") for name in odd}
    move("base.qcow2", to=folder / "new")
    assert {name: digest(FILES, f"{folder}/new/below/{name}") for name in odd} == seen


def refuse(
    reason: str, *places: str, to: object, error: type[Exception] = Refused, pools: tuple[str, ...] = ()
) -> None:
    """Nothing changes when a relocation is refused."""
    root = Path(str(to)).parent
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    with pytest.raises(error, match=reason):
        relocate(FILES, plan(FILES, Wanted(places, str(to), pools)))
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_a_name_that_is_taken_is_refused(folder: Path):
    (folder / "new").mkdir()
    (folder / "new/far.qcow2").write_text("mine")
    refuse(r"new/far\.qcow2 is there already", "base.qcow2", to=folder / "new")


def test_two_files_with_one_name_are_refused_where_they_meet(folder: Path):
    make("below/base.qcow2", 5, "../base.qcow2")
    with pytest.raises(Refused, match=r"would both become .*new/base\.qcow2"):
        move("base.qcow2", to=folder / "new", is_flat=True)


def test_a_member_that_is_missing_or_broken_is_refused(folder: Path):
    os.rename("below/near.qcow2", "aside")
    refuse("No such file", "far.qcow2", to=folder / "new", error=MissingImage)
    os.rename("aside", "below/near.qcow2")
    overwrite(Path("base.qcow2"), 79, b"\2")
    refuse("corrupt", "far.qcow2", to=folder / "new", error=MarkedCorrupt)
    stamp(folder / "loop", [1, 0])
    refuse("infinite loop", str(folder / "loop/image-00000.qcow2"), to=folder / "new", error=LoopInChain)


def test_a_member_that_somebody_has_open_is_refused(folder: Path):
    for name in ("base.qcow2", "far.qcow2"):
        with contextlib.closing(FILES.open(name, Access.READ)):
            refuse("lock", "far.qcow2", to=folder / "new", error=ImageLocked)


def test_other_names_of_a_member_are_refused(folder: Path):
    os.symlink("far.qcow2", "current.qcow2")
    refuse(r"far\.qcow2 is also called .*current\.qcow2", "base.qcow2", to=folder / "new")
    os.unlink("current.qcow2")
    os.mkdir(folder / "elsewhere")
    os.link("base.qcow2", folder / "elsewhere/base")
    refuse(r"has 2 names", "base.qcow2", to=folder / "new")
    os.unlink(folder / "elsewhere/base")
    os.symlink(os.path.abspath("far.qcow2"), folder / "elsewhere/link")
    refuse(r"link", str(folder / "elsewhere/link"), to=folder / "new")


def test_an_image_elsewhere_that_reads_a_member_is_refused_by_name(folder: Path):
    os.mkdir(folder / "pool")
    make(f"{folder}/pool/other.qcow2", 7, f"{folder}/old/base.qcow2")
    refuse(r"pool/other\.qcow2 reads .*base\.qcow2", "far.qcow2", to=folder / "new", pools=(str(folder / "pool"),))
    move("far.qcow2", str(folder / "pool/other.qcow2"), to=folder / "new")
    assert names(folder) == [
        f"new/{name}" for name in ("old/base.qcow2", "old/below/near.qcow2", "old/far.qcow2", "pool/other.qcow2")
    ]


def test_a_header_without_room_for_the_new_name_is_refused_first(folder: Path):
    make("small.qcow2", 5, "base.qcow2", "cluster_size=512")
    deep = folder / "new" / "/".join(["d" * 200] * 3)
    refuse("has no room", "small.qcow2", to=deep.parent)


def test_no_room_for_copies_is_told_first(folder: Path, monkeypatch: pytest.MonkeyPatch):
    real = os.statvfs(folder)
    monkeypatch.setattr(module, "copied", lambda target, members: list(members))
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result((*real[:4], 3, *real[5:])))
    refuse(r"the copies need .* has 12 KiB free", "base.qcow2", to=folder / "new")


def test_what_was_begun_is_completed_by_the_same_words(folder: Path):
    seen = digest(FILES, "far.qcow2")
    wanted = Wanted(["far.qcow2"], str(folder / "new"), is_flat=True)
    found = plan(FILES, wanted)
    relocate(Dying(), found, is_dry=True)
    with pytest.raises(KeyboardInterrupt):
        relocate(Dying(), found)
    assert names(folder / "old") == ["base.qcow2", "below/near.qcow2"]
    assert begun(FILES, str(folder / "new")) == found
    with pytest.raises(Refused, match="was begun and not completed"):
        plan(FILES, wanted._replace(places=["/etc"]))
    journal = str(folder / "new" / JOURNAL)
    relocate(FILES, plan(FILES, wanted._replace(is_flat=False, trusted=[journal])))
    assert names(folder) == ["new/base.qcow2", "new/far.qcow2", "new/near.qcow2"]
    assert digest(FILES, str(folder / "new/far.qcow2")) == seen
    assert backing(folder / "new/far.qcow2") == "near.qcow2"


class Dying(LocalFiles):
    """Ends when the second file loses its old name."""

    count = 0

    def unlink(self, path: str) -> None:
        self.count += 1
        if self.count > 1:
            raise KeyboardInterrupt
        LocalFiles.unlink(self, path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"members": [{}], "absolute": 1}', '{"members": 3, "absolute": 1}'])
def test_notes_that_nobody_can_read_are_refused(folder: Path, text: str):
    (folder / "new").mkdir()
    (folder / "new" / JOURNAL).write_text(text)
    refuse("does not say what was begun", "far.qcow2", to=folder / "new")
