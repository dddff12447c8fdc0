"""Local files: what only a real file system can show. What every storage promises is in test_contract.py."""

import errno
import mmap
import os
import random
import resource
import socket
import stat
import subprocess
import sys

import pytest

from cowtree.errors import MissingImage, StorageFailed
from cowtree.storage import locks
from cowtree.storage.contract import Access
from cowtree.storage.file import LocalFile, LocalFiles

FILES = LocalFiles()


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "image")


@pytest.fixture
def file(path):
    made = FILES.create(path, 0o600)
    yield made
    made.close()


def replace_once(monkeypatch, replace):
    """Let `replace` happen after a file was opened and before it is locked, the first time."""
    real = locks.acquire
    happened: list[bool] = []

    def acquire(*arguments):
        if not happened:
            happened.append(True)
            replace()
        real(*arguments)

    monkeypatch.setattr(locks, "acquire", acquire)


@pytest.fixture
def limited():
    """The system takes no file of more than 5000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_is_taken_in_part_goes_on_until_the_system_refuses(file, limited):
    with pytest.raises(StorageFailed, match="write failed: File too large") as caught:
        file.pwrite(0, b"\1" * 10000)
    assert caught.value.facts["errno"] == errno.EFBIG
    assert file.pread(0, 10000) == b"\1" * 5000 + bytes(5000)


def test_reads_and_writes_that_the_system_does_in_bits_are_whole(file, monkeypatch):
    pwrite, preadv, pread = os.pwrite, os.preadv, os.pread
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:7], offset))
    monkeypatch.setattr(os, "preadv", lambda fd, views, offset: preadv(fd, [views[0][:5]], offset))
    monkeypatch.setattr(os, "pread", lambda fd, length, offset: pread(fd, min(length, 3), offset))
    data = bytes(range(100))
    file.pwrite(10, data)
    buffer = bytearray(110)
    view = memoryview(buffer)
    file.preadv(10, [view[50:110], view[:50]])
    assert buffer[50:] + buffer[:50] == data + bytes(10)
    assert file.pread(10, 110) == data + bytes(10)


def test_numbers_that_no_file_has_are_refused(file):
    for act in (
        lambda: file.pread(-1, 1),
        lambda: file.pread(1 << 63, 1),
        lambda: file.pread(1 << 64, 1),
        lambda: file.pwrite(-1, b"a"),
        lambda: file.pwrite(1 << 64, b"a"),
        lambda: file.truncate(-1),
        lambda: file.truncate(1 << 64),
    ):
        with pytest.raises(StorageFailed):
            act()


def test_zeroes_give_the_space_back(file, path):
    file.pwrite(0, b"\1" * (1 << 20))
    file.flush()
    before = os.stat(path).st_blocks
    file.write_zeroes(0, 1 << 19)
    assert os.stat(path).st_blocks < before
    assert os.stat(path).st_size == 1 << 20


def test_allocating_takes_the_space(file, path):
    file.allocate(0, 1 << 20)
    assert os.stat(path).st_blocks * 512 >= 1 << 20


def test_a_flush_that_failed_once_fails_for_ever(path, file):
    reader, writer = os.pipe()
    broken = LocalFile(path, os.dup(writer), is_writable=True)
    with pytest.raises(StorageFailed, match="flush failed: Invalid argument"):
        broken.flush()
    # From now on the system would say yes.
    os.dup2(os.open(path, os.O_RDWR), broken._descriptor)
    os.fdatasync(broken._descriptor)
    with pytest.raises(StorageFailed, match="flush failed: Invalid argument") as caught:
        broken.flush()
    assert caught.value.facts["path"] == path
    broken.close()
    os.close(reader)
    os.close(writer)


def test_a_new_file_has_exactly_the_mode_that_was_asked_for(path):
    before = os.umask(0o077)
    try:
        FILES.create(path, 0o644).close()
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o644
        FILES.create(path, 0o600).close()
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    finally:
        os.umask(before)


def test_creating_follows_no_link(path, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    os.symlink(victim, path)
    with pytest.raises(StorageFailed) as caught:
        FILES.create(path, 0o600)
    assert caught.value.facts["errno"] == errno.ELOOP
    assert victim.read_text() == "precious"


def test_creating_in_a_folder_that_is_not_there_fails(tmp_path):
    with pytest.raises(StorageFailed, match="create failed: No such file or directory"):
        FILES.create(str(tmp_path / "no" / "image"), 0o600)
    with pytest.raises(StorageFailed, match="flush failed: No such file or directory"):
        FILES.sync_folder(str(tmp_path / "no"))


@pytest.mark.parametrize("access", [Access.READ, Access.WRITE])
def test_what_is_no_file_is_not_opened_and_called_by_its_name(tmp_path, access):
    os.mkfifo(tmp_path / "pipe")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "socket"))
    for name, what in (
        (tmp_path, "a folder"),
        (tmp_path / "pipe", "a pipe"),
        (tmp_path / "socket", "a socket"),
        ("/dev/null", "a character device"),
    ):
        with pytest.raises(MissingImage, match=f"it is {what}, not a file"):
            FILES.open(str(name), access)
    server.close()


def test_what_becomes_a_pipe_at_the_last_moment_keeps_nobody_waiting(path, monkeypatch):
    open(path, "w").close()
    real = os.open

    def open_late(name, flags, *rest):
        os.unlink(path)
        os.mkfifo(path)
        return real(name, flags, *rest)

    monkeypatch.setattr(os, "open", open_late)
    with pytest.raises(MissingImage, match="it is a pipe, not a file"):
        FILES.open(path, Access.READ)


def test_a_name_that_no_file_can_have_is_missing(tmp_path):
    for name in ("a\0b", str(tmp_path / ("x" * 300)), "", str(tmp_path / "\udcff" / "x")):
        with pytest.raises(MissingImage):
            FILES.open(name, Access.READ)
        with pytest.raises(MissingImage):
            FILES.identity(name)


def test_a_file_that_belongs_to_others_is_not_opened(tmp_path):
    (tmp_path / "image").touch(0o000)
    # The folder around belongs to pytest's user alone, so the name is relative to where the child already is.
    tmp_path.chmod(0o755)
    script = (
        "import os, sys\nfrom cowtree.errors import CowtreeError\nfrom cowtree.storage.file import LocalFiles\n"
        "if os.geteuid() == 0: os.seteuid(65534)\n"
        "try: LocalFiles().open('image', sys.argv[1])\n"
        "except CowtreeError as error: print(type(error).__name__, error.reason)\n"
    )
    for access in (Access.READ, Access.WRITE):
        command = [sys.executable, "-c", script, access]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert result.stdout == "MissingImage Permission denied\n"


def test_opening_for_reading_changes_nothing(path):
    with open(path, "wb") as made:
        made.write(b"abc")
    os.chmod(path, 0o400)
    before = os.stat(path)
    file = FILES.open(path, Access.READ)
    assert file.pread(0, 3) == b"abc"
    file.close()
    after = os.stat(path)
    assert (after.st_mtime_ns, after.st_ctime_ns, after.st_size) == (before.st_mtime_ns, before.st_ctime_ns, 3)


def test_a_child_does_not_inherit_a_descriptor_or_its_locks(path, file):
    child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        file.close()
        FILES.open(path, Access.WRITE).close()
    finally:
        child.kill()
        child.wait()


def test_links_lead_to_the_file(tmp_path, path):
    open(path, "w").close()
    os.symlink(path, tmp_path / "soft")
    os.link(path, tmp_path / "hard")
    found = {FILES.identity(str(each)) for each in (path, tmp_path / "soft", tmp_path / "hard")}
    assert len(found) == 1


def test_a_writer_locks_the_file_that_the_path_leads_to_now(path, tmp_path, monkeypatch):
    (tmp_path / "image").write_text("old")
    (tmp_path / "other").write_text("new")
    replace_once(monkeypatch, lambda: os.rename(tmp_path / "other", path))
    file = FILES.open(path, Access.WRITE)
    assert file.pread(0, 3) == b"new"
    file.close()


def test_a_writer_is_told_when_the_file_vanishes_while_it_is_locked(path, monkeypatch):
    open(path, "w").close()
    replace_once(monkeypatch, lambda: os.unlink(path))
    with pytest.raises(MissingImage, match="No such file or directory"):
        FILES.open(path, Access.WRITE)


def test_a_new_file_that_is_renamed_away_while_it_is_locked_is_left_alone(path, tmp_path, monkeypatch):
    (tmp_path / "image").write_text("made by the other")
    replace_once(monkeypatch, lambda: os.rename(path, tmp_path / "final"))
    file = FILES.create(path, 0o600)
    file.pwrite(0, b"ours")
    assert (tmp_path / "image").read_text() == "ours"
    assert (tmp_path / "final").read_text() == "made by the other"
    file.close()


def test_a_file_that_is_replaced_without_end_is_given_up(path, tmp_path, monkeypatch):
    (tmp_path / "image").write_text("old")

    def replace(*_):
        (tmp_path / "other").write_text("new")
        os.rename(tmp_path / "other", path)

    monkeypatch.setattr(locks, "acquire", replace)
    with pytest.raises(MissingImage, match="replaced again and again"):
        FILES.open(path, Access.WRITE)
    with pytest.raises(StorageFailed, match="replaced again and again"):
        FILES.create(path, 0o600)


def test_no_descriptor_stays_open_when_opening_fails(path, tmp_path, monkeypatch):
    before = os.listdir("/proc/self/fd")
    open(path, "w").close()
    holder = FILES.open(path, Access.WRITE)
    for act in (lambda: FILES.open(path, Access.READ), lambda: FILES.create(path, 0o600)):
        with pytest.raises(Exception, match="Failed to get"):
            act()
    holder.close()
    assert os.listdir("/proc/self/fd") == before


def test_importing_the_module_stays_cheap():
    script = (
        "import sys; import cowtree.storage.file; print({'ctypes', 'numpy', 'random', 'threading'} & {*sys.modules})"
    )
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "set()\n"
    )


def test_large_writes_past_the_page_cache_and_small_ones_through_it_agree(path):
    choose = random.Random(3)
    wanted = bytearray(8 << 20)
    source = memoryview(mmap.mmap(-1, 4 << 20))
    with open(path, "wb") as made:
        made.truncate(len(wanted))
    file = FILES.open(path, Access.WRITE)
    for _ in range(40):
        length = choose.choice([1, 512, 5000, (1 << 20) - 1, 1 << 20, (1 << 20) + 4097, 3 << 20])
        start = choose.choice([0, 0, 1, 4096, 8192])
        at = choose.choice([choose.randrange(4 << 20), choose.randrange(1 << 10) << 12])
        source[start : start + 64] = choose.randbytes(64)
        source[start + length - 1 : start + length] = choose.randbytes(1)
        file.pwrite(at, source[start : start + length])
        wanted[at : at + length] = source[start : start + length]
        file.flush()
        near = choose.randrange(len(wanted))
        assert file.pread(near, 4096) == bytes(wanted[near : near + 4096]).ljust(4096, b"\0")
    file.close()
    with open(path, "rb") as kept:
        assert kept.read() == wanted


def test_a_large_aligned_write_goes_past_the_page_cache_where_it_can(path):
    def can_be_direct():
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT))
        except OSError:
            return False
        return True

    is_direct = can_be_direct()
    file = FILES.open(path, Access.WRITE)
    assert isinstance(file, LocalFile)
    file.pwrite(0, memoryview(mmap.mmap(-1, 1 << 20))[: (1 << 20) - 1])
    assert file._direct < 0
    file.pwrite(0, memoryview(mmap.mmap(-1, 1 << 20)))
    assert (file._direct >= 0) == is_direct
    file.close()


def test_no_folder_is_made_below_a_file(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StorageFailed, match="create failed"):
            LocalFiles().make_folder(str(path))
