"""Merges by name: what a guest and its snapshots show stays, or is told to be lost, and is lost in the catalogue."""

from pathlib import Path

import pytest

from cowtree.catalog import domains, intents, snapshots
from cowtree.chain.view import open_chain
from cowtree.errors import CowtreeError, Refused, WrongUse
from cowtree.images import lineage
from cowtree.operations import jobs, merge
from cowtree.operations.merge import Commit, Pull
from cowtree.storage.file import LocalFiles
from tests.crash import guest_view
from tests.lab import NAME, Lab, Stops, chain_names
from tests.qemu import assert_clean, qemu_img


@pytest.fixture
def lab(tmp_path):
    """disk0.qcow2 <- disk0.one <- disk0.two <- disk0.three, each with content of its own."""
    lab = Lab(tmp_path / "lab")
    for number, name in enumerate(("one", "two", "three")):
        lab.take(name)
        lab.write("vda", {number * 65536: name.encode(), 3 * 65536: name.encode()})
    return lab


def run(lab, wanted, monitor=None, files=None):
    with lab.host(files) as host:
        return merge.merge(host, NAME, wanted, monitor)


def held(lab):
    """What the snapshots hold of the disk: the name of a file, or why it is gone."""
    with lab.host() as host:
        domain = domains.find(host.catalog, NAME)
        names = {row.id: row.name for row in snapshots.rows(host.catalog, domain)}
        found = snapshots.all_disks(host.catalog, domain).items()
        return {names[number]: disks[0].lost or Path(disks[0].source).name for number, disks in found}


def chain_of(lab):
    return [Path(each).name for each in chain_names(lab.sources()["vda"])]


def path(lab, name):
    return str(lab.folder / f"disk0.{name}")


def assert_kept(lab, before):
    """All that is shown is what was shown."""
    found = lab.view()
    assert found.disks == before.disks
    for name, shown in found.snapshots.items():
        assert shown in ({}, before.snapshots[name])
    for name in chain_of(lab):
        assert_clean(lab.folder / name)
    assert lab.settle() == []


def test_a_commit_of_the_middle_loses_what_lies_below_its_top_and_says_so(lab):
    before = lab.view()
    run(lab, Commit("vda", base=path(lab, "qcow2"), top=path(lab, "two")))
    assert chain_of(lab) == ["disk0.three", "disk0.qcow2"]
    found = held(lab)
    assert found["three"] == "disk0.qcow2"
    sentence = f"merged into {path(lab, 'qcow2')} by blockcommit on 20"
    assert found["one"].startswith(f"what lay over it was {sentence}")
    assert found["two"].startswith(sentence)
    assert [line.split(" will")[0] for line in lab.told] == [
        f"snapshot '{n}' of domain 'guest'" for n in ("one", "two")
    ]
    assert_kept(lab, before)
    assert len([name for name in lab.names() if ".invalid-" in name]) == 2


def test_a_commit_of_the_active_image_lets_the_guest_go_on_in_the_base(lab):
    before = lab.view()
    run(lab, Commit("vda", is_active=True, deletes=True))
    assert chain_of(lab) == ["disk0.qcow2"]
    assert lab.names() == {"disk0.qcow2"}
    assert all("merged into" in why for why in held(lab).values())
    assert_kept(lab, before)


def test_a_shallow_commit_goes_into_the_next_one(lab):
    before = lab.view()
    run(lab, Commit("vda", is_active=True, is_shallow=True))
    assert chain_of(lab) == ["disk0.two", "disk0.one", "disk0.qcow2"]
    assert held(lab)["two"] == "disk0.one"
    assert_kept(lab, before)


def test_an_overlay_that_is_kept_stays_active_and_the_base_shows_the_same(lab):
    before = lab.view()
    run(lab, Commit("vda", is_active=True, keeps_overlay=True))
    assert chain_of(lab) == ["disk0.three", "disk0.two", "disk0.one", "disk0.qcow2"]
    assert guest_view(LocalFiles(), path(lab, "qcow2")) == before.disks["vda"]
    assert all("merged into" in why for why in held(lab).values())
    assert stale(lab.sources()["vda"]) == []
    assert_kept(lab, before)


def test_an_overlay_that_is_kept_is_the_same_file_however_large(lab):
    lab.write("vda", {number * 65536: b"large" for number in range(4)})
    files, before = LocalFiles(), lab.view()
    identities = {name: files.identity(path(lab, name)) for name in ("two", "three")}
    run(lab, Commit("vda", base="vda[2]", is_active=True, keeps_overlay=True))
    assert {name: files.identity(path(lab, name)) for name in ("two", "three")} == identities
    assert guest_view(files, path(lab, "two")) == before.disks["vda"]
    assert_kept(lab, before)


def stale(top):
    """The bases of a chain that are not what those over them remember."""
    chain = open_chain(LocalFiles(), top)
    try:
        return list(lineage.stale(LocalFiles(), chain))
    finally:
        chain.close()


def test_a_pull_into_the_active_image_leaves_all_below_as_it_is(lab):
    before, names = lab.view(), lab.names()
    run(lab, Pull("vda", base="vda[4]"))
    assert chain_of(lab) == ["disk0.three", "disk0.qcow2"]
    run(lab, Pull("vda"))
    assert chain_of(lab) == ["disk0.three"]
    assert run(lab, Pull("vda")) == 0
    assert lab.names() == names
    assert held(lab) == {"one": "disk0.qcow2", "two": "disk0.one", "three": "disk0.two"}
    assert lab.view().snapshots == before.snapshots
    assert_kept(lab, before)


def test_a_pull_into_a_layer_in_the_middle_leaves_all_views(lab):
    before = lab.view()
    run(lab, Pull(path(lab, "two"), base=path(lab, "qcow2")))
    assert chain_of(lab) == ["disk0.three", "disk0.two", "disk0.qcow2"]
    assert lab.view() == before
    assert_kept(lab, before)


def test_layers_may_be_named_in_many_ways(lab, monkeypatch):
    before = lab.view()
    monkeypatch.chdir(lab.folder)
    run(lab, Commit("disk0.three", base="disk0.one", top="vda[2]"))
    assert chain_of(lab) == ["disk0.three", "disk0.one", "disk0.qcow2"]
    monkeypatch.chdir("/")
    run(lab, Pull(path(lab, "three")[1:], base="disk0.qcow2"))
    assert chain_of(lab) == ["disk0.three", "disk0.qcow2"]
    assert_kept(lab, before)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (Commit("vda"), "commit of 'vda' active layer requires active flag"),
        (Commit("vdz"), "disk 'vdz' not found in domain"),
        (
            Commit("vda", base="{three}", top="{one}"),
            "could not find image '{three}' beneath '{one}' in chain for 'vda'",
        ),
        (Commit("vda", base="/no", top="{one}"), "could not find image '/no' beneath '{one}' in chain for 'vda'"),
        (Commit("vda", base="{one}", top="{one}"), "could not find image '{one}' beneath '{one}' in chain for 'vda'"),
        (Commit("vda", top="/no"), "could not find image '/no' in chain for 'vda'"),
        (
            Commit("vda", base="{qcow2}", top="{two}", is_shallow=True),
            "base '{qcow2}' is not immediately below '{two}' in chain for '{three}'",
        ),
        (Commit("vda", top="{qcow2}"), "could not find base image in chain for 'vda'"),
        (Commit("vda", top="{one}", is_active=True), "active commit requested but '{one}' is not active"),
        (Pull("vda", base="/no"), "could not find image '/no' beneath '{three}' in chain for 'vda'"),
        (Pull("vda", base="{three}"), "could not find image '{three}' beneath '{three}' in chain for 'vda'"),
        (Pull("vda[9]"), "disk 'vda[9]' not found in domain"),
    ],
)
def test_what_makes_no_sense_is_said_as_stock_says_it(lab, wanted, words):
    names = {name: path(lab, name) for name in ("qcow2", "one", "two", "three")}
    filled = wanted._replace(
        **{name: value.format_map(names) for name, value in wanted._asdict().items() if isinstance(value, str)}
    )
    before = lab.names()
    with pytest.raises(WrongUse) as caught:
        run(lab, filled)
    assert caught.value.reason == f"invalid argument: {words.format_map(names)}"
    assert lab.names() == before
    assert lab.settle() == []


def test_absolute_links_cannot_be_kept_relative(lab):
    with pytest.raises(Refused, match="can't keep relative backing relationship"):
        run(lab, Commit("vda", top=path(lab, "two"), keeps_relative=True))


def test_a_sibling_is_never_ruined(lab):
    sibling = lab.folder / "sibling.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-b", path(lab, "one"), "-F", "qcow2", sibling)
    before, shown = lab.view(), guest_view(LocalFiles(), str(sibling))
    for wanted in (Commit("vda", top=path(lab, "two")), Commit("vda", is_active=True)):
        with pytest.raises(Refused) as caught:
            run(lab, wanted)
        assert caught.value.facts["harmed"] == (str(sibling),)
        assert "--with-dependants" not in str(caught.value)
    assert lab.view() == before
    assert guest_view(LocalFiles(), str(sibling)) == shown


def test_the_image_of_another_guest_is_never_changed(lab):
    """Even one that lies open below ours."""
    from cowtree.domain import definition  # noqa: PLC0415

    with lab.host() as host:
        other = definition.make("other", "6236e2e8-2923-40bb-ae9c-6483cf848ccc", [(path(lab, "one"), "qcow2")])
        domains.add(host.catalog, other.name, other.uuid or "", other.text)
    with pytest.raises(Refused, match=r"disk0\.one is to be kept as it is"):
        run(lab, Commit("vda", top=path(lab, "two"), base=path(lab, "one")))


def test_internal_snapshots_that_would_be_lost_are_named(lab):
    with lab.at_work() as (host, found):
        from cowtree.domain.moment import Request  # noqa: PLC0415
        from cowtree.operations import create  # noqa: PLC0415

        create.create(host, found, Request("inside"), create.Manner())
    lab.take("four")
    before = lab.names()
    with pytest.raises(Refused, match=r"'inside' of domain 'guest' in .*disk0\.three"):
        run(lab, Commit("vda", top=path(lab, "three"), deletes=True))
    assert lab.names() == before


def test_a_short_layer_in_the_middle_shows_zeroes_where_it_ends(tmp_path):
    lab = Lab(tmp_path / "lab")
    lab.write("vda", {131072: b"old"})
    base, short, top = (lab.folder / name for name in ("disk0.qcow2", "short.qcow2", "top.qcow2"))
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", short, "64k")
    qemu_img("create", "-q", "-f", "qcow2", "-b", short, "-F", "qcow2", top, "256k")
    with lab.at_work() as (host, found):
        domains.redefine(host.catalog, found.domain, found.definition.with_source("vda", str(top), "qcow2").text)
    before = lab.view()
    run(lab, Commit("vda", top=str(short), deletes=True))
    assert lab.view() == before
    assert chain_of(lab) == ["top.qcow2", "disk0.qcow2"]


class Stop(CowtreeError):
    """Enough."""


class Halting:
    """Lets a merge go on until so many bytes were moved."""

    def __init__(self, after_bytes):
        self.left_bytes = after_bytes

    def expect(self, more_bytes):
        """Ignore it."""

    def advance(self, moved_bytes):
        """Count down."""
        self.left_bytes -= moved_bytes
        if self.left_bytes < 0:
            raise Stop(reason="enough")


@pytest.mark.parametrize(
    "wanted",
    [Commit("vda", is_active=True), Commit("vda", top="vda[2]"), Pull("vda", base="vda[4]")],
)
def test_the_same_command_goes_on_and_readers_leave_it_alone(lab, wanted):
    before = lab.view()
    with pytest.raises(Stop):
        run(lab, wanted, Halting(0))
    (told,) = lab.settle()
    assert "was cut short at" in told
    assert lab.view().disks == before.disks
    lab.told.clear()
    run(lab, wanted)
    assert "it goes on" in lab.told[0]
    assert len(chain_of(lab)) < 4
    assert_kept(lab, before)


def test_another_command_completes_it_first(lab):
    before = lab.view()
    with pytest.raises(Stop):
        run(lab, Commit("vda", is_active=True), Halting(0))
    lab.told.clear()
    lab.take("four")
    assert lab.told == ["blockcommit of disk vda was cut short: it was completed"]
    assert chain_of(lab) == ["disk0.four", "disk0.qcow2"]
    assert lab.view().disks == before.disks


def test_a_pull_may_be_given_up_and_a_commit_may_not(lab):
    before = lab.view()
    with pytest.raises(Stop):
        run(lab, Pull("vda"), Halting(0))
    with lab.host() as host:
        merge.abort(host, NAME, "vda")
    assert lab.settle() == []
    assert lab.view() == before
    assert lab.names() == lab.needed()
    with pytest.raises(Stop):
        run(lab, Commit("vda", is_active=True), Halting(0))
    with lab.host() as host:
        with pytest.raises(Refused, match="has changed its base already"):
            merge.abort(host, NAME, "vda")
        merge.pivot(host, NAME, "vda")
        with pytest.raises(WrongUse, match="disk vda does not have an active block job"):
            merge.pivot(host, NAME, "vda")
    assert chain_of(lab) == ["disk0.qcow2"]
    assert_kept(lab, before)


def test_recover_may_have_completed_it_meanwhile(lab):
    from cowtree.images.history import History  # noqa: PLC0415
    from cowtree.images.wish import Manner, resume  # noqa: PLC0415

    before = lab.view()
    with pytest.raises(Stop):
        run(lab, Commit("vda", is_active=True), Halting(0))
    with lab.host() as host:
        domain = domains.find(host.catalog, NAME)
        (intent,) = (each for each in intents.found(host.catalog, domain) if each.verb == jobs.VERB)
        resume(LocalFiles(), intent.content["journal"], Manner(history=History(host.catalog.path, print)))
    with lab.at_work():
        pass
    assert chain_of(lab) == ["disk0.qcow2"]
    assert_kept(lab, before)


@pytest.mark.slow
@pytest.mark.parametrize(
    "wanted",
    [
        Commit("vda", is_active=True, deletes=True),
        Commit("vda", base="vda[3]", top="vda[2]"),
        Commit("vda", is_active=True, keeps_overlay=True),
        Pull("vda", base="vda[3]"),
    ],
)
def test_stopped_anywhere_names_and_files_agree(tmp_path, monkeypatch, wanted):
    lab = Lab(tmp_path / "small")
    for number, name in enumerate(("one", "two")):
        lab.take(name)
        lab.write("vda", {number * 65536: name.encode()})
    before = lab.view()
    stops = Stops(lab, tmp_path / "kept", lambda files: run(lab, wanted, files=files), monkeypatch)
    count = 0
    for where in stops.everywhere():
        lab.settle()
        assert lab.view().disks == before.disks, where
        with lab.at_work():
            pass
        assert_kept(lab, before)
        count += 1
    assert count > 20
