"""A server on real sockets: what stock clients make of it, and what hostile ones cannot do to it."""

import json
import os
import random
import resource
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cowtree.nbd import wire
from cowtree.nbd.server import Limits
from cowtree.sockets import listen_on_port
from tests.nbd.ram import MIB, Ram, Shelf, serving, wait_until
from tests.qemu import qemu_img, run, run_well

FLAGS = wire.CLIENT_FLAGS.pack(wire.FLAG_FIXED_NEWSTYLE | wire.FLAG_NO_ZEROES)
PATIENCE_S = 10


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


def uri(path: Path, name: str = "") -> str:
    return f"nbd+unix:///{name}?socket={path}"


def noise(length: int) -> bytes:
    return random.Random(length).randbytes(length)


class Client:
    """A client that does what it is told, right or wrong."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect(str(path))

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()

    def opened(self, name: str = "") -> "Client":
        """The same, with an export open in the old way."""
        self.socket.sendall(FLAGS + wire.option(wire.OPT_EXPORT_NAME, name.encode()))
        self.take(wire.GREETING.size_bytes + wire.EXPORT.size_bytes)
        return self

    def take(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            piece = self.socket.recv(length - len(data))
            assert piece, f"it ended after {data!r}"
            data += piece
        return data

    def is_ended(self) -> bool:
        """Whether the server ends it, whatever it says before."""
        try:
            while self.socket.recv(1 << 16):
                pass
        except ConnectionResetError:
            pass
        return True

    def read(self, offset: int, length: int) -> bytes:
        self.socket.sendall(wire.request(wire.CMD_READ, 7, offset, length))
        assert self.take(16) == wire.simple_reply(7)
        return self.take(length)


def test_nbdinfo_sees_what_is_served(path):
    shelf = Shelf(disk=Ram(MIB), second=Ram(8192, is_read_only=True))
    with serving(path, shelf):
        found = json.loads(run_well("nbdinfo", "--json", "--list", uri(path)))
        sizes = {each["export-name"]: (each["export-size"], each["is_read_only"]) for each in found["exports"]}
        assert sizes == {"disk": (MIB, False), "second": (8192, True)}
        assert found["exports"][0]["contexts"] == ["base:allocation", "x-tests:odd"]
        assert found["structured"]
        assert run("nbdinfo", uri(path, "third")).returncode != 0


def test_nbdinfo_maps_holes(path):
    ram = Ram(MIB)
    ram.data[65536:131072] = noise(65536)
    with serving(path, Shelf(disk=ram)):
        found = json.loads(run_well("nbdinfo", "--json", "--map", uri(path)))
    assert [(each["offset"], each["length"], each["type"]) for each in found] == [
        (0, 65536, 3),
        (65536, 65536, 0),
        (131072, MIB - 131072, 3),
    ]


def test_a_disk_goes_in_and_out_through_stock_clients(path, tmp_path):
    raw, back = tmp_path / "raw", tmp_path / "back"
    raw.write_bytes(noise(MIB) + bytes(3 * MIB) + noise(2 * MIB))
    with serving(path, Shelf(disk=Ram(6 * MIB), second=Ram(6 * MIB))):
        run_well("nbdcopy", raw, uri(path))
        run_well("nbdcopy", uri(path), back)
        assert back.read_bytes() == raw.read_bytes()
        qemu_img("convert", "-n", "-f", "raw", "-O", "raw", raw, uri(path, "second"))
        assert "identical" in qemu_img("compare", "-f", "raw", "-F", "raw", raw, uri(path, "second"))
        qemu_img("convert", "-f", "raw", "-O", "qcow2", uri(path), tmp_path / "copy.qcow2")
        assert "identical" in qemu_img("compare", raw, tmp_path / "copy.qcow2")


def test_qemu_io_writes_reads_and_discards(path):
    ram = Ram(4 * MIB)
    with serving(path, Shelf(disk=ram)):
        commands = ("write -P 7 0 1M", "write -f -P 8 1M 4k", "write -z -u 64k 64k", "discard 2M 1M", "flush")
        reads = ("read -P 7 0 64k", "read -P 0 64k 64k", "read -P 7 128k 64k", "read -P 8 1M 4k")
        words = [word for command in (*commands, *reads) for word in ("-c", command)]
        printed = run_well("qemu-io", "-f", "raw", *words, uri(path))
    assert "failed" not in printed
    assert {call[0] for call in ram.calls} >= {"write", "write zeroes", "trim", "flush", "read"}
    assert ("write", MIB, 4096, True) in ram.calls


@pytest.mark.parametrize("depth", [1, 16])
def test_fio_verifies_what_it_writes(path, depth):
    job = ("--name=a", "--ioengine=nbd", f"--uri={uri(path)}", "--rw=randwrite", "--bs=4k", f"--iodepth={depth}")
    with serving(path, Shelf(disk=Ram(4 * MIB))):
        run_well("fio", *job, "--size=4M", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--minimal")


def test_requests_in_a_row_are_answered_in_a_row(path):
    ram = Ram(noise(MIB))
    with serving(path, Shelf(disk=ram)), Client(path).opened() as client:
        count = 2000
        client.socket.sendall(
            b"".join(wire.request(wire.CMD_READ, number, number * 512, 16) for number in range(count))
        )
        for number in range(count):
            assert client.take(16) == wire.simple_reply(number)
            assert client.take(16) == ram.data[number * 512 : number * 512 + 16]


def test_a_write_may_come_in_pieces_and_be_large(path):
    ram, data = Ram(40 * MIB), noise(wire.PAYLOAD_BYTES_MAX)
    with serving(path, Shelf(disk=ram)), Client(path).opened() as client:
        for length in (1, 100_000, 300_000, 3 * MIB, wire.PAYLOAD_BYTES_MAX, 512):
            message = wire.request(wire.CMD_WRITE, length, 4096, length) + data[:length]
            for begin, end in ((0, 10), (10, 28), (28, 5000), (5000, len(message))):
                client.socket.sendall(message[begin:end])
            assert client.take(16) == wire.simple_reply(length)
            assert ram.data[4096 : 4096 + length] == data[:length]
            assert not any(ram.data[4096 + wire.PAYLOAD_BYTES_MAX :])


def test_a_client_that_says_goodbye_gets_its_answers_first(path):
    with serving(path, Shelf(disk=Ram(noise(MIB)))) as server, Client(path).opened() as client:
        client.socket.sendall(wire.request(wire.CMD_READ, 1, 0, 4096) + wire.request(wire.CMD_DISC, 2))
        client.take(16 + 4096)
        assert client.socket.recv(1) == b""
        assert wait_until(lambda: server.connection_count == 0)


def test_sixty_four_clients_at_once_see_their_own_answers(path):
    ram, wrong = Ram(noise(4 * MIB)), list[int]()

    def work(number: int) -> None:
        rng = random.Random(number)
        with Client(path).opened() as client:
            for _ in range(20):
                offset, length = rng.randrange(2 * MIB), rng.randrange(1, 5000)
                if client.read(offset, length) != ram.data[offset : offset + length]:
                    wrong.append(number)

    with serving(path, Shelf(disk=ram)):
        threads = [threading.Thread(target=work, args=(number,)) for number in range(64)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


ABRUPT = {
    "at once": b"",
    "within the flags": FLAGS[:2],
    "within an option": FLAGS + wire.option(wire.OPT_GO, b"x" * 40)[:30],
    "after it asked": FLAGS + wire.option(wire.OPT_LIST) * 30,
    "within a request": FLAGS + wire.option(wire.OPT_EXPORT_NAME) + wire.request(0, 1, 0, 512)[:11],
    "within a write": FLAGS + wire.option(wire.OPT_EXPORT_NAME) + wire.request(1, 1, 0, MIB) + b"x" * 1000,
    "before its answers": FLAGS + wire.option(wire.OPT_EXPORT_NAME) + wire.request(0, 1, 0, MIB) * 20,
}


@pytest.mark.parametrize("sent", ABRUPT.values(), ids=ABRUPT)
def test_a_client_may_go_whenever_it_likes(path, sent: bytes):
    ram, told = Ram(MIB), list[str]()
    with serving(path, Shelf(disk=ram), tell=told.append) as server:
        with Client(path) as client:
            client.socket.sendall(sent)
        assert wait_until(lambda: server.connection_count == 0)
        with Client(path).opened() as client:
            assert client.read(0, 512) == bytes(512)
    assert told == []
    assert not any(ram.data)


BROKEN = {
    "flags": (wire.CLIENT_FLAGS.pack(0xFF), "flags 0xff"),
    "no option": (FLAGS + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "where an option begins"),
    "long option": (FLAGS + wire.OPTION.pack(magic=wire.OPTION_MAGIC, option=3, length=1 << 31), "of 2147483648 bytes"),
    "many options": (FLAGS + wire.option(wire.OPT_LIST) * 100, "more than 64 options"),
    "no request": (FLAGS + wire.option(wire.OPT_EXPORT_NAME) + bytes(28), "where a request begins"),
    "long write": (FLAGS + wire.option(wire.OPT_EXPORT_NAME) + wire.request(1, 1, 0, 1 << 31), "2147483648 bytes"),
    "no export": (FLAGS + wire.option(wire.OPT_EXPORT_NAME, b"none"), "an export that is not there"),
}


@pytest.mark.parametrize(("sent", "reason"), BROKEN.values(), ids=BROKEN)
def test_who_breaks_the_protocol_is_ended_with_a_sentence_and_others_go_on(path, sent: bytes, reason: str):
    told = list[str]()
    with serving(path, Shelf(disk=Ram(MIB)), tell=told.append), Client(path).opened() as other:
        with Client(path) as client:
            client.socket.sendall(sent)
            assert client.is_ended()
        assert other.read(0, 512) == bytes(512)
    assert len(told) == 1
    assert reason in told[0]


@pytest.mark.parametrize("sent", [b"", FLAGS + wire.option(99, bytes(1000))], ids=["silent", "slow"])
def test_a_handshake_that_takes_too_long_is_ended(path, sent: bytes):
    told = list[str]()
    how: Any = {"limits": Limits(handshake_s=0.3), "tell": told.append}
    with serving(path, Shelf(disk=Ram(MIB)), **how) as server, Client(path) as slow, Client(path).opened() as other:
        # Whoever sends a byte now and then is waited for no longer than one who says nothing.
        with suppress(OSError):
            for byte in sent:
                slow.socket.sendall(bytes([byte]))
                time.sleep(0.01)
        assert slow.is_ended()
        assert wait_until(lambda: server.connection_count == 1)
        assert other.read(0, 512) == bytes(512)
    # What it says depends on where the time ran out.
    assert told in ([], ["the connection is ended: its handshake took too long"])


def test_no_more_clients_than_the_maximum_and_one_more_when_one_goes(path):
    told = list[str]()
    with serving(path, Shelf(disk=Ram(MIB)), limits=Limits(connection_count_max=3), tell=told.append) as server:
        clients = [Client(path).opened() for _ in range(3)]
        with Client(path) as fourth:
            assert fourth.is_ended()
        assert clients[0].read(0, 512) == bytes(512)
        clients.pop().socket.close()
        assert wait_until(lambda: server.connection_count == 2)
        with Client(path).opened() as another:
            assert another.read(0, 512) == bytes(512)
        for client in clients:
            client.socket.close()
    assert told == ["there are 3 connections already: one more is refused"]


def test_stopping_ends_clients_that_wait_or_do_not_listen(path):
    with serving(path, Shelf(disk=Ram(32 * MIB))) as server:
        idle, deaf, greeted = Client(path).opened(), Client(path).opened(), Client(path)
        # Its answers fit into no buffer, and it takes none.
        deaf.socket.sendall(wire.request(wire.CMD_READ, 1, 0, 32 * MIB))
        assert wait_until(lambda: server.connection_count == 3)
        server.stop()
        for client in (idle, deaf, greeted):
            assert client.is_ended()
            client.socket.close()


def test_an_export_that_fails_does_not_end_the_connection(path):
    ram = Ram(MIB)
    with serving(path, Shelf(disk=ram)), Client(path).opened() as client:
        ram.fail(28)
        client.socket.sendall(wire.request(wire.CMD_WRITE, 5, 0, 4) + b"abcd")
        assert client.take(16) == wire.simple_reply(5, wire.ENOSPC)
        ram.error = None
        assert client.read(0, 4) == bytes(4)


def test_a_server_listens_in_several_places(path, tmp_path):
    with serving(path, Shelf(disk=Ram(MIB))) as server:
        listener = listen_on_port("127.0.0.1", 0)
        port = listener.getsockname()[1]
        server.listen(listener)
        found = json.loads(run_well("nbdinfo", "--json", f"nbd://127.0.0.1:{port}"))
        assert found["exports"][0]["export-size"] == MIB
        with Client(path).opened() as client:
            assert client.read(0, 512) == bytes(512)


def test_a_server_without_descriptors_waits_until_there_are_some(path):
    with serving(path, Shelf(disk=Ram(MIB))), Client(path) as client:
        assert client.take(8) == b"NBDMAGIC"
        with Client(path) as second:
            second.take(8)
        waiting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (waiting.fileno() + 1, before[1]))
        held = list[int]()
        try:
            with suppress(OSError):
                while True:
                    held.append(os.dup(0))
            waiting.connect(str(path))
            time.sleep(0.05)
        finally:
            for descriptor in held:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        waiting.settimeout(PATIENCE_S)
        assert waiting.recv(8) == b"NBDMAGIC"
        waiting.close()
        # The one that waited had its descriptor already; the next one found none.
        with Client(path) as next_one:
            assert next_one.take(8) == b"NBDMAGIC"


@pytest.mark.slow
def test_noise_ends_nothing_but_its_own_connection(path, seed: int):
    rng, ram = random.Random(seed), Ram(64 << 10)
    known = [
        FLAGS,
        wire.option(wire.OPT_STRUCTURED_REPLY),
        wire.option(wire.OPT_GO, wire.counted("") + b"\0\0"),
        *(
            wire.request(kind, 1, rng.randrange(1 << 17), rng.randrange(1 << 17), rng.choice((0, 1, 31)))
            for kind in range(9)
        ),
    ]
    with serving(path, Shelf(disk=ram), limits=Limits(handshake_s=0.2)) as server:
        for _ in range(20):
            with Client(path) as client:
                sent = FLAGS + wire.option(wire.OPT_EXPORT_NAME) if rng.random() < 0.5 else b""
                sent += b"".join(rng.choice((rng.choice(known), rng.randbytes(30))) for _ in range(rng.randrange(30)))
                with suppress(OSError):
                    client.socket.sendall(sent)
        assert wait_until(lambda: server.connection_count == 0)
        with Client(path).opened() as client:
            client.read(0, 512)
