"""TLS with stock clients, and what is refused; the certificates are made when the tests run."""

import json
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from cowtree.errors import WrongUse
from cowtree.nbd import tls, wire
from cowtree.sockets import listen_on_port
from tests.nbd.certificates import make_folder
from tests.nbd.ram import MIB, Ram, Shelf, serving, wait_until
from tests.qemu import run, run_well

CAN_SHARE_KEYS = hasattr(ssl.SSLContext, "set_psk_client_callback")
KEY = "11223344556677889900aabbccddeeff"


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("pki") / "pki")


@pytest.fixture(scope="module")
def strangers(tmp_path_factory):
    """The same of another authority, which nobody believes."""
    return make_folder(tmp_path_factory.mktemp("pki") / "pki")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


def info(port: int, folder: Path, host: str = "127.0.0.1", **options: str) -> Any:
    """What stock qemu-img sees over TLS."""
    creds = {"qom-type": "tls-creds-x509", "id": "t", "dir": str(folder), "endpoint": "client"}
    image = f"driver=nbd,host={host},port={port},tls-creds=t" + "".join(
        f",{key}={value}" for key, value in options.items()
    )
    return run("qemu-img", "info", "--output=json", "--object", json.dumps(creds), "--image-opts", image)


@pytest.fixture
def port(path, pki):
    with serving(path, Shelf(disk=Ram(MIB)), tls=tls.server_context(str(pki)), needs_tls=True) as server:
        listener = listen_on_port("127.0.0.1", 0, is_secure=True)
        server.listen(listener)
        yield listener.getsockname()[1]


def test_qemu_img_opens_an_export_over_tls(port, pki, tmp_path):
    result = info(port, pki)
    assert json.loads(result.stdout)["virtual-size"] == MIB, result.stderr


def test_who_does_not_ask_for_tls_gets_nothing(port, path):
    for address in (f"nbd://127.0.0.1:{port}", f"nbd+unix:///?socket={path}"):
        result = run("nbdinfo", address)
        assert result.returncode != 0
        assert "Operation not supported" in result.stderr
    assert "TLS negotiation required" in run("qemu-img", "info", f"nbd://127.0.0.1:{port}").stderr


def test_a_client_of_another_authority_is_refused(port, pki, strangers, tmp_path):
    mixed = tmp_path / "mixed"
    shutil.copytree(strangers, mixed)
    shutil.copy(pki / "ca-cert.pem", mixed)
    for folder in (strangers, mixed):
        assert info(port, folder).returncode != 0


def test_a_client_without_a_certificate_is_refused_unless_nobody_asks(pki, tmp_path, path):
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(pki / "ca-cert.pem", bare)
    for checks_clients in (True, False):
        told = list[str]()
        context = tls.server_context(str(pki), checks_clients=checks_clients)
        with serving(path, Shelf(disk=Ram(MIB)), tls=context, tell=told.append) as server:
            listener = listen_on_port("127.0.0.1", 0, is_secure=True)
            server.listen(listener)
            result = info(listener.getsockname()[1], bare)
            assert (result.returncode == 0) == (not checks_clients), result.stderr
            assert wait_until(lambda: server.connection_count == 0)
        assert bool(told) == checks_clients
        assert all("TLS failed" in each for each in told)


def handshaken(path: Path, context: ssl.SSLContext, name: str) -> ssl.SSLSocket:
    """A client of our own behind its handshake for TLS."""
    plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    plain.connect(str(path))
    plain.sendall(wire.CLIENT_FLAGS.pack(3) + wire.option(wire.OPT_STARTTLS))
    expected = wire.GREETING.size_bytes + wire.OPTION_REPLY.size_bytes
    assert len(plain.recv(expected, socket.MSG_WAITALL)) == expected
    plain.settimeout(10)
    try:
        return context.wrap_socket(plain, server_hostname=name)
    except OSError:
        plain.close()
        raise


def opened(peer: ssl.SSLSocket) -> None:
    peer.sendall(wire.option(wire.OPT_EXPORT_NAME))
    assert len(peer.recv(wire.EXPORT.size_bytes)) == wire.EXPORT.size_bytes


def test_our_client_believes_the_right_name_alone(path, pki, strangers):
    with serving(path, Shelf(disk=Ram(MIB)), tls=tls.server_context(str(pki))):
        with handshaken(path, tls.client_context(str(pki)), "localhost") as peer:
            opened(peer)
            assert peer.version() == "TLSv1.3"
        with pytest.raises(ssl.SSLCertVerificationError):
            handshaken(path, tls.client_context(str(pki)), "elsewhere")
        with pytest.raises(ssl.SSLCertVerificationError):
            handshaken(path, tls.client_context(str(strangers)), "localhost")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1")
def test_nothing_older_than_tls_1_2_is_spoken(path, pki):
    context = tls.client_context(str(pki))
    with serving(path, Shelf(disk=Ram(MIB)), tls=tls.server_context(str(pki))):
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with handshaken(path, context, "localhost") as peer:
            assert peer.version() == "TLSv1.2"
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.raises(ssl.SSLError):
            handshaken(path, context, "localhost")


def test_large_reads_and_writes_go_through_tls(path, pki):
    ram = Ram(8 * MIB)
    with (
        serving(path, Shelf(disk=ram), tls=tls.server_context(str(pki))),
        handshaken(path, tls.client_context(str(pki)), "localhost") as peer,
    ):
        opened(peer)
        data = bytes(range(256)) * (3 * MIB // 256)
        peer.sendall(
            wire.request(wire.CMD_WRITE, 1, 512, len(data)) + data + wire.request(wire.CMD_READ, 2, 512, len(data))
        )
        received = b""
        while len(received) < 32 + len(data):
            received += peer.recv(1 << 20)
    assert received == wire.simple_reply(1) + wire.simple_reply(2) + data


def test_stopping_ends_secure_clients(path, pki):
    with serving(path, Shelf(disk=Ram(MIB)), tls=tls.server_context(str(pki))) as server:
        peer = handshaken(path, tls.client_context(str(pki)), "localhost")
        opened(peer)
        ended = list[bytes]()
        reader = threading.Thread(target=lambda: ended.append(_receive(peer)))
        reader.start()
        server.stop(2.0)
        reader.join(5)
        assert ended == [b""]
        peer.close()


def _receive(peer: ssl.SSLSocket) -> bytes:
    try:
        return peer.recv(1)
    except OSError:
        return b""


def test_who_begins_tls_and_says_something_else_is_ended_with_a_sentence(path, pki):
    told = list[str]()
    with (
        serving(path, Shelf(disk=Ram(MIB)), tls=tls.server_context(str(pki)), tell=told.append) as server,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer,
    ):
        peer.connect(str(path))
        peer.sendall(wire.CLIENT_FLAGS.pack(3) + wire.option(wire.OPT_STARTTLS))
        peer.recv(wire.GREETING.size_bytes + wire.OPTION_REPLY.size_bytes, socket.MSG_WAITALL)
        peer.sendall(wire.option(wire.OPT_LIST) * 10)
        assert wait_until(lambda: server.connection_count == 0)
    assert len(told) == 1
    assert "TLS failed" in told[0]


def test_a_folder_that_lacks_something_is_refused_with_the_name_of_the_file(tmp_path, pki):
    for name in ("ca-cert.pem", "server-cert.pem", "server-key.pem"):
        folder = tmp_path / name
        shutil.copytree(pki, folder)
        (folder / name).unlink()
        with pytest.raises(WrongUse, match=name):
            tls.server_context(str(folder))
        (folder / name).write_text("this is no certificate")
        with pytest.raises(WrongUse, match="cannot be used"):
            tls.server_context(str(folder))
    with pytest.raises(WrongUse, match=r"ca-cert\.pem"):
        tls.client_context(str(tmp_path))


def test_a_key_that_does_not_fit_its_certificate_is_refused(tmp_path, pki, strangers):
    folder = tmp_path / "pki"
    shutil.copytree(pki, folder)
    shutil.copy(strangers / "client-key.pem", folder)
    with pytest.raises(WrongUse, match="key values mismatch"):
        tls.client_context(str(folder))


def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked(tmp_path, pki):
    folder = tmp_path / "pki"
    shutil.copytree(pki, folder)
    key = serialization.load_pem_private_key((folder / "server-key.pem").read_bytes(), None)
    locked = serialization.BestAvailableEncryption(b"secret")
    text = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)
    (folder / "server-key.pem").write_bytes(text)
    program = f"from cowtree.nbd import tls; tls.server_context({str(folder)!r})"
    command = [sys.executable, "-c", program]
    result = subprocess.run(
        command, input="secret\n", capture_output=True, text=True, check=False, start_new_session=True
    )
    assert "WrongUse" in result.stderr
    assert "pass phrase" not in result.stderr + result.stdout


def test_shared_keys_work_where_python_can_and_are_refused_with_a_sentence_elsewhere(tmp_path, path):
    (tmp_path / "keys.psk").write_text(f"qemu:{KEY}\nann:00\n")
    if not CAN_SHARE_KEYS:
        for act in (tls.server_context_with_keys, tls.client_context_with_keys):
            with pytest.raises(WrongUse, match=r"needs Python 3\.13"):
                act(str(tmp_path))
        return
    with serving(path, Shelf(disk=Ram(MIB)), tls=tls.server_context_with_keys(str(tmp_path)), needs_tls=True):
        with handshaken(path, tls.client_context_with_keys(str(tmp_path)), "") as peer:
            opened(peer)
        run_well("nbdinfo", f"nbds+unix://qemu@/?socket={path}&tls-psk-file={tmp_path}/keys.psk")
        (tmp_path / "keys.psk").write_text(f"qemu:{KEY[::-1]}\n")
        with pytest.raises(ssl.SSLError):
            handshaken(path, tls.client_context_with_keys(str(tmp_path)), "")


@pytest.mark.parametrize("text", ["qemu", "qemu:xyz", ":00", "qemu:", "\xff", "qemu:00\nx"])
def test_a_file_that_holds_no_keys_is_refused_and_no_message_holds_what_is_in_it(tmp_path, text: str):
    with pytest.raises(WrongUse, match="No such file"):
        tls.read_keys(str(tmp_path))
    (tmp_path / "keys.psk").write_bytes(text.encode("latin-1"))
    with pytest.raises(WrongUse, match=r"keys\.psk") as caught:
        tls.read_keys(str(tmp_path))
    assert "xyz" not in str(caught.value)


def test_keys_are_read_by_their_users(tmp_path):
    (tmp_path / "keys.psk").write_text(f"# made today\n\nqemu:{KEY}\nan:n:00ff\n")
    assert tls.read_keys(str(tmp_path)) == {"qemu": bytes.fromhex(KEY), "an:n": b"\0\xff"}
    with pytest.raises(WrongUse, match="no key of 'bob'"):
        tls.client_context_with_keys(str(tmp_path), "bob")
