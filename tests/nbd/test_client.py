"""An export as a storage: what the contract says, against our server and stock qemu-nbd; and servers that go or lie."""

import errno
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cowtree.chain.place import parse
from cowtree.errors import BrokenPeer, CowtreeError, MissingImage, StorageFailed
from cowtree.nbd import negotiation, tls, wire
from cowtree.nbd.client import open_export
from cowtree.nbd.export import Blocks
from cowtree.nbd.replies import Question
from cowtree.storage.contract import Access
from cowtree.storage.memory import MemoryFiles
from cowtree.units import TIB
from tests.nbd.certificates import make_folder
from tests.nbd.exported import KINDS, Grown, Shelved, connected, exported
from tests.nbd.ram import MIB, Ram, Shelf, descriptor_count, serving, wait_until
from tests.storage import test_contract

# What the contract says of one open storage; the others are about names and locks, which a server has for itself.
CONTRACT = (
    *("a_read_is_never_short", "a_read_fills_buffers_one_behind_the_other_and_clears_what_lies_past_the_end"),
    *("more_buffers_than_one_call_of_the_system_takes_are_filled", "bytes_bytearrays_and_views_can_be_written"),
    *("writing_nothing_does_not_move_the_end", "zeroes_leave_what_lies_around_them"),
    *("zeroes_past_the_end_make_it_longer", "what_is_cut_off_does_not_come_back", "allocating_keeps_what_is_there"),
    *("extents_cover_a_range_that_lies_inside", "extents_end_with_the_storage"),
    *("a_hole_is_seen_where_zeroes_were_written", "a_file_of_a_tebibyte_costs_what_is_in_it"),
    *("hints_and_flushes_change_nothing", "a_closed_file_refuses"),
)
for _name in CONTRACT:
    globals()[f"test_{_name}"] = getattr(test_contract, f"test_{_name}")


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def address(kind, tmp_path):
    """An export of two tebibytes of nothing."""
    with open(tmp_path / "raw", "wb") as raw:
        raw.truncate(2 * TIB)
    with exported(kind, tmp_path / "raw") as address:
        yield address


@pytest.fixture
def file(address):
    with connected(address) as storage:
        yield Grown(storage)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


def uri(path: Path, name: str = "disk") -> str:
    return f"nbd+unix:///{name}?socket={path}"


def refused(address: str, kind: type[CowtreeError], access: str = Access.READ) -> CowtreeError:
    """Why an address cannot be opened; nothing of the attempt is left."""
    before = descriptor_count()
    with pytest.raises(kind) as caught:
        open_export(parse(address), access)
    assert address in str(caught.value)
    assert wait_until(lambda: descriptor_count() <= before)
    return caught.value


def test_an_export_has_its_size_and_its_address(file, address):
    assert (file.inner.size_bytes, file.inner.path) == (2 * TIB, address)


@pytest.mark.parametrize("is_ours", [True, False])
def test_a_session_is_what_a_file_would_have_done(tmp_path, seed: int, is_ours: bool):
    rng, model = random.Random(seed), bytearray(random.Random(seed).randbytes(300_000))
    (tmp_path / "raw").write_bytes(model)
    with exported(KINDS[not is_ours], tmp_path / "raw") as address, connected(address) as storage:
        size_bytes = storage.size_bytes
        model += bytes(size_bytes - len(model))
        for _ in range(60):
            offset = rng.randrange(size_bytes)
            length = rng.randrange(min(size_bytes - offset, rng.choice((100, 5000, 300_000)))) + 1
            act = rng.choice(("read", "write", "zero", "allocate", "flush", "extents"))
            if act == "read":
                assert storage.pread(offset, length) == model[offset : offset + length]
            elif act == "write":
                data = rng.randbytes(length)
                storage.pwrite(offset, data)
                model[offset : offset + length] = data
            elif act == "zero":
                storage.write_zeroes(offset, length)
                model[offset : offset + length] = bytes(length)
            elif act == "allocate":
                storage.allocate(offset, length)
            elif act == "flush":
                storage.flush()
            else:
                spans = list(storage.extents(offset, length))
                assert sum(span.length for span in spans) == length
                for span in spans:
                    assert span.is_data or not any(model[span.start : span.start + span.length])
        assert storage.pread(0, size_bytes) == model
    assert (tmp_path / "raw").read_bytes() == model[: (tmp_path / "raw").stat().st_size]


def test_large_reads_and_writes_go_in_pieces(tmp_path, kind):
    (tmp_path / "raw").write_bytes(bytes(40 * MIB))
    data = random.Random(1).randbytes(37 * MIB + 12345)
    with exported(kind, tmp_path / "raw") as address, connected(address) as storage:
        storage.pwrite(777, data)
        assert storage.pread(777, len(data)) == data


def test_several_threads_may_ask(tmp_path, kind):
    data, wrong = random.Random(1).randbytes(MIB), list[int]()
    (tmp_path / "raw").write_bytes(data)

    def work(number: int) -> None:
        rng = random.Random(number)
        for _ in range(50):
            offset = rng.randrange(MIB)
            if storage.pread(offset, 5000) != (data + bytes(5000))[offset : offset + 5000]:
                wrong.append(number)

    with exported(kind, tmp_path / "raw") as address, connected(address) as storage:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


@pytest.mark.parametrize("block_bytes", [512, 4096])
def test_blocks_that_a_server_insists_on_are_kept(path, block_bytes: int, seed: int):
    memory = MemoryFiles({"disk": random.Random(seed).randbytes(16 * block_bytes)})
    model, rng = bytearray(memory.content("disk")), random.Random(seed)
    shelved = Shelved(memory.open("disk", Access.WRITE), Blocks(block_bytes, block_bytes, 4 * block_bytes))
    with serving(path, Shelf(disk=shelved)), connected(uri(path)) as storage:
        for _ in range(30):
            offset = rng.randrange(len(model))
            length = rng.randrange(len(model) - offset) + 1
            data = rng.randbytes(length)
            storage.pwrite(offset, data)
            model[offset : offset + length] = data
            storage.write_zeroes(offset, length // 2)
            model[offset : offset + length // 2] = bytes(length // 2)
            assert storage.pread(offset, length) == model[offset : offset + length]
            assert sum(span.length for span in storage.extents(offset, length)) == length
            storage.allocate(offset, length)
        assert memory.content("disk") == model


def test_trimming_gives_up_whole_blocks(path):
    ram = Ram(MIB, blocks=Blocks(4096, 4096, MIB))
    with serving(path, Shelf(disk=ram)), connected(uri(path)) as storage:
        storage.trim(100, 4000)
        storage.trim(100, 20000)
    assert [call for call in ram.calls if call[0] == "trim"] == [("trim", 4096, 12288, False)]


def test_allocating_asks_for_space_where_there_are_holes(path):
    ram = Ram(bytes(65536) + b"x" * 65536)
    with serving(path, Shelf(disk=ram)), connected(uri(path)) as storage:
        storage.allocate(4096, 120_000)
    assert [call for call in ram.calls if call[0] == "write zeroes"] == [
        ("write zeroes", 4096, 61440, False, False, False)
    ]


@pytest.mark.parametrize("access", [Access.READ, Access.SHARED, Access.PROBE])
def test_nothing_changes_what_is_open_for_reading(address, access: str):
    with connected(address, access) as storage:
        acts: tuple[Callable[[], object], ...] = (
            *(lambda: storage.pwrite(0, b"x"), lambda: storage.write_zeroes(0, 1), lambda: storage.allocate(0, 1)),
            *(lambda: storage.truncate(2 * TIB), lambda: storage.trim(0, 1), lambda: storage.clone(storage, 0, 0, 0)),
        )
        for act in acts:
            with pytest.raises(StorageFailed) as caught:
                act()
            assert (caught.value.facts["path"], caught.value.facts["errno"]) == (address, errno.EBADF)
        assert storage.pread(0, 10) == bytes(10)
        storage.flush()


def test_an_export_does_not_grow(address):
    with connected(address) as storage:
        storage.truncate(2 * TIB)
        for act in (lambda: storage.truncate(TIB), lambda: storage.pwrite(2 * TIB - 1, b"xx")):
            with pytest.raises(StorageFailed):
                act()
        assert storage.pread(2 * TIB - 2, 4) == bytes(4)
        with pytest.raises(StorageFailed):
            storage.pread(-1, 1)
        with pytest.raises(StorageFailed):
            storage.pwrite(-1, b"x")


def test_nothing_is_shared_over_a_connection(address):
    with connected(address) as storage:
        assert storage.clone_block_bytes(storage) == 0
        assert not storage.clone(storage, 0, 4096, 4096)
        assert storage.use() is None
        assert storage.place(5, 1) == (storage, 5)


def test_an_export_that_is_read_only_is_not_opened_for_writing(path, tmp_path):
    (tmp_path / "raw").write_bytes(bytes(MIB))
    with serving(path, Shelf(disk=Ram(MIB, is_read_only=True))), exported("qemu-nbd", tmp_path / "raw", "-r") as stock:
        for each in (uri(path), stock):
            assert refused(each, MissingImage, Access.WRITE).facts["errno"] == errno.EROFS
            with connected(each, Access.READ) as storage:
                assert storage.pread(0, 4) == bytes(4)


def test_what_is_not_there_is_missing(address, path, tmp_path):
    wrong = address.replace("disk", "none")
    assert "Requested export not available" in str(refused(wrong, MissingImage))
    assert refused(uri(tmp_path / "none"), MissingImage).facts["errno"] == errno.ENOENT
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert refused(f"nbd://127.0.0.1:{port}", MissingImage).facts["errno"] == errno.ECONNREFUSED
    refused(uri(Path("/" + "x" * 200)), MissingImage)
    refused("nbd://no-such-host.invalid", MissingImage)


def test_a_request_that_fails_is_told_with_the_servers_words_and_the_connection_goes_on(path):
    ram = Ram(MIB)
    with serving(path, Shelf(disk=ram)), connected(uri(path)) as storage:
        ram.fail(errno.ENOSPC)
        for act in (lambda: storage.pwrite(0, bytes(MIB)), lambda: list(storage.extents(0, MIB))):
            with pytest.raises(StorageFailed, match="No space left on device") as caught:
                act()
            assert (caught.value.facts["path"], caught.value.facts["errno"]) == (uri(path), errno.ENOSPC)
        ram.error = None
        assert storage.pread(0, 4) == bytes(4)


def test_a_flush_that_failed_once_fails_for_ever(path):
    ram = Ram(MIB)
    with serving(path, Shelf(disk=ram)), connected(uri(path)) as storage:
        storage.flush()
        ram.fail(errno.EIO)
        for _ in range(2):
            with pytest.raises(StorageFailed):
                storage.flush()
            ram.error = None
        assert storage.pread(0, 4) == bytes(4)


def test_a_server_that_goes_is_told_and_nothing_works_afterwards(path):
    with serving(path, Shelf(disk=Ram(MIB))) as server, connected(uri(path)) as storage:
        assert storage.pread(0, 4) == bytes(4)
        server.stop()
        for act in (lambda: storage.pwrite(0, b"x"), lambda: storage.write_zeroes(0, 1), storage.flush):
            with pytest.raises(StorageFailed) as caught:
                act()
            assert caught.value.facts["path"] == uri(path)
            assert "run the same command again" in str(caught.value)


def test_who_is_interrupted_gets_no_more_answers(path):
    with serving(path, Shelf(disk=Ram(MIB))), connected(uri(path)) as storage:

        def ask() -> Iterator[Question]:
            yield Question(wire.CMD_READ, 0, 512, into=memoryview(bytearray(512)))
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            storage._connection.ask("read", ask())
        with pytest.raises(StorageFailed):
            storage.pread(0, 512)


def test_closing_says_goodbye_and_may_be_done_twice(path):
    told = list[str]()
    with serving(path, Shelf(disk=Ram(MIB)), tell=told.append) as server:
        storage = open_export(parse(uri(path)), Access.READ)
        storage.close()
        storage.close()
        assert wait_until(lambda: server.connection_count == 0)
    assert told == []


def test_an_export_is_read_over_tls_with_the_right_name_alone(path, tmp_path, tmp_path_factory):
    folder = str(make_folder(tmp_path_factory.mktemp("pki") / "pki"))
    address = uri(path).replace("nbd+", "nbds+")
    (tmp_path / "raw").write_bytes(b"x" * MIB)
    creds = f"tls-creds-x509,id=t,dir={folder},endpoint=server,verify-peer=on"
    with exported("qemu-nbd", tmp_path / "raw", "--object", creds, "--tls-creds", "t") as stock:
        secure = stock.replace("nbd+", "nbds+")
        with connected(secure, Access.READ, tls=tls.client_context(folder)) as storage:
            assert storage.pread(0, MIB) == b"x" * MIB
        refused(stock, MissingImage)
    with serving(path, Shelf(disk=Ram(b"x" * MIB)), tls=tls.server_context(folder), needs_tls=True):
        with connected(address, Access.READ, tls=tls.client_context(folder)) as storage:
            assert storage.pread(0, MIB) == b"x" * MIB
        with pytest.raises(BrokenPeer, match="certificate is not right"):
            open_export(parse(address), Access.READ, tls.client_context(folder), "elsewhere")
        refused(uri(path), MissingImage)
    assert "wants TLS" in str(refused(address, MissingImage))


@contextmanager
def liar(path: Path, answer: bytes, *, is_structured: bool = True) -> Iterator[None]:
    """A server that opens an export as it should, and has one answer to whatever is asked."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()

    def act() -> None:
        peer, _ = listener.accept()
        with peer:
            half = negotiation.Negotiation(Shelf(disk=Ram(MIB)))
            peer.sendall(half.greeting())
            is_open = False
            while data := peer.recv(65536):
                if is_open:
                    peer.sendall(answer)
                    return
                for event in half.receive(data):
                    if isinstance(event, negotiation.Send):
                        peer.sendall(event.data)
                    is_open = is_open or isinstance(event, negotiation.Opened)

    thread = threading.Thread(target=act)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        listener.close()


DATA = wire.CHUNK_OFFSET_DATA
LIES = {
    "noise": b"x" * 100,
    "another cookie": wire.simple_reply(99) + bytes(512),
    "no data at all": wire.chunk(1, wire.CHUNK_NONE),
    "too little": wire.chunk(1, DATA, wire.OFFSET.pack(0) + bytes(100)),
    "too much": wire.chunk(1, DATA, wire.OFFSET.pack(0) + bytes(513)),
    "elsewhere": wire.chunk(1, DATA, wire.OFFSET.pack(4096) + bytes(512)),
    "huge": wire.chunk(1, wire.CHUNK_ERROR, more_bytes=(1 << 32) - 1),
    "huge data": wire.chunk(1, DATA, wire.OFFSET.pack(0), more_bytes=(1 << 32) - 9),
    "short offset": wire.chunk(1, DATA, bytes(4)),
    "twice": wire.chunk(1, DATA, wire.OFFSET.pack(0) + bytes(512), is_last=False) * 2,
}


@pytest.mark.parametrize("answer", LIES.values(), ids=LIES)
def test_a_server_that_lies_is_left_with_its_address(path, answer: bytes):
    with liar(path, answer), connected(uri(path), Access.READ) as storage:
        with pytest.raises(BrokenPeer) as caught:
            storage.pread(0, 512)
        assert uri(path) in str(caught.value)
        with pytest.raises(StorageFailed):
            storage.pread(0, 512)


@pytest.mark.parametrize("answer", [b"", wire.simple_reply(1)[:9], wire.simple_reply(1) + bytes(100)])
def test_a_server_that_ends_within_an_answer_is_gone(path, answer: bytes):
    ended = pytest.raises(StorageFailed, match="the server has ended the connection")
    with liar(path, answer), connected(uri(path), Access.READ) as storage, ended:
        storage.pread(0, 512)


def test_whatever_a_server_answers_it_is_one_of_our_errors(path, seed: int):
    rng = random.Random(seed)
    for _ in range(10):
        path.unlink(missing_ok=True)
        pieces = [
            *[wire.simple_reply(1, rng.choice((0, 5, 99))), bytes(512), rng.randbytes(30)],
            *[wire.chunk(rng.choice((1, 2)), rng.choice((0, 1, 2, 5, 32769)), rng.randbytes(rng.randrange(20)))],
        ]
        answer = b"".join(rng.choice(pieces) for _ in range(rng.randrange(5)))
        with liar(path, answer), connected(uri(path), Access.READ) as storage:
            for act in (lambda: storage.pread(0, 512), lambda: list(storage.extents(0, 512))):
                with suppress(BrokenPeer, StorageFailed):
                    act()


@pytest.mark.parametrize("sent", [b"HTTP/1.1 400 Bad Request\r\n", b"NBDMAGIC", b""])
def test_what_is_no_server_is_told_with_its_address(path, sent: bytes):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()

        def act() -> None:
            peer, _ = listener.accept()
            peer.sendall(sent)
            peer.close()

        thread = threading.Thread(target=act)
        thread.start()
        with pytest.raises(BrokenPeer) as caught:
            open_export(parse(uri(path)), Access.READ)
        thread.join()
    assert uri(path) in str(caught.value)
