"""Random lives of a guest whose snapshots are deleted and layers merged: what is shown stays, or is noted as lost."""

import pytest

from cowtree.catalog import domains, snapshots
from cowtree.domain.moment import DiskRequest
from cowtree.errors import Refused, WrongUse
from cowtree.operations import delete, merge
from tests.lab import NAME, chain_names
from tests.operations.test_delete import delete_one
from tests.operations.test_model import SNAPSHOT_COUNT_MAX, Life

STEP_COUNT = 30


class Merging(Life):
    """A life with merges; a snapshot that has lost a disk by one is known not to hold it any more."""

    def step(self):
        """Do something, whatever."""
        acts = [self.take, self.take, self.revert, self.delete, self.commit, self.pull]
        self.write()
        self.choose.choice(acts)()

    def mode(self):
        """External snapshots, mostly."""
        return self.choose.choice(["external"] * 9 + ["internal"])

    def take(self):
        """Take a snapshot."""
        if len(self.held) < SNAPSHOT_COUNT_MAX:
            self.count += 1
            name, modes = f"s{self.count}", {target: self.mode() for target in self.disks}
            self.log.append(f"take {name} {modes}")
            self.lab.take(name, *(DiskRequest(target, mode) for target, mode in modes.items()))
            self.held[name] = dict(self.disks)

    def revert(self):
        """Go to any snapshot that has lost nothing."""
        held, lost = self.held, {name for name, disks in self.held.items() if None in disks.values()}
        self.held = {name: disks for name, disks in held.items() if name not in lost}
        if self.held:
            # The model compares all names, and so the lost ones go.
            with self.lab.at_work() as (host, found):
                delete.forget(host, [snapshots.find(host.catalog, found.domain, name) for name in sorted(lost)])
            super().revert()
        else:
            self.held = held

    def delete(self):
        """Delete any snapshot, by any method."""
        if not self.held:
            return
        name, method = self.choose.choice(sorted(self.held)), self.choose.choice([None, None, *delete.METHODS])
        with_children = self.choose.random() < 0.2
        self.log.append(f"delete {name} {method} {with_children}")
        try:
            delete_one(self.lab, name, method, with_children=with_children)
        except Refused as error:
            self.log.append(f"refused: {error}")
        self.reread()

    def commit(self):
        """Merge layers down, if anything allows it."""
        depth = self.depth()
        if depth < 2:
            return
        top = self.choose.randrange(1, depth)
        base = self.choose.randrange(top + 1, depth + 1)
        wanted = merge.Commit("vda", f"vda[{base}]", f"vda[{top}]", is_active=top == 1, deletes=True)
        self.merge(wanted)

    def pull(self):
        """Merge layers up."""
        depth = self.depth()
        layer = self.choose.randrange(1, depth + 1)
        base = self.choose.randrange(layer + 1, depth + 2)
        self.merge(merge.Pull(f"vda[{layer}]", f"vda[{base}]" if base <= depth else None))

    def depth(self):
        """How many layers the first disk has."""
        return len(chain_names(self.lab.sources()["vda"]))

    def merge(self, wanted):
        """Merge, and note what is lost."""
        self.log.append(str(wanted))
        try:
            with self.lab.host() as host:
                merge.merge(host, NAME, wanted)
        except (Refused, WrongUse) as error:
            self.log.append(f"refused: {error}")
        self.reread()

    def reread(self):
        """What is gone, and what is lost, is told by the catalogue; all else must be as it was."""
        with self.lab.host() as host:
            found = snapshots.all_disks(host.catalog, domains.find(host.catalog, NAME))
            rows = {row.id: row.name for row in self.rows(host)}
        self.held = {
            rows[number]: {
                each.target: None if each.lost else self.held[rows[number]][each.target]  # type: ignore[misc]
                for each in disks
            }
            for number, disks in found.items()
        }

    def verify(self):
        """Compare everything. What the user has made, and what a pull has left, may be there without need."""
        assert self.lab.view().disks == self.disks
        with self.lab.host() as host:
            rows = self.rows(host)
            assert {row.name for row in rows} == self.held.keys()
            for row in rows:
                for each in snapshots.disks(host.catalog, row.id):
                    wanted = self.held[row.name][each.target]
                    assert (wanted is None) == (each.lost is not None)
                    assert wanted is None or self.shown(each) == wanted, (row.name, each)
        assert self.lab.needed() <= self.lab.names()
        assert not [name for name in self.lab.names() if ".cowtree" in name]


@pytest.mark.slow
def test_a_random_life_with_merges_is_what_the_model_says(tmp_path, seed):
    Merging(tmp_path / "lab", seed).live(STEP_COUNT)
