"""Random lives of a guest against a model in memory: after every step its disks and all its snapshots show what they
should, and no file is there without a reason.
"""

import random
from pathlib import Path

import pytest

from cowtree.catalog import domains, snapshots
from cowtree.chain.view import open_chain, through_snapshot
from cowtree.domain.moment import DiskRequest
from cowtree.storage.file import LocalFiles
from tests.crash import guest_view, patched, read_all
from tests.lab import DISK_BYTES, PIECE_BYTES, Lab

SNAPSHOT_COUNT_MAX = 8
STEP_COUNT = 40


class Life:
    """A guest, and what it should show. Snapshots that are not the newest ones are deleted when there are many."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.choose = random.Random(seed)
        self.lab = Lab(folder, disk_count=2)
        self.disks = self.lab.view().disks
        self.held: dict[str, dict[str, bytes]] = {}
        self.count = 0
        self.log: list[str] = []

    def live(self, step_count: int) -> None:
        """Do so many things, and compare after each."""
        for _ in range(step_count):
            self.step()
            try:
                self.verify()
            except AssertionError as error:
                raise AssertionError("\n".join(self.log)) from error

    def step(self) -> None:
        """Do something, whatever."""
        acts = [self.write, self.write, self.take, self.revert]
        act = self.choose.choice(acts)
        act()

    def write(self) -> None:
        """Write as the guest would."""
        target = self.choose.choice(sorted(self.disks))
        offset = self.choose.randrange(DISK_BYTES // PIECE_BYTES) * PIECE_BYTES
        patch = {offset: self.choose.randbytes(PIECE_BYTES)}
        self.log.append(f"write {target} {offset}")
        self.lab.write(target, patch)
        self.disks[target] = patched(self.disks[target], patch)

    def take(self) -> None:
        """Take a snapshot: external, internal, or of both kinds."""
        if len(self.held) >= SNAPSHOT_COUNT_MAX:
            return
        self.count += 1
        name = f"s{self.count}"
        modes = [self.choose.choice(["internal", "external"]) for _ in self.disks]
        self.log.append(f"take {name} {modes}")
        requests = (DiskRequest(target, mode) for target, mode in zip(sorted(self.disks), modes, strict=True))
        self.lab.take(name, *requests)
        self.held[name] = dict(self.disks)

    def revert(self) -> None:
        """Go to any snapshot, or to what a branch was when it was left."""
        if not self.held:
            return
        name = self.choose.choice(sorted(self.held))
        discards = self.choose.random() < 0.2
        self.log.append(f"revert {name}{' discarding' if discards else ''}")
        self.lab.told.clear()
        now, self.disks = self.disks, dict(self.held[name])
        with self.lab.host() as host:
            is_tip = {row.name: snapshots.get(host.catalog, row.id).is_tip for row in self.rows(host)}[name]
        self.lab.revert(name, discards=discards)
        with self.lab.host() as host:
            names = {row.name for row in self.rows(host)}
        if is_tip and name not in names:
            del self.held[name]
        for tip in names - self.held.keys():
            with self.lab.host() as host:
                (row,) = (row for row in self.rows(host) if row.name == tip)
                targets = {each.target for each in snapshots.disks(host.catalog, row.id)}
            self.held[tip] = {target: now[target] for target in targets}

    def rows(self, host):
        """What the catalogue lists."""
        return snapshots.rows(host.catalog, domains.find(host.catalog, "guest"))

    def verify(self) -> None:
        """Compare everything."""
        assert self.lab.view().disks == self.disks
        with self.lab.host() as host:
            rows = self.rows(host)
            assert {row.name for row in rows} == self.held.keys()
            for row in rows:
                for each in snapshots.disks(host.catalog, row.id):
                    assert self.shown(each) == self.held[row.name][each.target], (row.name, each)
        assert self.lab.names() == self.lab.needed()

    def shown(self, held):
        """What a snapshot shows of a disk."""
        if held.mode == "internal":
            chain = open_chain(LocalFiles(), held.source)
            try:
                return read_all(through_snapshot(chain, [(held.internal_id, None)]))
            finally:
                chain.close()
        return guest_view(LocalFiles(), held.source, held.format)


@pytest.mark.slow
def test_a_random_life_is_what_the_model_says(tmp_path, seed):
    Life(tmp_path / "lab", seed).live(STEP_COUNT)
