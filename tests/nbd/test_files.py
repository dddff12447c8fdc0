"""Files where a name may be an address."""

import subprocess
import sys
from pathlib import Path

import pytest

from cowtree.errors import ChainError, MissingImage, WrongUse
from cowtree.nbd import tls
from cowtree.nbd.files import DEVICE, AddressFiles
from cowtree.storage.contract import Access, Times
from cowtree.storage.memory import MemoryFiles
from tests.nbd.certificates import make_folder
from tests.nbd.ram import Ram, Shelf, serving


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


def read(files: AddressFiles, name: str) -> bytes:
    storage = files.open(name, Access.READ)
    try:
        return storage.pread(0, 4)
    finally:
        storage.close()


def test_addresses_are_opened_beside_files(path):
    files = AddressFiles(MemoryFiles({"a": b"file"}))
    with serving(path, Shelf(disk=Ram(b"disk"))):
        address = f"nbd+unix:///disk?socket={path}"
        assert (read(files, "a"), read(files, address)) == (b"file", b"disk")
        assert files.times(address) == Times(0, 0, 0)
        assert files.identity(address) == files.identity(address)
        assert files.identity(address) != files.identity(address + "2")
        assert files.identity(address)[0] == DEVICE != files.identity("a")[0]
    assert files.follows_addresses
    with pytest.raises(MissingImage):
        files.open(address, Access.READ)
    with pytest.raises(ChainError, match="error parsing address"):
        files.open("nbd:x", Access.READ)


def test_a_name_that_only_looks_like_an_address_is_a_file():
    files = AddressFiles(MemoryFiles({"./nbd:a:1": b"file"}))
    assert read(files, "./nbd:a:1") == b"file"


def test_certificates_come_from_a_folder_or_by_the_name_of_an_object(path, tmp_path):
    folder = str(make_folder(tmp_path / "pki"))
    files = AddressFiles(MemoryFiles(), {"mine": folder, "empty": str(tmp_path)})
    address = f"nbds+unix:///disk?socket={path}"
    with serving(path, Shelf(disk=Ram(b"disk")), tls=tls.server_context(folder), needs_tls=True):
        assert read(files, f"{address}&tls-certificates={folder}") == b"disk"
        assert read(files, f"{address}&tls-creds=mine") == b"disk"
        for more, error in (("", MissingImage), ("&tls-creds=other", MissingImage), ("&tls-creds=empty", WrongUse)):
            with pytest.raises(error):
                files.open(address + more, Access.READ)


def test_nothing_of_the_network_is_loaded_for_files(tmp_path):
    (tmp_path / "a").write_bytes(bytes(512))
    program = (
        "import sys; from cowtree.cli.main import main; main(['cowtree', 'img', 'info', 'a']);"
        "print([each for each in ('socket', 'ssl', 'urllib.parse', 'threading') if each in sys.modules])"
    )
    command = [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {program}"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.endswith("\n[]\n"), result
