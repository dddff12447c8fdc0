"""Searching: every file once, whatever it is called; nothing opened that should not be; and how far it went."""

import contextlib
import os
import stat
import struct
import subprocess
import threading
import time
from pathlib import Path

import pytest

from cowtree.chain import gate
from cowtree.chain.search import NAME_COUNT_MAX, Bounds, Looked, Search, Unseen, read_file
from cowtree.errors import BrokenHeader, ChainError, MarkedCorrupt, MissingImage, TruncatedImage, UnknownFeature
from cowtree.qcow2 import header as qcow2
from cowtree.storage.contract import Access, Storage, Use
from cowtree.storage.file import LocalFiles
from tests.families import overwrite
from tests.qemu import qemu_img
from tests.rights import as_nobody


def image(path: Path, *more: str | Path) -> Path:
    """An empty image of 1 MiB."""
    qemu_img("create", "-q", "-f", "qcow2", *more, path, "1M")
    return path


def search(*places: Path, bounds: Bounds = Bounds()) -> Search:  # noqa: B008
    """Look below folders and at images."""
    found = Search(LocalFiles(), bounds)
    for place in places:
        found.begin(str(place))
    return found


def problem(path: Path) -> Exception | None:
    """What is wrong with one file."""
    return read_file(LocalFiles(), str(path), LocalFiles().identity(str(path))).problem


def test_files_are_found_in_all_folders_below(tmp_path: Path):
    (tmp_path / "a/b").mkdir(parents=True)
    paths = [image(tmp_path / name) for name in ("top.qcow2", "a/one.qcow2", "a/b/two")]
    found = search(tmp_path)
    assert sorted(found.below) == sorted(map(str, paths))
    assert all(each.is_qcow2 and each.header for each in found.found.values())
    assert found.looked == [Looked(str(tmp_path), is_deep=True)]
    assert found.unseen == []


def test_links_and_hard_links_are_names_of_one_file(tmp_path: Path):
    path = image(tmp_path / "a.qcow2")
    (tmp_path / "link").symlink_to("a.qcow2")
    (tmp_path / "hard").hardlink_to(path)
    found = search(tmp_path)
    assert len(found.found) == 1
    assert sorted(next(iter(found.names.values()))) == sorted(
        str(tmp_path / name) for name in ("a.qcow2", "hard", "link")
    )


def test_what_backs_an_image_is_followed_wherever_it_is(tmp_path: Path):
    for name in ("far", "near"):
        (tmp_path / name).mkdir()
    base = image(tmp_path / "far/base.qcow2")
    middle = image(tmp_path / "far/middle.qcow2", "-b", "base.qcow2", "-F", "qcow2")
    top = image(tmp_path / "near/top.qcow2", "-b", "../far/middle.qcow2", "-F", "qcow2")
    found = search(tmp_path / "near")
    assert found.below == [str(top)]
    assert set(found.places) == {str(path) for path in (base, middle, top)}
    assert found.links == {str(top): str(middle), str(middle): str(base)}


def test_a_folder_that_is_a_link_is_named_and_not_followed(tmp_path: Path):
    (tmp_path / "self").symlink_to(".")
    (tmp_path / "a").mkdir()
    (tmp_path / "a/up").symlink_to("..")
    image(tmp_path / "a/one.qcow2")
    found = search(tmp_path)
    assert len(found.below) == 1
    assert {(each.path, each.is_failure) for each in found.unseen} == {
        (str(tmp_path / "self"), False),
        (str(tmp_path / "a/up"), False),
    }


def test_a_given_link_to_a_folder_is_followed(tmp_path: Path):
    (tmp_path / "pool").mkdir()
    image(tmp_path / "pool/one.qcow2")
    (tmp_path / "link").symlink_to("pool")
    assert search(tmp_path / "link").below == [str(tmp_path / "link/one.qcow2")]


def test_a_folder_is_looked_into_once(tmp_path: Path):
    (tmp_path / "a").mkdir()
    image(tmp_path / "a/one.qcow2")
    found = search(tmp_path, tmp_path / "a", tmp_path)
    assert len(found.below) == 1
    assert not found.look_around([str(tmp_path / "a"), str(tmp_path)])


def test_neighbours_are_looked_at_without_going_deeper(tmp_path: Path):
    given = image(tmp_path / "given.qcow2")
    neighbour = image(tmp_path / "neighbour.qcow2")
    (tmp_path / "below").mkdir()
    image(tmp_path / "below/hidden.qcow2")
    found = search(given)
    assert found.look_around([str(tmp_path)])
    assert set(found.places) == {str(given), str(neighbour)}
    assert found.looked == [Looked(str(tmp_path), is_deep=False)]


def test_pipes_and_sockets_are_not_opened(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.qcow2")
    assert search(tmp_path).below == []
    given = search(tmp_path / "pipe.qcow2")
    (found,) = given.found.values()
    assert isinstance(found.problem, MissingImage)
    assert found.size_bytes is None


def test_a_block_device_is_not_opened(tmp_path: Path):
    device = next((path for path in Path("/dev").iterdir() if path.is_block_device()), tmp_path / "device")
    if not device.exists():
        os.mknod(device, 0o600 | stat.S_IFBLK, os.makedev(7, 0))
    found = read_file(LocalFiles(), str(device), (0, 0))
    assert found.is_device
    assert found.problem is None


def test_the_kernels_own_folders_are_passed_by():
    found = Search(LocalFiles(), Bounds())
    names = list(found._walk("/", 1))
    assert not any(name.startswith("/proc/") for name in names)
    assert {"/proc", "/sys"} <= {each.path for each in found.unseen if not each.is_failure}
    assert not found.look_around(["/proc/self"])


class Watched(LocalFiles):
    """Files of which it is known which were opened."""

    def __init__(self) -> None:
        self.opened: list[str] = []

    def open(self, path: str, access: str) -> Storage:
        """Write the name down."""
        self.opened.append(path)
        return super().open(path, access)


def test_an_empty_file_is_not_opened(tmp_path: Path):
    (tmp_path / "empty.img").touch()
    (tmp_path / "full.img").write_bytes(b"QFI")
    files = Watched()
    found = Search(files, Bounds())
    found.begin(str(tmp_path))
    found.begin("/proc/kmsg")
    assert sorted((each.size_bytes, each.is_qcow2, each.problem) for each in found.found.values()) == [
        (0, False, None),
        (0, False, None),
        (3, False, None),
    ]
    assert files.opened == [str(tmp_path / "full.img")]


def test_a_search_says_that_it_went_no_deeper(tmp_path: Path):
    (tmp_path / "a/b/c").mkdir(parents=True)
    image(tmp_path / "a/near.qcow2")
    image(tmp_path / "a/b/far.qcow2")
    found = search(tmp_path, bounds=Bounds(folder_depth=1))
    assert found.below == [str(tmp_path / "a/near.qcow2")]
    assert found.unseen == [Unseen(str(tmp_path / "a/b"), "more than 1 folders deep", is_failure=True)]


def test_a_search_says_that_it_took_no_more_files(tmp_path: Path):
    for name in "abcde":
        (tmp_path / name).touch()
    found = search(tmp_path, bounds=Bounds(file_count=3))
    assert len(found.below) == 3
    assert found.unseen == [Unseen(str(tmp_path), "more than 3 files", is_failure=True)]


def test_as_many_files_as_the_bound_are_all(tmp_path: Path):
    for name in "abc":
        (tmp_path / name).touch()
    assert search(tmp_path, bounds=Bounds(file_count=3)).unseen == []


def test_a_folder_that_may_not_be_read_is_named():
    with as_nobody() as folder:
        (folder / "locked").mkdir(mode=0o000)
        image(folder / "open.qcow2")
        found = search(folder)
        (folder / "locked").chmod(0o700)
    assert found.below == [str(folder / "open.qcow2")]
    assert found.unseen == [Unseen(str(folder / "locked"), "Permission denied", is_failure=True)]


def test_a_file_that_may_not_be_read_is_a_find_with_a_problem():
    with as_nobody() as folder:
        path = image(folder / "a.qcow2")
        path.chmod(0o000)
        assert isinstance(problem(path), MissingImage)


def test_a_place_that_is_not_there_is_an_error(tmp_path: Path):
    with pytest.raises(MissingImage):
        search(tmp_path / "nothing")


def test_a_backing_name_that_winds_through_a_link_to_its_own_folder_comes_to_an_end(tmp_path: Path):
    (tmp_path / "a").symlink_to(".")
    path = image(tmp_path / "x.qcow2", "-u", "-b", "a/x.qcow2", "-F", "qcow2")
    found = search(path)
    assert len(found.found) == 1
    assert len(next(iter(found.names.values()))) == NAME_COUNT_MAX


def test_a_detour_is_left_out_only_where_it_means_the_same_file(tmp_path: Path):
    for name in ("a", "b/c"):
        (tmp_path / name).mkdir(parents=True)
    base = image(tmp_path / "base.qcow2")
    other = image(tmp_path / "b/base.qcow2")
    (tmp_path / "a/link").symlink_to("../b/c")
    straight = image(tmp_path / "a/one.qcow2", "-b", "../a/../base.qcow2", "-F", "qcow2")
    winding = image(tmp_path / "a/two.qcow2", "-b", "link/../base.qcow2", "-F", "qcow2")
    found = search(tmp_path / "a")
    assert found.links[str(straight)] == str(base)
    assert found.places[str(found.links[str(winding)])] == LocalFiles().identity(str(other))


def test_a_name_from_the_folder_of_the_process_is_followed_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "pool").mkdir()
    base = image(tmp_path / "base.qcow2")
    top = image(tmp_path / "pool/top.qcow2", "-u", "-b", "file:base.qcow2", "-F", "qcow2")
    monkeypatch.chdir(tmp_path)
    assert search(Path("pool")).links == {str(top): str(base)}


@pytest.mark.parametrize("name", ["nbd://localhost/x", 'json:{"driver":"nbd","host":"localhost"}', "json:{", "json:[]"])
def test_an_address_is_not_followed(tmp_path: Path, name: str):
    path = image(tmp_path / "a.qcow2", "-u", "-b", name, "-F", "raw")
    assert isinstance(search(path).links[str(path)], ChainError)


def test_what_a_file_takes_on_disk_counts_its_data_file(tmp_path: Path):
    path = image(tmp_path / "a.qcow2", "-o", f"data_file={tmp_path}/a.data,preallocation=full")
    (found,) = search(path).found.values()
    own = (path.stat().st_blocks + (tmp_path / "a.data").stat().st_blocks) * 512
    assert found.own_size_bytes == own > 1 << 20
    assert found.data == LocalFiles().identity(str(tmp_path / "a.data"))


def test_a_data_file_that_is_gone_is_a_problem(tmp_path: Path):
    path = image(tmp_path / "a.qcow2", "-o", f"data_file={tmp_path}/a.data")
    (tmp_path / "a.data").unlink()
    assert isinstance(problem(path), MissingImage)


def test_the_name_of_a_data_file_ends_at_its_first_zero_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # It starts from the folder of the process, as in QEMU.
    monkeypatch.chdir(tmp_path)
    path = image(tmp_path / "a.qcow2")
    (tmp_path / "a.data").touch()
    overwrite(path, 79, b"\x04")
    overwrite(path, 112, _extension(0x44415441, b"a.data\0more") + bytes(8))
    assert problem(path) is None


@pytest.mark.parametrize(("name", "wanted"), [(b"nbd://localhost/x", MissingImage), (b"", BrokenHeader)])
def test_a_data_file_that_cannot_be_followed_is_a_problem(tmp_path: Path, name: bytes, wanted: type[Exception]):
    path = image(tmp_path / "a.qcow2")
    overwrite(path, 79, b"\x04")
    overwrite(path, 112, (_extension(0x44415441, name) if name else b"") + bytes(8))
    assert type(problem(path)) is wanted


def _extension(kind: int, data: bytes) -> bytes:
    return struct.pack(">II", kind, len(data)) + data.ljust(-(-len(data) // 8) * 8, b"\0")


@pytest.mark.parametrize(
    ("offset", "data", "wanted"),
    [
        (4, b"\0\0\0\x09", BrokenHeader),
        (40, b"\xff" * 8, BrokenHeader),
        (72, b"\x80", UnknownFeature),
        (79, b"\x02", MarkedCorrupt),
        (79, b"\x04", BrokenHeader),
        (48, b"\0\0\0\0\xff", TruncatedImage),
    ],
)
def test_damage_is_a_problem_of_the_file(tmp_path: Path, offset: int, data: bytes, wanted: type[Exception]):
    path = image(tmp_path / "a.qcow2")
    assert problem(path) is None
    overwrite(path, offset, data)
    assert type(problem(path)) is wanted


@pytest.mark.parametrize("length", [4, 20, 71, 100, 600, 65536])
def test_a_cut_file_is_a_problem_of_the_file(tmp_path: Path, length: int):
    path = image(tmp_path / "a.qcow2")
    os.truncate(path, length)
    assert isinstance(problem(path), TruncatedImage)


@pytest.mark.parametrize("length", [0, 1, 3])
def test_a_file_without_the_magic_number_is_no_problem(tmp_path: Path, length: int):
    path = tmp_path / "a"
    path.write_bytes(b"QFI\xfb"[:length])
    found = read_file(LocalFiles(), str(path), (0, 0))
    assert (found.is_qcow2, found.problem, found.size_bytes) == (False, None, length)


@pytest.mark.parametrize("length", [0, 100, 3000, 4096, 9000, 70_000])
def test_a_header_is_read_as_far_as_its_extensions_go(tmp_path: Path, length: int):
    path = image(tmp_path / "a.qcow2", "-o", "cluster_size=128k,compat=1.1")
    more = _extension(0x12345678, bytes(length)) + _extension(0x9ABCDEF0, b"last")
    with path.open("r+b") as file:
        file.seek(112)
        file.write(more + bytes(8))
    files = LocalFiles()
    opened = files.open(str(path), "shared")
    found = gate.read_header(str(path), opened)
    assert found == qcow2.parse(str(path), path.read_bytes(), path.stat().st_size)
    assert qcow2.wanted_bytes(path.read_bytes()) == 112 + len(more) + 8
    assert found.extensions[-1].data == b"last"
    opened.close()


class SlowFiles(LocalFiles):
    """A disk that keeps its readers waiting; `readers` are the threads that did."""

    def __init__(self) -> None:
        self.readers: set[int] = set()

    def identity(self, path: str) -> tuple[int, int]:
        """Take a while."""
        self.readers.add(threading.get_ident())
        time.sleep(0.001)
        return super().identity(path)


def test_a_slow_disk_is_read_by_many_threads_and_a_fast_one_by_one(tmp_path: Path):
    for number in range(400):
        (tmp_path / f"{number}.txt").write_text("nothing")
    slow = SlowFiles()
    found = Search(slow, Bounds())
    found.begin(str(tmp_path))
    assert len(slow.readers) > 2
    assert list(found.names.values()) == list(search(tmp_path).names.values())


def test_an_image_that_a_guest_writes_to_is_read(tmp_path: Path):
    path = image(tmp_path / "a.qcow2")
    command = ["qemu-nbd", "-t", "-f", "qcow2", "-k", str(tmp_path / "socket"), str(path)]
    with subprocess.Popen(command) as guest:
        try:
            while not (tmp_path / "socket").exists():
                assert guest.poll() is None
                time.sleep(0.01)
            found = search(tmp_path)
        finally:
            guest.kill()
    assert found.found[LocalFiles().identity(str(path))].problem is None


@pytest.mark.parametrize(
    "name",
    [
        'json:{{"driver":"raw","file.filename":"{0}/base"}}',
        "json:{{'driver':'raw','file':{{'driver':'file','filename':'{0}/base'}}}}",
        "json:{{'driver':'file','filename':'{0}/./base'}}",
        "file:{0}/base",
    ],
)
def test_an_address_that_means_a_local_file_is_followed(tmp_path: Path, name: str):
    (tmp_path / "base").write_bytes(bytes(1024))
    path = image(tmp_path / "a.qcow2", "-u", "-b", name.format(tmp_path), "-F", "raw")
    assert search(path).links[str(path)] == str(tmp_path / "base")


def test_a_data_file_is_found_by_an_address(tmp_path: Path):
    data = tmp_path / ("d" * 60)
    path = image(tmp_path / "a.qcow2", "-o", f"data_file={data}")
    name = f"json:{{'driver':'file','filename':'{tmp_path}/data'}}"
    room = len(str(data))
    short = os.path.relpath(tmp_path / "data", tmp_path)
    name = f"json:{{'driver':'file','filename':'{short}'}}".ljust(room)
    assert len(name) == room
    path.write_bytes(path.read_bytes().replace(str(data).encode(), name.encode()))
    data.rename(tmp_path / "data")
    with contextlib.chdir(tmp_path):
        (found,) = search(path).found.values()
    assert found.problem is None
    assert found.data == LocalFiles().identity(str(tmp_path / "data"))


def test_who_has_a_file_open_is_seen_and_not_disturbed(tmp_path: Path):
    path = image(tmp_path / "a.qcow2")
    files = LocalFiles()

    def use() -> str | None:
        return read_file(files, str(path), files.identity(str(path))).use

    assert use() is None
    for access, wanted in ((Access.READ, Use.READ), (Access.WRITE, Use.WRITTEN), (Access.SHARED, None)):
        held = files.open(str(path), access)
        assert use() == wanted
        held.close()
    watcher = files.open(str(path), Access.PROBE)
    assert use() is None
    watcher.close()
