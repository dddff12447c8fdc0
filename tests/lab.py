"""Owns a laboratory: a host with one guest of several small disks, in a folder of its own, for trials of the verbs."""

import itertools
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from cowtree.catalog import domains, snapshots, store
from cowtree.catalog.store import open_catalog
from cowtree.chain.gate import QCOW2
from cowtree.chain.view import open_chain
from cowtree.domain import definition
from cowtree.domain.moment import DiskRequest, Request
from cowtree.images.create import create as create_image
from cowtree.operations import create, revert
from cowtree.operations.host import Host, Subject, subject
from cowtree.operations.work import at_work, look_at
from cowtree.plan.create import NewImage
from cowtree.storage.contract import FileSystem
from cowtree.storage.faults import AFTER, BEFORE, Fault, FaultyFiles, Killed
from cowtree.storage.file import LocalFiles
from tests.crash import guest_view, write_more

NAME: Final = "guest"
DISK_BYTES: Final = 256 << 10
PIECE_BYTES: Final = 512


class View(NamedTuple):
    """What there is to see of a guest: its disks, and what each snapshot holds of them."""

    disks: dict[str, bytes]
    snapshots: dict[str, dict[str, bytes]]


class Lab:
    """A folder with a catalogue, and one guest whose disks begin with different bytes."""

    def __init__(self, folder: Path, disk_count: int = 1) -> None:
        self.folder = folder
        self.told: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)
        paths = [str(folder / f"disk{index}.qcow2") for index in range(disk_count)]
        for index, path in enumerate(paths):
            create_image(LocalFiles(), NewImage(path, QCOW2, DISK_BYTES))
            write_more(LocalFiles(), path, {0: bytes([index + 1]) * PIECE_BYTES})
        made = definition.make(NAME, str(uuid.UUID(int=1)), [(path, QCOW2) for path in paths])
        with self.host() as host:
            domains.add(host.catalog, NAME, made.uuid or "", made.text)

    def copy(self, folder: Path) -> "Lab":
        """The same guest as it is now, in the same place; the copy here is put back by `restore`."""
        shutil.copytree(self.folder, folder)
        return self

    def restore(self, folder: Path) -> None:
        """Let everything be what it was when it was copied."""
        shutil.rmtree(self.folder)
        shutil.copytree(folder, self.folder)
        with self.host() as host:
            for table in ("layer", "made"):
                for (path,) in host.catalog.read(f"SELECT path FROM {table}"):
                    identity = "{}:{}".format(*host.files.identity(path.decode()))
                    host.catalog.change(f"UPDATE {table} SET identity = ? WHERE path = ?", identity, path)

    @contextmanager
    def host(self, files: FileSystem | None = None) -> Iterator[Host]:
        """The host, its catalogue open."""
        with open_catalog(str(self.folder / "state" / "catalog.db")) as catalog:
            yield Host(files or LocalFiles(), catalog, self.told.append)

    @contextmanager
    def at_work(self, files: FileSystem | None = None) -> Iterator[tuple[Host, Subject]]:
        """The guest, for a verb."""
        with self.host(files) as host, at_work(host, NAME) as found:
            yield host, found

    def take(self, name: str, *disks: DiskRequest, files: FileSystem | None = None, **manner: bool) -> None:
        """Take a snapshot; external unless another manner is given."""
        how = create.Manner(**manner) if manner else create.Manner(is_disk_only=True)
        with self.at_work(files) as (host, found):
            create.create(host, found, Request(name, disks=disks), how)

    def revert(self, name: str, files: FileSystem | None = None, **manner: bool) -> None:
        """Revert to a snapshot."""
        with self.at_work(files) as (host, found):
            snapshot = snapshots.find(host.catalog, found.domain, name)
            revert.revert(host, found, snapshot, revert.Manner(**manner))

    def settle(self) -> list[str]:
        """Let the next command come. Returns: what it tells."""
        self.told.clear()
        with self.host() as host:
            look_at(host, NAME)
        return list(self.told)

    def sources(self) -> dict[str, str]:
        """The active files."""
        with self.host() as host:
            found = subject(host, domains.find(host.catalog, NAME))
            return {disk.target: disk.source or "" for disk in found.definition.disks}

    def write(self, target: str, patches: dict[int, bytes]) -> None:
        """Write as the guest would."""
        write_more(LocalFiles(), self.sources()[target], patches)

    def view(self) -> View:
        """All that there is to see. External snapshots alone show what they hold by themselves."""
        files = LocalFiles()
        with self.host() as host:
            domain = domains.find(host.catalog, NAME)
            held = snapshots.all_disks(host.catalog, domain)
            shown = {
                row.name: {
                    each.target: guest_view(files, each.source, each.format)
                    for each in held.get(row.id, [])
                    if each.mode == snapshots.EXTERNAL and each.lost is None
                }
                for row in snapshots.rows(host.catalog, domain)
            }
        return View({target: guest_view(files, path) for target, path in self.sources().items()}, shown)

    def needed(self) -> set[str]:
        """The names of all files that there is a reason for: active ones, those of snapshots, and what these lie on."""
        with self.host() as host:
            domain = domains.find(host.catalog, NAME)
            held = snapshots.all_disks(host.catalog, domain)
        heads = {*self.sources().values(), *(each.source for disks in held.values() for each in disks if not each.lost)}
        return {Path(name).name for head in heads for name in chain_names(head)}

    def names(self) -> set[str]:
        """The names of all files that are there, but for the catalogue."""
        return {path.name for path in self.folder.iterdir() if path.is_file()}


def chain_names(path: str) -> list[str]:
    """The files of a chain, from the top down."""
    chain = open_chain(LocalFiles(), path)
    chain.close()
    return [layer.path for layer in chain.layers]


class Stops:
    """Where a verb can be stopped: at each call that changes a file, and around each transaction of the catalogue."""

    def __init__(self, lab: Lab, kept: Path, act: Callable[[FileSystem], None], monkeypatch) -> None:
        self._lab = lab
        self._kept = kept
        self._act = act
        self._monkeypatch = monkeypatch
        lab.copy(kept)

    def everywhere(self) -> Iterator[str]:
        """Stop the verb everywhere, one after the other; yields where, with what that has left in the folder."""
        for number in itertools.count():
            for moment in (BEFORE, AFTER):
                self._lab.restore(self._kept)
                files = FaultyFiles(LocalFiles(), Fault(number, moment=moment))
                if not self._dies(files):
                    break
                yield f"killed {moment} {files.calls[number]}"
            else:
                continue
            break
        for number in itertools.count():
            for moment in (BEFORE, AFTER):
                self._lab.restore(self._kept)
                with self._monkeypatch.context() as patch:
                    patch.setattr(store, "_transaction", dying_transaction(number, moment))
                    died = self._dies(LocalFiles())
                if not died:
                    return
                yield f"killed {moment} the end of transaction {number}"

    def _dies(self, files: FileSystem) -> bool:
        try:
            self._act(files)
        except Killed:
            return True
        return False


def dying_transaction(number: int, moment: str):
    """Transactions of which one is where the process dies: before it is made durable, or after."""
    counter = itertools.count()
    real = store._transaction

    @contextmanager
    def transaction(connection):
        is_last = next(counter) == number
        with real(connection):
            yield
            if is_last and moment == BEFORE:
                raise Killed
        if is_last:
            raise Killed

    return transaction
