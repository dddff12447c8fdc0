"""Merges as intents: begun, given up, completed, whoever did the rest."""

import os

import pytest

from cowtree.catalog import domains, intents
from cowtree.errors import CowtreeError, Refused
from cowtree.operations import jobs, merge
from cowtree.operations.host import subject
from cowtree.operations.merge import Commit, Pull
from cowtree.storage.file import LocalFiles
from tests.lab import NAME, Lab


@pytest.fixture
def lab(tmp_path):
    lab = Lab(tmp_path / "lab")
    for number, name in enumerate(("one", "two")):
        lab.take(name)
        lab.write("vda", {number * 65536: name.encode()})
    return lab


class Stop(CowtreeError):
    """Enough."""


class Halting:
    """Stops at the first byte."""

    def expect(self, more_bytes):
        """Ignore it."""

    def advance(self, moved_bytes):
        """Stop."""
        raise Stop(reason="enough")


def stop(lab, wanted):
    """Begin a merge, and stop it. Returns: its intent."""
    with lab.host() as host:
        with pytest.raises(Stop):
            merge.merge(host, NAME, wanted, Halting())
        return next(iter(intents.found(host.catalog, domains.find(host.catalog, NAME))), None)


def test_how_far_it_is_is_told_of_the_bytes_that_move(lab):
    intent = stop(lab, Commit("vda", is_active=True))
    state = jobs.state(intent)
    assert (state.verb, state.target, state.type) == ("blockcommit", "vda", "Active Block Commit")
    assert (state.done_bytes, jobs.percent(state), state.is_moved) == (0, 0, False)
    assert state.total_bytes == intent.content["bytes"] > 0
    assert jobs.is_named(intent)
    assert jobs.is_patient(intent)
    assert "was cut short at 0 %" in jobs.sentence(intent)


def test_a_merge_that_was_refused_leaves_no_intent(lab):
    with lab.host() as host, lab.at_work() as (_, found):
        job = merge.plan_commit(host, found, Commit("vda", is_active=True))
        file = LocalFiles().open(lab.sources()["vda"], "write")
        try:
            with pytest.raises(CowtreeError):
                jobs.carry_out(host, found, job)
        finally:
            file.close()
        assert intents.found(host.catalog, found.domain) == []


def test_another_merge_of_the_family_does_not_begin_before_the_first_is_done(lab):
    stop(lab, Commit("vda", is_active=True))
    with lab.host() as host:
        domain = domains.find(host.catalog, NAME)
        found = subject(host, domain)
        job = merge.plan_pull(host, found, Pull("vda"))
        with pytest.raises(Refused, match="was begun and is not done"):
            jobs.carry_out(host, found, job)
        assert len(intents.found(host.catalog, domain)) == 1


def test_a_pull_that_is_given_up_leaves_no_journal(lab):
    intent = stop(lab, Pull("vda"))
    assert os.path.exists(intent.content["journal"])
    with lab.host() as host:
        jobs.give_up(host, intent)
        assert intents.found(host.catalog, domains.find(host.catalog, NAME)) == []
    assert not os.path.exists(intent.content["journal"])


def test_a_journal_that_is_gone_means_that_nothing_was_begun(lab):
    before = lab.view()
    intent = stop(lab, Pull("vda"))
    os.unlink(intent.content["journal"])
    assert lab.settle() == ["blockpull of disk vda was cut short before it changed anything"]
    assert lab.settle() == []
    assert lab.view() == before


def test_a_file_that_is_another_one_now_means_that_it_was_done(lab):
    intent = stop(lab, Commit("vda", is_active=True))
    with lab.host() as host:
        assert not jobs._was_done(host, intent)
        changed = intent._replace(content={**intent.content, "before": [(str(lab.folder / "absent"), 1, 1)]})
        assert jobs._was_done(host, changed)
