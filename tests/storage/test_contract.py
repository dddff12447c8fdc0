"""What the contract promises, tried on everything that claims to keep it."""

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cowtree.errors import ImageLocked, MissingImage, StorageFailed
from cowtree.storage.contract import Access, FileSystem, Span, Use, is_there
from cowtree.storage.encrypted import EncryptedFile
from cowtree.storage.faults import FaultyFiles
from cowtree.storage.file import LocalFile, LocalFiles
from cowtree.storage.memory import MemoryFiles
from cowtree.storage.passing import PassingFiles
from cowtree.storage.recording import RecordingFiles
from cowtree.units import SECTOR_BYTES, TIB
from tests.mounts import KINDS, mounted
from tests.storage.wrapped import EncryptedFiles, PartFiles

WORLDS: dict[str, Callable[[], FileSystem]] = {
    "local": LocalFiles,
    "memory": MemoryFiles,
    "passing": lambda: PassingFiles(LocalFiles()),
    "recording": lambda: RecordingFiles(MemoryFiles()),
    "faulty": lambda: FaultyFiles(MemoryFiles()),
    "part": lambda: PartFiles(MemoryFiles()),
    **dict.fromkeys(KINDS, LocalFiles),
}
# Tried beside the model alone, where a file may end with a sector and need have no holes.
MODELLED = WORLDS | {"encrypted": lambda: EncryptedFiles(MemoryFiles())}
# Where files lie that do not lie where all others do.
PLACES: dict[str, Path] = {}


@pytest.fixture(scope="module", autouse=True)
def _places(tmp_path_factory):
    with ExitStack() as stack:
        PLACES.update((kind, stack.enter_context(mounted(kind, tmp_path_factory.mktemp(kind)))) for kind in KINDS)
        yield


@pytest.fixture(params=WORLDS)
def world(request):
    return request.param


@pytest.fixture
def files(world):
    return WORLDS[world]()


@pytest.fixture
def tmp_path(world):
    with tempfile.TemporaryDirectory(dir=PLACES.get(world)) as folder:
        yield Path(folder)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "image")


@pytest.fixture
def file(files, path):
    made = files.create(path, 0o600)
    yield made
    made.close()


def make(files, path, data):
    with_data = files.create(path, 0o600)
    with_data.pwrite(0, data)
    with_data.close()


def test_a_new_file_is_empty_and_can_be_written(file, path):
    assert (file.path, file.size_bytes) == (path, 0)
    file.pwrite(3, b"abc")
    assert (file.size_bytes, file.pread(0, 6)) == (6, b"\0\0\0abc")


def test_a_read_is_never_short(file):
    file.pwrite(0, b"abc")
    assert file.pread(2, 5) == b"c\0\0\0\0"
    assert file.pread(100, 3) == bytes(3)
    assert file.pread(0, 0) == b""


def test_a_read_fills_buffers_one_behind_the_other_and_clears_what_lies_past_the_end(file):
    file.pwrite(0, bytes(range(1, 11)))
    buffer = bytearray(b"x" * 20)
    view = memoryview(buffer)
    file.preadv(2, [view[10:14], view[0:0], view[0:6]])
    assert buffer == b"\7\10\11\12\0\0" + b"xxxx" + b"\3\4\5\6" + b"x" * 6


def test_more_buffers_than_one_call_of_the_system_takes_are_filled(file):
    data = bytes(index % 251 for index in range(3000))
    file.pwrite(5, data)
    buffer = bytearray(3000)
    view = memoryview(buffer)
    file.preadv(5, [view[index : index + 1] for index in range(3000)])
    assert buffer == data


def test_bytes_bytearrays_and_views_can_be_written(file):
    for data in (b"ab", bytearray(b"cd"), memoryview(b"xefx")[1:3], b""):
        file.pwrite(file.size_bytes, data)
    assert file.pread(0, 6) == b"abcdef"


def test_writing_nothing_does_not_move_the_end(file):
    file.pwrite(100, b"")
    file.write_zeroes(100, 0)
    file.allocate(100, 0)
    assert file.size_bytes == 0


def test_zeroes_leave_what_lies_around_them(file):
    file.pwrite(0, b"\1" * 20000)
    file.write_zeroes(5000, 10000)
    assert file.pread(0, 20000) == b"\1" * 5000 + bytes(10000) + b"\1" * 5000


@pytest.mark.parametrize("offset", [50, 300, 8192])
def test_zeroes_past_the_end_make_it_longer(file, offset):
    file.pwrite(0, b"\1" * 100)
    file.write_zeroes(offset, 1000)
    kept = min(offset, 100)
    assert file.size_bytes == offset + 1000
    assert file.pread(0, file.size_bytes) == b"\1" * kept + bytes(offset + 1000 - kept)


def test_what_is_cut_off_does_not_come_back(file):
    file.pwrite(0, b"\1" * 10000)
    file.truncate(5000)
    assert file.size_bytes == 5000
    file.truncate(20000)
    assert file.size_bytes == 20000
    assert file.pread(0, 20000) == b"\1" * 5000 + bytes(15000)


def test_allocating_keeps_what_is_there(file):
    file.pwrite(0, b"\1" * 5000)
    file.allocate(2000, 10000)
    assert (file.size_bytes, file.pread(0, 12000)) == (12000, b"\1" * 5000 + bytes(7000))
    file.allocate(0, 100)
    assert file.size_bytes == 12000


def test_extents_cover_a_range_that_lies_inside(file):
    file.truncate(1 << 20)
    file.pwrite(300000, b"\1" * 100000)
    spans = list(file.extents(1000, 900000))
    assert [span.start for span in spans] == [1000, *(span.start + span.length for span in spans[:-1])]
    assert spans[-1].start + spans[-1].length == 901000
    assert [span.is_data for span in spans] == [False, True, False]
    assert spans[1].start <= 300000
    assert spans[1].start + spans[1].length >= 400000


def test_extents_end_with_the_storage(file):
    assert list(file.extents(0, 100)) == []
    file.pwrite(0, b"\1" * 100)
    assert list(file.extents(0, 1 << 62)) == [Span(0, 100, is_data=True)]
    assert list(file.extents(40, 20)) == [Span(40, 20, is_data=True)]
    assert list(file.extents(100, 20)) == []


def test_a_hole_is_seen_where_zeroes_were_written(file):
    file.pwrite(0, b"\1" * (1 << 20))
    file.write_zeroes(1 << 18, 1 << 18)
    assert [span.is_data for span in file.extents(0, 1 << 20)] == [True, False, True]


def test_a_file_of_a_tebibyte_costs_what_is_in_it(file):
    file.truncate(TIB)
    file.pwrite(TIB // 2, b"abc")
    file.write_zeroes(4096, TIB // 4)
    assert file.pread(TIB // 2 - 1, 5) == b"\0abc\0"
    assert len(list(file.extents(0, TIB))) == 3


def test_hints_and_flushes_change_nothing(file):
    file.pwrite(0, b"abc")
    file.prefetch(0, 1 << 40)
    file.prefetch(1 << 62, 1)
    file.flush()
    assert file.pread(0, file.size_bytes) == b"abc"


def test_closing_twice_is_closing(files, path, file):
    file.close()
    file.close()
    files.open(path, Access.WRITE).close()


def test_a_closed_file_refuses(file):
    file.close()
    for act in (lambda: file.pread(0, 1), lambda: file.pwrite(0, b"a"), file.flush):
        with pytest.raises(StorageFailed):
            act()


# Worlds whose files share blocks; what the folder for temporary files lies on may be able to or not.
SHARING = ("memory", "recording", "faulty", "part", *KINDS)
# A cipher that nobody asks.
UNUSED: Any = None


@pytest.fixture
def other(files, path):
    """Another file with 100 KiB of data, and a bit."""
    make(files, path + "2", bytes(range(1, 256)) * 402)
    made = files.open(path + "2", Access.READ)
    yield made
    made.close()


def test_a_clone_reads_as_a_copy_does(world, file, other):
    file.pwrite(0, b"x" * 20000)
    unit = file.clone_block_bytes(other)
    assert (unit == 4096) == (world in SHARING) or world in ("local", "passing")
    shared = other.pread(4096, 16384)
    done = file.clone(other, 4096, 12288, 16384)
    assert done == bool(unit)
    if not done:
        file.pwrite(12288, shared)
    assert file.size_bytes == 28672
    assert file.pread(0, 28672) == b"x" * 12288 + shared
    file.pwrite(16384, b"!" * 4096)
    assert file.pread(12288, 12288) == shared[:4096] + b"!" * 4096 + shared[8192:12288]
    assert other.pread(4096, 16384) == shared


def test_asking_what_can_be_cloned_changes_nothing(files, path, file, other):
    file.pwrite(0, b"x" * 20000)
    reader = files.open(path, Access.SHARED)
    before = files.times(path), files.times(path + "2")
    assert reader.clone_block_bytes(other) == file.clone_block_bytes(other)
    assert other.clone_block_bytes(file) == file.clone_block_bytes(other)
    assert (files.times(path), files.times(path + "2")) == before
    assert file.pread(0, 20001) == b"x" * 20000 + b"\0"
    reader.close()


def test_a_clone_that_cannot_be_leaves_all_to_the_caller(file, other):
    file.pwrite(0, b"x" * 20000)
    for source_offset, offset, length in ((512, 0, 4096), (0, 512, 4096), (0, 0, 4000), (98304, 0, 8192)):
        assert not file.clone(other, source_offset, offset, length)
    stranger = FaultyFiles(MemoryFiles({"a": bytes(8192)})).open("a", Access.READ)
    hidden = EncryptedFile(other, UNUSED)
    for source in (EncryptedFile(stranger, UNUSED), hidden):
        assert (file.clone_block_bytes(source), file.clone(source, 0, 0, 4096)) == (0, False)
        assert (hidden.clone_block_bytes(source), hidden.clone(source, 0, 0, 4096)) == (0, False)
    assert file.clone_block_bytes(stranger) == 0 or not isinstance(file.place(0, 0)[0], LocalFile)
    assert file.pread(0, file.size_bytes) == b"x" * 20000


def test_a_range_of_the_same_file_can_be_cloned_but_not_over_itself(world, file):
    file.pwrite(0, b"a" * 8192 + b"b" * 8192)
    unit = file.clone_block_bytes(file)
    assert not file.clone(file, 0, 4096, 8192)
    assert file.clone(file, 0, 8192, 4096) == bool(unit)
    assert file.pread(0, 16384) in {True: [b"a" * 12288 + b"b" * 4096], False: [b"a" * 8192 + b"b" * 8192]}[unit > 0]


CHANGES = {
    "write": lambda file: file.pwrite(0, b"xyz"),
    "write nothing": lambda file: file.pwrite(0, b""),
    "write zeroes": lambda file: file.write_zeroes(0, 2),
    "clone": lambda file: file.clone(file, 0, 4096, 4096),
    "clone nothing": lambda file: file.clone(file, 0, 0, 0),
    "allocate": lambda file: file.allocate(0, 100),
    "truncate": lambda file: file.truncate(0),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("access", [Access.READ, Access.SHARED])
def test_nothing_changes_a_file_that_was_opened_for_reading(files, path, access, change):
    make(files, path, b"abc")
    file = files.open(path, access)
    with pytest.raises(StorageFailed) as caught:
        change(file)
    assert caught.value.facts["path"] == path
    assert caught.value.facts["errno"] == errno.EBADF
    assert file.pread(0, file.size_bytes) == b"abc"
    file.close()


def test_what_one_handle_writes_another_reads(files, path, file):
    reader = files.open(path, Access.SHARED)
    file.pwrite(0, b"abc")
    assert (reader.size_bytes, reader.pread(0, 3)) == (3, b"abc")
    reader.close()


@pytest.mark.parametrize(
    ("held", "wanted", "what"),
    [
        (Access.READ, Access.READ, None),
        (Access.READ, Access.WRITE, '"write"'),
        (Access.READ, Access.SHARED, None),
        (Access.WRITE, Access.READ, 'shared "write"'),
        (Access.WRITE, Access.WRITE, '"write"'),
        (Access.WRITE, Access.SHARED, None),
        (Access.SHARED, Access.READ, None),
        (Access.SHARED, Access.WRITE, None),
    ],
)
def test_a_holder_keeps_out_whom_qemu_would(files, path, held, wanted, what):
    make(files, path, b"abc")
    holder = files.open(path, held)
    if what is None:
        files.open(path, wanted).close()
    else:
        with pytest.raises(ImageLocked) as caught:
            files.open(path, wanted)
        assert caught.value.facts == {"path": path, "what": what}
    holder.close()
    files.open(path, wanted).close()


@pytest.mark.parametrize(
    ("held", "use"),
    [(Access.READ, Use.READ), (Access.WRITE, Use.WRITTEN), (Access.SHARED, None), (Access.PROBE, None)],
)
def test_who_looks_sees_what_others_do_and_keeps_nobody_out(files, path, held, use):
    make(files, path, b"data")
    probe = files.open(path, Access.PROBE)
    assert probe.use() is None
    holder = files.open(path, held)
    assert probe.use() == use
    assert probe.pread(0, 4) == b"data"
    again = files.open(path, Access.PROBE)
    assert again.use() == use
    again.close()
    # Nobody counts himself.
    assert holder.use() is None
    holder.close()
    assert probe.use() is None
    files.open(path, Access.WRITE).close()
    probe.close()


def test_a_file_that_is_not_there_cannot_be_opened(files, path):
    for act in (lambda: files.open(path, Access.READ), lambda: files.identity(path)):
        with pytest.raises(MissingImage, match="No such file or directory") as caught:
            act()
        assert (caught.value.facts["path"], caught.value.facts["errno"]) == (path, errno.ENOENT)


def test_a_file_is_there_or_not_or_it_cannot_be_told(files, path, tmp_path):
    assert not is_there(files, path)
    make(files, path, b"abc")
    assert is_there(files, path)
    if isinstance(files, LocalFiles):
        assert not is_there(files, f"{path}/below")
        (tmp_path / "endless").symlink_to("endless")
        with pytest.raises(MissingImage):
            is_there(files, str(tmp_path / "endless"))


def test_names_that_are_not_there_cannot_be_changed(files, path):
    for act in (lambda: files.rename(path, path + "2"), lambda: files.unlink(path)):
        with pytest.raises(StorageFailed, match="No such file or directory") as caught:
            act()
        assert (caught.value.facts["path"], caught.value.facts["errno"]) == (path, errno.ENOENT)


def test_creating_empties_a_leftover(files, path):
    make(files, path, b"abc")
    identity = files.identity(path)
    file = files.create(path, 0o600)
    assert file.size_bytes == 0
    assert files.identity(path) == identity
    file.close()


def test_creating_does_not_empty_what_somebody_holds(files, path):
    make(files, path, b"abc")
    holder = files.open(path, Access.READ)
    with pytest.raises(ImageLocked):
        files.create(path, 0o600)
    assert holder.pread(0, 3) == b"abc"
    holder.close()


def test_two_cannot_make_the_same_file(files, path, file):
    with pytest.raises(ImageLocked):
        files.create(path, 0o600)


def test_a_renamed_file_keeps_its_identity_and_replaces_the_other(files, path, tmp_path):
    other = str(tmp_path / "other")
    make(files, path, b"abc")
    make(files, other, b"old")
    identity = files.identity(path)
    assert files.identity(other) != identity
    files.rename(path, other)
    files.sync_folder(str(tmp_path))
    assert files.identity(other) == identity
    file = files.open(other, Access.READ)
    assert file.pread(0, 3) == b"abc"
    file.close()
    with pytest.raises(MissingImage):
        files.open(path, Access.READ)


def test_a_link_is_another_name_of_the_same_file(files, path, tmp_path):
    other, third = str(tmp_path / "other"), str(tmp_path / "third")
    make(files, path, b"abc")
    files.link(path, other)
    assert files.identity(other) == files.identity(path)
    make(files, third, b"new")
    files.rename(third, path)
    file = files.open(other, Access.READ)
    assert file.pread(0, 3) == b"abc"
    file.close()
    assert files.identity(other) != files.identity(path)


def test_rights_go_from_one_file_to_another(files, path, tmp_path):
    other = str(tmp_path / "other")
    make(files, path, b"abc")
    files.create(other, 0o640).close()
    files.copy_rights(other, path)
    if isinstance(files, LocalFiles):
        assert (tmp_path / "other").stat().st_mode == os.stat(path).st_mode
    with pytest.raises(StorageFailed):
        files.copy_rights(other + "missing", path)


def test_a_link_takes_no_name_that_is_taken_and_needs_a_file(files, path, tmp_path):
    other = str(tmp_path / "other")
    for code, made in ((errno.ENOENT, []), (errno.EEXIST, [path, other])):
        for each in made:
            make(files, each, b"abc")
        with pytest.raises(StorageFailed) as caught:
            files.link(path, other)
        assert (caught.value.facts["path"], caught.value.facts["errno"]) == (other, code)


def test_the_times_of_a_file_tell_that_it_changed(files, path, tmp_path):
    make(files, path, b"abc")
    before = files.times(path)
    file = files.open(path, Access.READ)
    file.pread(0, 3)
    file.close()
    assert files.times(path) == before
    assert before.size_bytes == 3
    # The clock of a file system ticks every few milliseconds.
    time.sleep(0.02)
    file = files.open(path, Access.WRITE)
    file.pwrite(0, b"x")
    file.close()
    after = files.times(path)
    assert after.size_bytes == 3
    assert after.mtime_ns > before.mtime_ns
    assert after.ctime_ns > before.ctime_ns
    with pytest.raises(MissingImage):
        files.times(str(tmp_path / "none"))


def test_a_handle_outlives_its_name(files, path, file):
    file.pwrite(0, b"abc")
    files.unlink(path)
    assert file.pread(0, 3) == b"abc"
    again = files.create(path, 0o600)
    assert again.size_bytes == 0
    again.close()


def test_names_that_say_the_same_lead_to_one_file(files, path, tmp_path):
    (tmp_path / "sub").mkdir()
    make(files, path, b"abc")
    assert files.identity(f"{tmp_path}/sub/../image") == files.identity(path)


OFFSETS = st.integers(0, 40000) | st.sampled_from([0, 1, 511, 512, 4095, 4096, 4097, 8192, 16384, 32768])
LENGTHS = st.integers(0, 10000) | st.sampled_from([0, 1, 512, 4096, 8192, 16384])


class AnyStorage(RuleBasedStateMachine):
    """Any storage, beside a bytearray that says what it should hold."""

    @initialize(world=st.sampled_from(sorted(MODELLED)))
    def begin(self, world):
        self.folder = Path(tempfile.mkdtemp(dir=PLACES.get(world)))
        self.files = MODELLED[world]()
        self.grain_bytes = SECTOR_BYTES if world == "encrypted" else 1
        self.path = str(self.folder / "image")
        self.file = self.files.create(self.path, 0o600)
        self.model = bytearray()
        self.other = self.files.create(self.path + "2", 0o600)
        self.other.pwrite(0, bytes(range(256)) * (40000 // 256))
        self.unit = self.file.clone_block_bytes(self.other)

    def teardown(self):
        self.file.close()
        self.other.close()
        shutil.rmtree(self.folder)

    def grow(self, size_bytes):
        end = -(-size_bytes // self.grain_bytes) * self.grain_bytes
        self.model.extend(bytes(max(end - len(self.model), 0)))

    @rule(offset=OFFSETS, length=LENGTHS, byte=st.integers(1, 255))
    def write(self, offset, length, byte):
        self.file.pwrite(offset, bytes([byte]) * length)
        if length:
            self.grow(offset + length)
            self.model[offset : offset + length] = bytes([byte]) * length

    @rule(offset=OFFSETS, length=LENGTHS)
    def write_zeroes(self, offset, length):
        self.file.write_zeroes(offset, length)
        if length:
            self.grow(offset + length)
            self.model[offset : offset + length] = bytes(length)

    @rule(source_offset=OFFSETS, offset=OFFSETS, length=LENGTHS)
    def clone(self, source_offset, offset, length):
        unit = self.unit or 1
        source_offset, offset, length = (number // unit * unit for number in (source_offset, offset, length))
        done = self.file.clone(self.other, source_offset, offset, length)
        fits = source_offset + length <= self.other.size_bytes
        assert done == (bool(self.unit) and fits) or not length
        if done and length:
            self.grow(offset + length)
            self.model[offset : offset + length] = self.other.pread(source_offset, length)

    @rule(offset=OFFSETS, length=LENGTHS)
    def allocate(self, offset, length):
        self.file.allocate(offset, length)
        if length:
            self.grow(offset + length)

    @rule(size_bytes=OFFSETS)
    def truncate(self, size_bytes):
        self.file.truncate(size_bytes)
        del self.model[size_bytes:]
        self.grow(size_bytes)

    @rule(offset=OFFSETS, length=LENGTHS)
    def read(self, offset, length):
        expected = bytes(self.model[offset : offset + length]).ljust(length, b"\0")
        assert self.file.pread(offset, length) == expected
        buffer = bytearray(b"x" * length)
        view = memoryview(buffer)
        self.file.preadv(offset, [view[: length // 3], view[length // 3 :]])
        assert buffer == expected

    @rule(offset=OFFSETS, length=LENGTHS)
    def list_extents(self, offset, length):
        position = offset
        for span in self.file.extents(offset, length):
            assert span.start == position
            assert span.length > 0
            position += span.length
            if not span.is_data:
                assert not any(self.model[span.start : position])
        assert position == max(min(offset + length, len(self.model)), offset)

    @rule()
    def reopen(self):
        self.file.close()
        self.file = self.files.open(self.path, Access.WRITE)

    @invariant()
    def it_ends_where_it_should(self):
        assert self.file.size_bytes == len(self.model)


TestAnyStorage = AnyStorage.TestCase
TestAnyStorage.settings = settings(max_examples=60, stateful_step_count=30)


def test_a_folder_is_made_with_those_above_it_and_may_be_there(files, tmp_path):
    folder = str(tmp_path / "a" / "b")
    for _ in range(2):
        files.make_folder(folder)
    make(files, f"{folder}/file", b"abc")
    files.sync_folder(folder)
