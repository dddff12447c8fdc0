"""Places to listen in, and who is taken in there: nobody is left over, and nobody else may come."""

import os
import socket
import stat
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cowtree.errors import StorageFailed, WrongUse
from cowtree.sockets import Reception, listen_on_path, listen_on_port

WAIT_S = 10.0


class Guest:
    """A client that is only there."""

    def __init__(self, peer: socket.socket) -> None:
        self.peer = peer

    def close(self) -> None:
        """Go."""
        self.peer.close()


def echo(guest: Guest) -> None:
    while data := guest.peer.recv(100):
        guest.peer.sendall(data)


@contextmanager
def receiving(path: Path, told: list[str], count_max: int = 10):
    """A reception at a path, until this ends; then no thread of it is left."""
    before = threading.active_count()
    reception = Reception(Guest, echo, count_max=count_max, kind="guests", tell=told.append)
    reception.listen(listen_on_path(str(path)))
    try:
        yield reception
    finally:
        for guest in reception.close_doors():
            with suppress(OSError):
                guest.peer.shutdown(socket.SHUT_RDWR)
        reception.wait_until_empty(time.monotonic() + WAIT_S)
        reception.leave()
    assert threading.active_count() == before
    assert reception.clients == []


def connected(path: Path) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(WAIT_S)
    peer.connect(str(path))
    return peer


def is_answered(peer: socket.socket) -> bool:
    """Whether somebody is there; an end of the connection says no."""
    try:
        peer.sendall(b"hello")
        return peer.recv(100) == b"hello"
    except (BrokenPipeError, ConnectionResetError):
        return False


def test_each_client_is_taken_in_and_let_go(tmp_path):
    with receiving(tmp_path / "s", []) as reception:
        with connected(tmp_path / "s") as first, connected(tmp_path / "s") as second:
            assert is_answered(first)
            assert is_answered(second)
            assert len(reception.clients) == 2
        end_s = time.monotonic() + WAIT_S
        while reception.clients:
            assert time.monotonic() < end_s
            time.sleep(0.01)


def test_one_too_many_is_sent_away_and_told(tmp_path):
    told: list[str] = []
    with receiving(tmp_path / "s", told, count_max=1), connected(tmp_path / "s") as first:
        assert is_answered(first)
        with connected(tmp_path / "s") as second:
            assert not is_answered(second)
        assert told == ["there are 1 guests already: one more is refused"]
        assert is_answered(first)


def test_nobody_is_taken_in_behind_closed_doors(tmp_path):
    with receiving(tmp_path / "s", []) as reception:
        reception.close_doors()
        with socket.socket(socket.AF_UNIX) as peer, pytest.raises(ConnectionRefusedError):
            peer.connect(str(tmp_path / "s"))


def test_without_threads_a_client_is_sent_away_and_the_next_one_taken_in(tmp_path, monkeypatch):
    told: list[str] = []
    with receiving(tmp_path / "s", told):
        with monkeypatch.context() as patch:

            def fail(thread: threading.Thread) -> None:
                raise RuntimeError("can't start new thread")

            patch.setattr(threading.Thread, "start", fail)
            with connected(tmp_path / "s") as first:
                assert not is_answered(first)
        assert told == ["can't start new thread"]
        with connected(tmp_path / "s") as second:
            assert is_answered(second)


def test_a_socket_is_for_its_owner_alone(tmp_path):
    before = os.umask(0o022)
    listener = listen_on_path(str(tmp_path / "s"))
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600
    listener.close()
    assert os.umask(before) == 0o022


def test_a_place_that_cannot_be_had_is_told_with_its_name_and_a_hint(tmp_path):
    path = tmp_path / "s"
    path.touch()
    for place, reason in (
        (path, "Address already in use"),
        (path / "below", "Not a dir"),
        (tmp_path / "none" / "s", "No such file"),
        (Path("/" + "x" * 200), "long"),
    ):
        with pytest.raises(StorageFailed, match=f"{reason}.*Try: another place") as caught:
            listen_on_path(str(place))
        assert caught.value.facts["path"] == str(place)


def test_a_port_that_cannot_be_had_is_told_with_its_number():
    listener = listen_on_port("127.0.0.1", 0)
    port = listener.getsockname()[1]
    with pytest.raises(StorageFailed, match=f"127.0.0.1:{port}: listening failed"):
        listen_on_port("127.0.0.1", port)
    listener.close()
    with pytest.raises(StorageFailed):
        listen_on_port("127.0.0.1", 1 << 20)


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.1", ""])
def test_what_can_be_reached_from_elsewhere_needs_tls(address: str):
    with pytest.raises(WrongUse, match="needs TLS"):
        listen_on_port(address, 0)
