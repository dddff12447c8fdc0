"""Monitors on real sockets: what stock's own client makes of them, and what hostile ones cannot do to others."""

import asyncio
import json
import random
import socket
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import ExecuteError, QMPClient

from cowtree.qmp.schema import check_event, check_result
from cowtree.qmp.server import Limits, Server, _Connection
from cowtree.sockets import listen_on_path
from tests.qmp.daemon import Monitor, storage_daemon
from tests.qmp.fakes import Fake, serving

PATIENCE_S = 10


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "monitor"


def wait_until(is_so: Callable[[], bool]) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < end_s
        time.sleep(0.005)


def opened(path: Path) -> Monitor:
    monitor = Monitor(path)
    assert monitor.well("qmp_capabilities") == {}
    return monitor


def test_the_client_of_stock_gets_on_with_it(path: Path):
    async def converse(server: Server) -> None:
        client = QMPClient("test")
        await client.connect(str(path))
        version = await client.execute("query-version")
        check_result("query-version", version)
        assert await client.execute("query-jobs") == []
        with pytest.raises(ExecuteError) as caught:
            await client.execute("block-job-pause", {"device": "a"})
        assert caught.value.error.error.class_ == "DeviceNotActive"
        assert caught.value.error.error.desc == "Block job 'a' not found"
        with client.listener() as listener:
            server.send_event("JOB_STATUS_CHANGE", {"id": "a", "status": "running"})
            event = await listener.get()
        assert (event["event"], event["data"]) == ("JOB_STATUS_CHANGE", {"id": "a", "status": "running"})
        await client.disconnect()

    with serving(path, Fake()) as server:
        asyncio.run(asyncio.wait_for(converse(server), PATIENCE_S))


def test_a_greeting_and_an_event_have_the_shape_of_stock(path: Path):
    with serving(path, Fake()) as server, storage_daemon() as connect:
        ours, theirs = opened(path), connect()
        theirs.well("qmp_capabilities")
        greetings = [each.greeting["QMP"] for each in (ours, theirs)]
        assert greetings[0]["capabilities"] == greetings[1]["capabilities"]
        versions = [each["version"] for each in greetings]
        for version in versions:
            check_result("query-version", version)
            version["qemu"].pop("micro")
        assert versions[0]["qemu"] == versions[1]["qemu"]
        begin_s = time.time()
        server.send_event("JOB_STATUS_CHANGE", {"id": "j", "status": "created"})
        for node in "ab":
            theirs.well("blockdev-add", driver="null-co", node_name=node, size=1 << 20)
        theirs.well("blockdev-mirror", device="a", target="b", sync="full", job_id="j")
        events = [each.wait_event("JOB_STATUS_CHANGE") for each in (ours, theirs)]
        stamps = [each.pop("timestamp") for each in events]
        assert events[0] == events[1]
        assert [sorted(each) for each in stamps] == [["microseconds", "seconds"]] * 2
        assert 0 <= stamps[0]["seconds"] + stamps[0]["microseconds"] / 1e6 - begin_s + 0.001 < PATIENCE_S
        check_event("JOB_STATUS_CHANGE", events[0]["data"])
        theirs.well("job-cancel", id="j")
        theirs.close()
        ours.close()


def test_events_go_to_all_that_have_begun_and_in_one_order(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_Connection, "tell", slowly(_Connection.tell))
    with serving(path, Fake()) as server:
        monitors = [opened(path) for _ in range(4)]
        silent = Monitor(path)

        def send(name: str) -> None:
            for number in range(50):
                server.send_event("JOB_STATUS_CHANGE", {"id": f"{name}{number}", "status": "running"})

        threads = [threading.Thread(target=send, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        heard = [[monitor.wait_event("JOB_STATUS_CHANGE")["data"]["id"] for _ in range(100)] for monitor in monitors]
        for thread in threads:
            thread.join()
        assert all(each == heard[0] for each in heard)
        silent.well("qmp_capabilities")
        assert silent.events == []
        for monitor in (*monitors, silent):
            monitor.close()
        wait_until(lambda: server.connection_count == 0)


def slowly(tell: Callable[[_Connection, bytes], bool]) -> Callable[[_Connection, bytes], bool]:
    """The same, but other threads have their turn before it."""

    def wait_and_tell(connection: _Connection, data: bytes) -> bool:
        time.sleep(random.random() / 5000)
        return tell(connection, data)

    return wait_and_tell


def test_nobody_else_may_connect(path: Path):
    with serving(path, Fake()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_commands_are_carried_out_one_at_a_time(path: Path):
    fake = Fake()
    fake.pause.clear()
    with serving(path, fake):
        first, second = opened(path), opened(path)
        for monitor in (first, second):
            monitor.send(b'{"execute": "query-jobs"}\n')
        wait_until(lambda: len(fake.asked) == 1)
        time.sleep(0.05)
        assert len(fake.asked) == 1
        fake.pause.set()
        assert first.take() == second.take() == {"return": []}
        first.close()
        second.close()


def test_who_does_not_read_events_is_let_go_and_others_are_not_kept_waiting(path: Path):
    told: list[str] = []
    with serving(path, Fake(), Limits(waiting_bytes_max=1 << 18), told) as server:
        deaf, other = opened(path), opened(path)
        begin_s = time.monotonic()
        while server.connection_count == 2:
            server.send_event("JOB_STATUS_CHANGE", {"id": "x" * 5000, "status": "running"})
            other.wait_event("JOB_STATUS_CHANGE")
            assert time.monotonic() - begin_s < PATIENCE_S
        assert told == ["a monitor does not read its events: it is let go"]
        assert other.well("query-jobs") == []
        deaf.close()
        other.close()


def test_who_does_not_read_answers_is_not_read_from_and_gets_them_all_later(path: Path):
    fake = Fake()
    fake.answer_bytes = 50_000
    with serving(path, fake, Limits(waiting_bytes_max=1 << 18)):
        lazy, other = opened(path), opened(path)
        lazy.send(b'{"execute": "query-jobs"}\n' * 200)
        wait_until(lambda: len(fake.asked) > 1)
        count = -1
        while count != len(fake.asked):
            count = len(fake.asked)
            time.sleep(0.05)
        assert count < 30
        assert other.well("query-version")
        assert [len(lazy.take()["return"][0]) for _ in range(200)] == [50_000] * 200
        lazy.close()
        other.close()


def test_there_are_no_more_clients_than_allowed(path: Path):
    told: list[str] = []
    with serving(path, Fake(), Limits(connection_count_max=2), told) as server:
        monitors = [opened(path) for _ in range(2)]
        with socket.socket(socket.AF_UNIX) as third:
            third.settimeout(PATIENCE_S)
            third.connect(str(path))
            assert third.recv(100) == b""
        assert told == ["there are 2 monitors already: one more is refused"]
        monitors[0].close()
        wait_until(lambda: server.connection_count == 1)
        opened(path).close()
        monitors[1].close()


def test_whoever_asks_to_quit_is_answered_before_the_end(path: Path):
    fake = Fake()
    server = Server(fake)
    server.listen(listen_on_path(str(path)))
    monitor, idle = opened(path), opened(path)

    def stop_when_asked() -> None:
        assert fake.is_quit.wait(PATIENCE_S)
        server.stop()

    thread = threading.Thread(target=stop_when_asked)
    thread.start()
    assert monitor.well("quit") == {}
    for each in (monitor, idle):
        assert each.socket.recv(100) == b""
        each.close()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert server.connection_count == 0
    with socket.socket(socket.AF_UNIX) as late, pytest.raises(ConnectionRefusedError):
        late.connect(str(path))


def test_a_command_under_way_is_answered_before_the_end(path: Path):
    fake = Fake()
    fake.pause.clear()
    server = Server(fake)
    server.listen(listen_on_path(str(path)))
    monitor = opened(path)
    monitor.send(b'{"execute": "query-jobs"}\n')
    wait_until(lambda: len(fake.asked) == 1)
    thread = threading.Thread(target=server.stop)
    thread.start()
    time.sleep(0.05)
    fake.pause.set()
    assert monitor.take() == {"return": []}
    assert monitor.socket.recv(100) == b""
    thread.join(PATIENCE_S)
    monitor.close()


def test_a_stop_waits_for_no_client(path: Path):
    fake = Fake()
    fake.answer_bytes = 50_000
    server = Server(fake, limits=Limits(waiting_bytes_max=1 << 18))
    server.listen(listen_on_path(str(path)))
    lazy = opened(path)
    lazy.send(b'{"execute": "query-jobs"}\n' * 200)
    wait_until(lambda: len(fake.asked) > 1)
    before_s = time.monotonic()
    server.stop(wait_s=1)
    assert time.monotonic() - before_s < 2
    assert server.connection_count == 0
    lazy.close()


def test_a_client_may_end_its_half_and_still_read(path: Path):
    with serving(path, Fake()):
        monitor = opened(path)
        monitor.send(b'{"execute": "query-jobs", "id": 1}\n' * 20)
        monitor.socket.shutdown(socket.SHUT_WR)
        assert [monitor.take()["id"] for _ in range(20)] == [1] * 20
        assert monitor.socket.recv(100) == b""
        monitor.close()


def test_hostile_clients_harm_nobody(path: Path, seed: int):
    words = [
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b"\xff",
        b"\n",
        b'{"execute": "query-jobs"}',
        b'{"execute": "qmp_capabilities"}',
    ]
    words += [b"[" * 3000, b"1" * 100_000, b"\x00", b'{"execute": "blockdev-add", "arguments": {"driver": "qcow2"}}']
    numbers = random.Random(seed)
    with serving(path, Fake()) as server:
        good = opened(path)
        for _ in range(4):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
                client.settimeout(0.02)
                try:
                    client.sendall(b"".join(numbers.choices(words, k=numbers.randrange(1, 30))))
                    if numbers.random() < 0.5:
                        client.recv(numbers.randrange(1, 10_000))
                except (TimeoutError, BrokenPipeError, ConnectionResetError):
                    pass
            assert good.well("query-jobs") == []
        good.close()
        wait_until(lambda: server.connection_count == 0)


def test_a_handler_that_breaks_costs_its_own_client_alone(path: Path, monkeypatch: pytest.MonkeyPatch):
    class Broken(Fake):
        def answer(self, command: str, arguments: dict[str, Any]) -> Any:
            if command == "quit":
                raise ZeroDivisionError("broken")
            return super().answer(command, arguments)

    seen: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda found: seen.append(str(found.exc_value)))
    with serving(path, Broken()) as server:
        victim, other = opened(path), opened(path)
        victim.send(json.dumps({"execute": "quit"}).encode())
        assert victim.socket.recv(100) == b""
        assert other.well("query-jobs") == []
        wait_until(lambda: server.connection_count == 1)
        assert seen == ["broken"]
        victim.close()
        other.close()
