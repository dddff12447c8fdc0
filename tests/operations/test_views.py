"""What a merge makes of names, by picture: who shows afterwards what somebody showed, and who holds what he held."""

import pytest

from cowtree.catalog import domains, snapshots
from cowtree.catalog.snapshots import Held
from cowtree.images.wish import Wish, make_plan
from cowtree.operations import views
from cowtree.operations.views import Fate, Names
from cowtree.plan.family import Family, Member, Merge
from cowtree.storage.file import LocalFiles
from tests.lab import NAME, Lab

# base 0 <- one 1 <- two 2 <- top 3, and on two also 4.
LINE = Family(tuple(Member(name, "qcow2", 1, parent) for name, parent in zip("b12t", (None, 0, 1, 2), strict=True)))
FORK = Family((*LINE.members, Member("o", "qcow2", 1, 2)))


def follow(family, *acts, keeps=False):
    seen, places, _ = views.follow(family, acts, keeps=keeps)
    return [seen[index] for index in sorted(seen)], [places[index] for index in sorted(places)]


@pytest.mark.parametrize(
    ("family", "act", "keeps", "seen", "places"),
    [
        # A commit: the base shows what the top showed, and all between is gone.
        (LINE, Merge((2, 1, 0), 0, 0), False, [None, None, 0, 3], [0, 0, 0, 3]),
        # The same, but the top takes the base's name.
        (LINE, Merge((2, 1, 0), 2, 0), False, [None, None, 2, 3], [2, 2, 2, 3]),
        # An active commit, after which the overlay stays.
        (LINE, Merge((3, 2, 1, 0), 0, 0), True, [None, None, None, 3], [0, 1, 2, 3]),
        # A pull, whose files stay or go.
        (LINE, Merge((3, 2, 1), 3, 3), True, [0, 1, 2, 3], [0, 1, 2, 3]),
        (LINE, Merge((3, 2, 1), 3, 3), False, [0, None, None, 3], [0, 3, 3, 3]),
        # A pull into one of two: the other still needs what lies below.
        (FORK, Merge((3, 2), 3, 3), False, [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]),
        # A merge below a fork is seen by nobody above it.
        (FORK, Merge((2, 1), 1, 2), False, [0, None, 1, 3, 4], [0, 1, 1, 3, 4]),
    ],
)
def test_who_shows_what_and_who_holds_it(family, act, keeps, seen, places):
    assert follow(family, act, keeps=keeps) == (seen, places)


def test_acts_follow_each_other():
    pulls = (Merge((3, 2), 3, 3), Merge((4, 2), 4, 4))
    assert follow(FORK, *pulls) == ([0, 1, None, 3, 4], [0, 1, 4, 3, 4])


@pytest.fixture
def lab(tmp_path):
    lab = Lab(tmp_path / "lab")
    for name in ("one", "two", "three"):
        lab.take(name)
    return lab


def test_all_names_of_all_guests_are_mapped(lab):
    base, one, two = (str(lab.folder / f"disk0.{name}") for name in ("qcow2", "one", "two"))
    with lab.at_work() as (host, found):
        other = domains.add(host.catalog, "other", "6236e2e8-2923-40bb-ae9c-6483cf848ccc", found.definition.text)
        row = snapshots.find(host.catalog, found.domain, "one")
        snapshots.add(host.catalog, other, row._replace(parent=None), [Held("vda", "external", two, "qcow2", one)])
        planned = make_plan(host.files, Wish("commit", two, base))
        names = views.after(host, planned, "blockcommit")
        lost = [(loss.domain, loss.snapshot) for loss in views.losses(host, names)]
        views.apply(host, names)
        (held,) = snapshots.all_disks(host.catalog, other).values()
        assert held == [Held("vda", "external", base, "qcow2", base)]
        all_held = snapshots.all_disks(host.catalog, found.domain)
    assert sorted(lost) == [(NAME, "one"), (NAME, "two")]
    sources = [disks[0].source for disks in all_held.values()]
    assert sources == [base, one, base]
    assert [bool(disks[0].lost) for disks in all_held.values()] == [True, True, False]


def test_files_are_known_under_any_of_their_names(lab):
    with lab.at_work() as (host, found):
        link = lab.folder / "link"
        link.symlink_to("disk0.one")
        row = snapshots.find(host.catalog, found.domain, "two")
        snapshots.replace_disks(host.catalog, row.id, [Held("vda", "external", str(link), "qcow2")])
        planned = make_plan(host.files, Wish("commit", str(lab.folder / "disk0.two")))
        assert str(link) in {fate.path for fate in views.after(host, planned, "x").fates}


def test_internal_snapshots_go_with_their_file_and_lost_ones_stay_lost():
    fates = {"/old": Fate("/old", None, "", "/new"), "/seen": Fate("/seen", "/view", "raw", "/file")}
    names = Names((), (), "verb", 0)
    inside = Held("vda", "internal", "/old", "qcow2", internal_id="1")
    assert views._mapped(inside, fates, names).source == "/new"
    outside = Held("vda", "external", "/seen", "qcow2", "/old")
    assert views._mapped(outside, fates, names) == Held("vda", "external", "/view", "raw", "/new")
    gone = outside._replace(source="/old", lost="long ago")
    assert views._mapped(gone, fates, names).lost == "long ago"
    lost = views._mapped(gone._replace(lost=None), fates, names).lost
    assert lost is not None
    assert lost.startswith("merged into /new by verb on 19")


def test_what_is_ours_is_told_anew_when_names_change(lab):
    base, one, two, three = (str(lab.folder / f"disk0.{name}") for name in ("qcow2", "one", "two", "three"))
    family = Family(
        tuple(
            Member(path, "qcow2", 1, parent)
            for path, parent in zip((base, one, two, three), (None, 0, 1, 2), strict=True)
        )
    )
    with lab.host() as host:
        assert views._made(host, family, [Merge((2, 1), 1, 2)], keeps=False) == {one: False, two: True}
        assert views._made(host, family, [Merge((1, 0), 1, 0)], keeps=False) == {one: False, base: False}
        assert views._made(host, family, [Merge((3, 2, 1), 1, 1)], keeps=False) == {three: False, two: False}
        assert views._made(host, family, [Merge((3, 2), 3, 3)], keeps=True) == {}
        snapshots.note_made(host.catalog, two, LocalFiles().identity(two))
        views.apply(host, Names((), ((one, False), (two, True)), "verb", 0))
        assert snapshots.made(host.catalog, one) is None
        assert snapshots.made(host.catalog, two) == LocalFiles().identity(two)
