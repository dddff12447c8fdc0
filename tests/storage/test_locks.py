"""QEMU's locks, tried against QEMU in both directions, and against ourselves."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time

import pytest

from cowtree.errors import ImageLocked
from cowtree.storage import locks
from cowtree.storage.contract import Access, Use
from cowtree.storage.file import LocalFiles
from tests.qemu import qemu_img, qemu_io, run

FILES = LocalFiles()


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    return path


@pytest.fixture
def hold():
    """Start a qemu-io that has an image open and waits for commands."""
    started = []

    def start(*arguments):
        child = subprocess.Popen(["qemu-io", *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(child)
        assert child.stdin
        assert child.stdout
        child.stdin.write(b"length\n")
        child.stdin.flush()
        while b"MiB" not in (line := child.stdout.readline()):
            assert line, "qemu-io ended"
        return child

    yield start
    for child in started:
        child.communicate(timeout=20)


def refusal(path, access):
    """What keeps us out, or None."""
    try:
        FILES.open(str(path), access).close()
    except ImageLocked as error:
        return error.facts["what"]
    return None


HELD = {
    "read-write": ([], {Access.READ: 'shared "write"', Access.WRITE: '"write"', Access.SHARED: None}),
    "read-only": (["-r"], {Access.READ: None, Access.WRITE: '"write"', Access.SHARED: None}),
    "forced": (["-r", "-U"], {Access.READ: None, Access.WRITE: None, Access.SHARED: None}),
}


@pytest.mark.parametrize(("options", "expected"), HELD.values(), ids=HELD)
def test_a_qemu_that_holds_the_image_keeps_us_out_as_it_would_another_qemu(image, hold, options, expected):
    child = hold("-f", "qcow2", *options, image)
    assert {access: refusal(image, access) for access in expected} == expected
    child.communicate(timeout=20)
    assert refusal(image, Access.WRITE) is None


def locked_bytes(path):
    """The bytes that others hold, as a stranger finds them."""
    descriptor = os.open(path, os.O_RDWR)
    found = {byte for byte in range(0, 300) if locks._is_held(descriptor, byte)}
    os.close(descriptor)
    return found


@pytest.mark.parametrize(
    ("access", "options", "expected"),
    [
        (Access.WRITE, [], {100, 101, 103, 201, 203}),
        (Access.READ, ["-r"], {100, 201, 203}),
        (Access.SHARED, ["-r", "-U"], {100}),
    ],
)
def test_we_lock_the_bytes_that_qemu_locks(image, hold, access, options, expected):
    file = FILES.open(str(image), access)
    assert locked_bytes(image) == expected
    file.close()
    assert locked_bytes(image) == set()
    hold("-f", "qcow2", *options, image)
    assert locked_bytes(image) == expected


@pytest.mark.parametrize(
    ("options", "use"), [([], Use.WRITTEN), (["-r"], Use.READ), (["-r", "-U"], None)], ids=["write", "read", "forced"]
)
def test_we_see_what_qemu_does_with_an_image_and_lock_nothing_for_it(image, hold, options, use):
    child = hold("-f", "qcow2", *options, image)
    before = locked_bytes(image)
    probe = FILES.open(str(image), Access.PROBE)
    assert probe.use() == use
    assert locked_bytes(image) == before
    child.communicate(timeout=20)
    assert probe.use() is None
    assert locked_bytes(image) == set()
    # While we look others may do what they want.
    hold("-f", "qcow2", image)
    assert probe.use() == Use.WRITTEN
    probe.close()


def test_a_server_that_exports_an_image_uses_it(image, tmp_path):
    words = ["qemu-nbd", "-f", "qcow2", "--socket", str(tmp_path / "socket"), str(image)]
    with subprocess.Popen(words) as server:
        try:
            probe = FILES.open(str(image), Access.PROBE)
            deadline = time.monotonic() + 20
            while probe.use() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            assert probe.use() == Use.WRITTEN
        finally:
            # Asked politely while it starts, it forgets that it was.
            server.kill()
    assert probe.use() is None
    probe.close()


def test_the_backing_file_of_a_guest_is_locked_too(image, hold, tmp_path):
    overlay = tmp_path / "overlay.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-b", image, "-F", "qcow2", overlay)
    hold("-f", "qcow2", overlay)
    assert refusal(image, Access.WRITE) == '"write"'
    assert refusal(image, Access.READ) is None


COMMANDS = {
    "info": ("qemu-img", "info"),
    "info -U": ("qemu-img", "info", "-U"),
    "check": ("qemu-img", "check"),
    "map": ("qemu-img", "map"),
    "snapshot": ("qemu-img", "snapshot", "-c", "a"),
    "resize": ("qemu-img", "resize", "-q"),
    "write": ("qemu-io", "-c", "write 0 64k"),
}


@pytest.mark.parametrize(
    ("access", "passing"),
    [
        (Access.WRITE, {"info -U"}),
        (Access.READ, {"info", "info -U", "check", "map"}),
        (Access.SHARED, set(COMMANDS)),
    ],
)
def test_we_keep_qemu_out_as_another_qemu_would(image, access, passing):
    file = FILES.open(str(image), access)
    for name, command in COMMANDS.items():
        size = ["2M"] if name == "resize" else []
        result = run(*command, image, *size)
        assert (result.returncode == 0) == (name in passing), f"{name}: {result.stderr}"
        if name not in passing:
            assert "Is another process using the image" in result.stderr
    file.close()
    qemu_io(image, "write 0 64k")


def test_we_say_what_qemu_says(image, hold):
    hold("-f", "qcow2", image)
    for access, command in (
        (Access.WRITE, ("qemu-io", "-f", "qcow2", "-c", "write 0 64k", image)),
        (Access.READ, ("qemu-img", "info", image)),
    ):
        with pytest.raises(ImageLocked) as caught:
            FILES.open(str(image), access)
        assert caught.value.message in run(*command).stderr


def test_a_lock_dies_with_its_process(image):
    script = "import sys, time\nfrom cowtree.storage.file import LocalFiles\n"
    script += "file = LocalFiles().open(sys.argv[1], 'write')\nprint('held', flush=True)\ntime.sleep(60)\n"
    child = subprocess.Popen([sys.executable, "-c", script, str(image)], stdout=subprocess.PIPE)
    assert child.stdout
    assert child.stdout.readline() == b"held\n"
    assert refusal(image, Access.WRITE) == '"write"'
    child.kill()
    child.communicate()
    assert refusal(image, Access.WRITE) is None


def test_a_short_race_is_waited_out(image):
    holder = FILES.open(str(image), Access.WRITE)
    timer = threading.Timer(0.05, holder.close)
    timer.start()
    FILES.open(str(image), Access.WRITE).close()
    timer.join()


def test_somebody_who_stays_is_not_waited_for_long(image):
    holder = FILES.open(str(image), Access.WRITE)
    start = time.monotonic()
    assert refusal(image, Access.WRITE) is not None
    assert 0.15 < time.monotonic() - start < 2
    holder.close()


def test_what_was_refused_leaves_no_lock_behind(image):
    reader = FILES.open(str(image), Access.READ)
    descriptor = os.open(image, os.O_RDWR)
    with pytest.raises(ImageLocked):
        locks.acquire(descriptor, str(image), Access.WRITE)
    FILES.open(str(image), Access.READ).close()
    os.close(descriptor)
    reader.close()


def test_of_many_who_come_at_once_one_after_the_other_gets_in(image):
    inside, failed = [], []

    def work():
        try:
            for _ in range(5):
                file = FILES.open(str(image), Access.WRITE)
                inside.append(1)
                assert len(inside) == 1
                inside.pop()
                file.close()
                time.sleep(0.002)
        except Exception as error:
            failed.append(error)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failed


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.EINVAL])
def test_a_file_system_without_such_locks_lets_us_in(image, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    assert refusal(image, Access.WRITE) is None


def test_a_lock_that_nobody_can_share_is_a_conflict(image):
    odd = os.open(image, os.O_RDWR)
    fcntl.fcntl(odd, 37, locks._FLOCK.pack(fcntl.F_WRLCK, 0, 101, 1, 0))
    assert refusal(image, Access.WRITE) is not None
    assert refusal(image, Access.SHARED) is None
    os.close(odd)
