"""Tidying up: what the rule does not keep goes, and nothing else, and nobody sees anything else than before."""

import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cowtree.catalog import domains, policies, snapshots
from cowtree.catalog.policies import Policy
from cowtree.domain.moment import DiskRequest
from cowtree.operations import delete
from cowtree.operations.retention import Chain, tidy
from tests.lab import NAME, Lab, Stops, chain_names
from tests.qemu import assert_clean, qemu_img

DAY_NS = 86_400 * 10**9
NOON_NS = 20_000 * DAY_NS + DAY_NS // 2


@pytest.fixture
def lab(tmp_path):
    """Four external snapshots, one each day."""
    lab = Lab(tmp_path / "lab")
    for number in range(4):
        lab.write("vda", {512 * number: bytes([65 + number]) * 512})
        lab.take(f"day{number}")
        date(lab, f"day{number}", number)
    lab.write("vda", {4096: b"now"})
    return lab


def date(lab, name, day):
    with lab.host() as host:
        words = "UPDATE snapshot SET created_ns = ? WHERE name = ?"
        host.catalog.change(words, NOON_NS + day * DAY_NS, name)


def run(lab, keep="", max_depth=None, is_trial=False):
    with lab.at_work() as (host, found):
        return tidy(host, found, Policy(keep, max_depth), is_trial=is_trial)


def going(tidied):
    return [verdict.snapshot for verdict in tidied.verdicts if verdict.goes]


def test_what_the_rule_does_not_keep_goes_and_the_rest_shows_what_it_showed(lab):
    before = lab.view()
    assert going(run(lab, "2d")) == ["day0", "day1"]
    now = lab.view()
    assert now.disks == before.disks
    assert now.snapshots == {name: before.snapshots[name] for name in ("day2", "day3")}
    assert len(chain_names(lab.sources()["vda"])) == 3
    assert lab.needed() == lab.names()
    assert lab.settle() == []
    for name in lab.names():
        assert_clean(lab.folder / name)
    assert going(run(lab, "2d")) == []


def test_a_trial_says_the_same_and_does_nothing(lab):
    names, before = lab.names(), lab.view()
    tidied = run(lab, "2d", max_depth=3, is_trial=True)
    assert going(tidied) == ["day0", "day1"]
    assert [verdict.reason for verdict in tidied.verdicts] == ["no part of 2d keeps it"] * 2 + ["kept by 2d"] * 2
    assert tidied.chains == (Chain("vda", 5, 3, "no deeper than 3"),)
    assert (lab.names(), lab.view()) == (names, before)


def test_the_current_snapshot_stays_whatever_the_rule(lab):
    date(lab, "day3", -9)
    tidied = run(lab, "1d")
    assert going(tidied) == ["day0", "day1"]
    assert tidied.verdicts[0] == ("day3", False, "it is current: the disks lie on it")


def test_without_a_rule_no_snapshot_goes(lab):
    tidied = run(lab)
    assert going(tidied) == []
    assert {verdict.reason for verdict in tidied.verdicts} == {"no rule says which snapshots go"}
    assert tidied.chains == ()


def test_what_others_would_notice_stays_and_it_is_said_who(lab):
    stranger = lab.folder / "stranger"
    qemu_img("create", "-q", "-f", "qcow2", "-b", lab.folder / "disk0.qcow2", "-F", "qcow2", stranger)
    for is_trial in (True, False):
        (first, *rest) = run(lab, "1d", is_trial=is_trial).verdicts
        assert (first.snapshot, first.goes) in (("day0", False), ("day0", True))
        if not first.goes:
            assert "stranger" in first.reason
        assert [verdict.goes for verdict in rest] == [True, True, False]
    qemu_img("check", "-q", stranger)
    assert_clean(Path(lab.sources()["vda"]))


def test_files_that_cowtree_did_not_make_keep_their_snapshot(lab):
    mine = lab.folder / "mine"
    qemu_img("create", "-q", "-f", "qcow2", "-b", lab.sources()["vda"], "-F", "qcow2", mine)
    lab.take("reused", DiskRequest("vda", None, str(mine)), is_disk_only=True, reuses_external=True)
    date(lab, "reused", -1)
    with lab.host() as host:
        # The file that it froze is no more ours either.
        snapshots.forget_made(host.catalog, str(lab.folder / "disk0.day3"))
    lab.take("last")
    date(lab, "last", 9)
    verdicts = {verdict.snapshot: verdict for verdict in run(lab, "1d", is_trial=True).verdicts}
    assert verdicts["reused"][1:] == (False, "cowtree did not make the files of disk vda")


def test_internal_snapshots_and_tips_go_by_the_same_rule(lab):
    lab.take("inner", is_disk_only=False)
    date(lab, "inner", -1)
    lab.revert("day3")
    (tip,) = (name for name in (row.name for row in rows(lab)) if name.endswith("-tip"))
    date(lab, tip, -2)
    assert going(run(lab, "4d")) == [tip, "inner"]
    assert [row.name for row in rows(lab)] == ["day0", "day1", "day2", "day3"]
    assert lab.needed() == lab.names()


def test_an_internal_snapshot_that_was_found_stays(lab):
    lab.take("inner", is_disk_only=False)
    date(lab, "inner", -1)
    lab.take("outer")
    with lab.host() as host:
        host.catalog.change("UPDATE snapshot SET is_found = 1 WHERE name = 'inner'")
    assert run(lab, "9d").verdicts[0].reason == "kept by 9d"
    tidied = run(lab, "5d")
    assert going(tidied) == []
    assert tidied.verdicts[0].reason == "it was found in an image, and nobody knows who took it"


def rows(lab):
    with lab.host() as host:
        return snapshots.rows(host.catalog, domains.find(host.catalog, NAME))


def test_a_chain_becomes_as_short_as_those_allow_who_need_it(lab):
    before = lab.view().disks
    with lab.at_work() as (host, found):
        chosen = [snapshots.find(host.catalog, found.domain, name) for name in ("day1", "day2")]
        delete.forget(host, chosen)
    assert run(lab, max_depth=2, is_trial=True).chains[0][:3] == ("vda", 5, 3)
    (chain,) = run(lab, max_depth=2).chains
    assert chain[:3] == ("vda", 5, 3)
    assert chain.reason == "all its images are needed, or were not made by cowtree: it cannot be 2 deep"
    now = lab.view()
    assert now.disks == before
    assert sorted(now.snapshots) == ["day0", "day3"]
    assert len(chain_names(lab.sources()["vda"])) == 3
    assert lab.settle() == []
    assert lab.needed() == lab.names()
    assert run(lab, max_depth=3).chains == (Chain("vda", 3, 3, "no deeper than 3"),)


def test_hours_are_those_of_local_time_and_of_one_name_there_may_be_two(lab, monkeypatch):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        first = int(datetime(2026, 10, 25, 0, 30, tzinfo=UTC).timestamp()) * 10**9
        with lab.host() as host:
            for number in range(4):
                words = "UPDATE snapshot SET created_ns = ? WHERE name = ?"
                host.catalog.change(words, first + number * 1800 * 10**9, f"day{number}")
        verdicts = run(lab, "3h", is_trial=True).verdicts
        assert [verdict.snapshot for verdict in verdicts if verdict.reason == "kept by 3h"] == ["day0", "day2", "day3"]
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_policy_is_found_by_domain(lab):
    with lab.host() as host:
        domain = domains.find(host.catalog, NAME)
        policies.put(host.catalog, domain, Policy("2d", 3))
        assert policies.find(host.catalog, domain) == Policy("2d", 3)


@pytest.mark.slow
def test_shortening_that_is_killed_anywhere_goes_on_and_nobody_sees_it(tmp_path, monkeypatch):
    lab = Lab(tmp_path / "lab")
    for name in ("first", "second", "third"):
        lab.take(name)
        lab.write("vda", {0: name.encode()})
    with lab.at_work() as (host, found):
        delete.forget(host, [snapshots.find(host.catalog, found.domain, "second")])
    before = lab.view()

    def act(files):
        with lab.at_work(files) as (host, found):
            tidy(host, found, Policy("", 3))

    for where in Stops(lab, tmp_path / "kept", act, monkeypatch).everywhere():
        lab.settle()
        assert lab.view() == before, where
        assert run(lab, max_depth=3).chains[0].depth_after == 3, where
        assert lab.view() == before, where
        assert lab.needed() == lab.names(), where
        assert lab.settle() == [], where
