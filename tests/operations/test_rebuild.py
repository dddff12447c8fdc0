"""A catalogue that is lost comes back from the images; one that is there stays as it is and learns the rest."""

import os
import random
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

import pytest

from cowtree.catalog import domains, intents, snapshots
from cowtree.domain import definition
from cowtree.domain.moment import DiskRequest
from cowtree.errors import MissingImage, Refused, WrongUse
from cowtree.images import snapshot as inside
from cowtree.images.create import create as create_image
from cowtree.operations import delete
from cowtree.operations.check import check
from cowtree.operations.rebuild import rebuild
from cowtree.plan.create import NewImage
from cowtree.qcow2.moment import Moment
from cowtree.storage.file import LocalFiles
from tests.lab import DISK_BYTES, NAME, Lab
from tests.qemu import qemu_img, qemu_io


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path / "lab", disk_count=2)


def lose(lab):
    shutil.rmtree(lab.folder / "state")


def run(lab, is_trial=False):
    with lab.host() as host:
        return [each.replace(f"{lab.folder}/", "") for each in rebuild(host, [str(lab.folder)], is_trial=is_trial)]


def tree(lab):
    """All snapshots: the parent of each, whether it is a tip, and what it holds where."""
    with lab.host() as host:
        domain = domains.find(host.catalog, NAME)
        found = [snapshots.get(host.catalog, row.id) for row in snapshots.rows(host.catalog, domain)]
        names = {each.id: each.name for each in found}
        held = snapshots.all_disks(host.catalog, domain)
        rows = {
            each.name: (
                names.get(each.parent or 0),
                each.is_tip,
                each.description,
                [(disk.target, disk.mode, Path(disk.source).name) for disk in held[each.id]],
            )
            for each in found
        }
        return rows, names.get(domain.current or 0)


def agree(lab):
    with lab.host() as host:
        return check(host).differences


def test_a_lost_catalogue_comes_back_with_branches_names_and_owners(lab):
    lab.take("first")
    lab.write("vda", {0: b"one"})
    lab.take("second")
    lab.write("vdb", {512: b"two"})
    lab.revert("first")
    lab.write("vda", {0: b"branch"})
    before, view, sources = tree(lab), lab.view(), lab.sources()
    with lab.host() as host:
        made = snapshots.all_made(host.catalog)
        times = {row.name: row.created_ns for row in rows(host) if not snapshots.get(host.catalog, row.id).is_tip}
    lose(lab)
    told = run(lab)
    assert (tree(lab), lab.view(), lab.sources()) == (before, view, sources)
    with lab.host() as host:
        assert snapshots.all_made(host.catalog) == made
        assert times.items() <= {row.name: row.created_ns for row in rows(host)}.items()
    assert told[0].startswith("domain 'guest': it is made anew, for 6 images tell of it")
    assert any("disk vda goes on in disk0.first-1, the end of 2 that belongs to" in each for each in told)
    assert agree(lab) == ()
    assert run(lab) == []
    lab.revert("second-tip")
    assert lab.view().disks["vdb"][512:515] == b"two"
    assert lab.needed() == lab.names()


def rows(host):
    return snapshots.rows(host.catalog, domains.find(host.catalog, NAME))


def test_a_trial_says_the_same_and_notes_nothing(lab):
    lab.take("first")
    lose(lab)
    told = run(lab, is_trial=True)
    with lab.host() as host:
        assert domains.everyone(host.catalog) == []
    assert run(lab) == told
    assert told[-1] == "domain 'guest': noted as made by cowtree: disk0.first, disk1.first"


def test_what_the_catalogue_knows_stays_and_only_the_rest_is_added(lab):
    lab.take("first")
    lab.take("second")
    with lab.host() as host:
        domain = domains.find(host.catalog, NAME)
        second = snapshots.find(host.catalog, domain, "second")
        snapshots.describe(host.catalog, second, name="renamed", description="by hand")
        snapshots.remove(host.catalog, snapshots.find(host.catalog, domain, "first"))
    told = run(lab)
    found, current = tree(lab)
    assert found["first"][3] == [("vda", "external", "disk0.qcow2"), ("vdb", "external", "disk1.qcow2")]
    assert found["renamed"][2] == "by hand"
    assert (sorted(found), current) == (["first", "renamed"], "renamed")
    assert told == ["domain 'guest': snapshot 'first': vda in disk0.qcow2, vdb in disk1.qcow2"]


def test_internal_snapshots_become_one_row_for_all_disks(lab):
    lab.take("outer")
    lab.take("inner", is_disk_only=False)
    before = tree(lab)
    lose(lab)
    run(lab)
    found, current = tree(lab)
    assert found["inner"][3] == before[0]["inner"][3]
    assert (found["inner"][0], current) == ("outer", "inner")
    with lab.host() as host:
        assert snapshots.find(host.catalog, domains.find(host.catalog, NAME), "inner").is_found
    assert agree(lab) == ()
    with lab.at_work() as (host, found_guest):
        delete.delete(host, found_guest, [snapshots.find(host.catalog, found_guest.domain, "inner")])
    assert agree(lab) == ()


def test_what_was_copied_out_of_an_internal_snapshot_is_still_the_domains(lab):
    lab.take("inner", is_disk_only=False)
    lab.take("outer")
    lab.write("vda", {0: b"more"})
    lab.revert("inner")
    lab.write("vda", {0: b"copied"})
    before, sources = lab.view(), lab.sources()
    assert sources["vda"] == str(lab.folder / "disk0.inner-1")
    lose(lab)
    run(lab)
    assert (lab.sources(), lab.view().disks) == (sources, before.disks)
    assert lab.view().snapshots["outer"] == before.snapshots["outer"]
    assert agree(lab) == ()


def test_an_internal_snapshot_that_a_known_domain_did_not_know_is_added(lab):
    inside.create(LocalFiles(), lab.sources()["vda"], name="strange")
    assert run(lab) == [
        "domain 'guest': snapshot 'strange': vda in disk0.qcow2",
        "domain 'guest': the disks lie on snapshot 'strange'",
    ]
    assert agree(lab) == ()


def test_a_name_that_was_merged_away_is_not_believed(lab):
    lab.take("first")
    lab.write("vda", {0: b"one"})
    lab.take("second")
    lab.write("vda", {0: b"two"})
    # Another tool takes the middle away.
    qemu_img("rebase", "-b", lab.folder / "disk0.qcow2", "-F", "qcow2", lab.folder / "disk0.second")
    before = lab.view().disks
    (lab.folder / "disk0.first").unlink()
    lose(lab)
    told = run(lab)
    found, _ = tree(lab)
    assert (
        "domain 'guest': disk0.second was made for snapshot 'second', and its base was "
        "merged or changed since: what lies below it is kept as 'disk0.qcow2'"
    ) in told
    assert found["disk0.qcow2"][3] == [("vda", "external", "disk0.qcow2")]
    assert found["second"][3] == [("vdb", "external", "disk1.first")]
    assert lab.view().disks == before


@pytest.mark.parametrize("method", ["commit", "pull"])
def test_after_our_own_merges_every_name_is_told_that_is_left(lab, method):
    for name in ("first", "second", "third"):
        lab.take(name)
        lab.write("vda", {0: name.encode()})
    for name in ("second", "first"):
        with lab.at_work() as (host, found):
            delete.delete(host, found, [snapshots.find(host.catalog, found.domain, name)], method)
    before, sources = lab.view(), lab.sources()
    rows_before = {name: row[0] for name, row in tree(lab)[0].items()}
    lose(lab)
    told = run(lab)
    assert lab.sources() == sources
    assert lab.view() == before
    assert {name: row[0] for name, row in tree(lab)[0].items()} == rows_before == {"third": None}
    assert not any("merged" in each for each in told)
    with lab.host() as host:
        assert {*snapshots.all_made(host.catalog)} >= {*sources.values()}


def test_a_copy_belongs_to_nobody_and_is_never_ours(lab):
    lab.take("first")
    copy = lab.folder / "backup"
    shutil.copy(lab.folder / "disk0.first", copy)
    lose(lab)
    told = run(lab)
    assert lab.told[-1] == f"{copy} is a copy of {lab.folder}/disk0.first: it belongs to nobody"
    assert lab.sources()["vda"] == str(lab.folder / "disk0.first")
    with lab.host() as host:
        assert str(copy) not in snapshots.all_made(host.catalog)
    assert not any("backup" in each for each in told)


def test_a_file_that_was_moved_is_the_domains_and_not_ours_to_remove(lab):
    lab.take("first")
    (lab.folder / "disk0.first").rename(lab.folder / "moved")
    lose(lab)
    run(lab)
    assert lab.sources()["vda"] == str(lab.folder / "moved")
    with lab.host() as host:
        assert [*snapshots.all_made(host.catalog)] == [str(lab.folder / "disk1.first")]


def test_the_moment_stays_when_qemu_writes_the_header(lab):
    lab.take("first")
    active = Path(lab.sources()["vda"])
    qemu_io(active, "write -P 7 0 64k")
    qemu_img("resize", "-q", active, "1M")
    qemu_img("snapshot", "-c", "theirs", active)
    lose(lab)
    run(lab)
    found, current = tree(lab)
    assert found["first"][3][0] == ("vda", "external", "disk0.qcow2")
    assert (found["theirs"][0], current) == ("first", "theirs")


def test_a_domain_of_that_name_that_is_another_one_keeps_its_name(lab):
    lab.take("first")
    lose(lab)
    with lab.host() as host:
        other = "00000000-0000-0000-0000-0000000000ff"
        made = definition.make(NAME, other, [])
        domains.add(host.catalog, NAME, other, made.text)
    run(lab)
    with lab.host() as host:
        assert [each.name for each in domains.everyone(host.catalog)] == [NAME, f"{NAME}-00000000"]


def test_a_disk_that_is_gone_goes_on_in_what_was_written_last(lab):
    lab.take("first")
    lab.write("vda", {0: b"one"})
    lab.revert("first")
    (lab.folder / "disk0.first-1").unlink()
    told = run(lab)
    assert lab.sources()["vda"] == str(lab.folder / "disk0.first")
    assert "domain 'guest': disk vda goes on in disk0.first" in told


def test_a_snapshot_that_had_lost_its_content_holds_it_again(lab):
    lab.take("first")
    before = tree(lab)
    with lab.host() as host:
        held = snapshots.disks(host.catalog, 1)
        snapshots.replace_disks(
            host.catalog, 1, [held[0]._replace(lost="merged away"), held[1]._replace(source="/gone")]
        )
    told = run(lab)
    assert told == [
        "domain 'guest': snapshot 'first' holds disk vda again: disk0.qcow2",
        "domain 'guest': snapshot 'first' holds disk vdb again: disk1.qcow2",
    ]
    assert tree(lab) == before
    assert agree(lab) == ()


def test_a_definition_that_names_what_lies_below_is_kept_and_told(lab):
    with lab.host() as host:
        before = domains.find(host.catalog, NAME).xml
    lab.take("first")
    with lab.host() as host:
        domain = domains.find(host.catalog, NAME)
        domains.remove(host.catalog, domain)
        domains.add(host.catalog, NAME, domain.uuid, before)
    told = run(lab)
    assert "domain 'guest': disk vda is disk0.qcow2, though disk0.first lies on it, which was made later" in told
    assert lab.sources()["vda"] == str(lab.folder / "disk0.qcow2")


def test_a_definition_that_cannot_be_read_is_again_that_of_the_last_snapshot(lab):
    lab.take("first")
    lab.take("second", DiskRequest("vdb", "no"), is_disk_only=True)
    sources = lab.sources()
    with lab.host() as host:
        host.catalog.change("UPDATE domain SET xml = '<x'")
    told = run(lab)
    assert told[0].endswith("it is again the one of snapshot 'second'")
    assert lab.sources() == sources
    assert agree(lab) == ()


def test_a_definition_that_cannot_be_read_leaves_the_domain_out_when_there_is_none(lab):
    with lab.host() as host:
        host.catalog.change("UPDATE domain SET xml = '<x'")
    with pytest.raises(Refused, match="what the images tell of a domain was left out"):
        run(lab)
    assert "is left out: XML error" in lab.told[0]


def test_a_domain_with_something_begun_is_left_alone(lab):
    lab.take("first")
    with lab.host() as host:
        domain = domains.find(host.catalog, NAME)
        snapshots.remove(host.catalog, snapshots.find(host.catalog, domain, "first"))
        intents.begin(host.catalog, domain, "remove", {"paths": []})
    (told,) = run(lab)
    assert "something was begun with it and did not end" in told
    assert tree(lab)[0] == {}


def forge(lab, file, base, **fields):
    """An overlay that says what somebody wants it to say."""
    moment = Moment(NAME, str(uuid.UUID(int=1)), "vda", "first", "", "", 5_000, 5_000, path=str(lab.folder / file))
    base = str(lab.folder / base)
    new = NewImage(moment.path, "qcow2", DISK_BYTES, backing_file=base, backing_format="qcow2")
    create_image(LocalFiles(), new._replace(moment=moment._replace(**fields)))


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "fi/rst"},
        {"name": "\x1b[31m"},
        {"parent": ".."},
        {"domain": "gu/est"},
        {"domain": ""},
        {"uuid": "zz"},
        {"uuid": ""},
        {"target": "v/a"},
        {"target": ""},
    ],
    ids=str,
)
def test_hostile_texts_are_told_and_not_noted(lab, fields):
    lose(lab)
    forge(lab, "forged", "disk0.qcow2", **fields)
    told: list[str] = []
    try:
        told += run(lab)
    except Refused as error:
        told += [str(error), *lab.told]
        assert "what the images tell of a domain was left out" in told[0]
    assert any(each.startswith("domain ") for each in told)
    with lab.host() as host:
        assert domains.everyone(host.catalog) == []


def test_a_long_time_and_a_strange_base_are_no_trouble(lab):
    lose(lab)
    forge(lab, "forged", "disk0.qcow2", created_ns=(1 << 63) - 1, made_ns=(1 << 63) - 1)
    forge(lab, "again", "forged", name="second", parent="nothing")
    told = run(lab)
    assert any("the parent of 'second' was 'nothing', which is not known: it is 'first'" in each for each in told)
    assert {name: row[0] for name, row in tree(lab)[0].items()} == {"first": None, "second": "first"}


def test_two_files_cannot_be_one_snapshot(lab):
    lose(lab)
    forge(lab, "forged", "disk0.qcow2")
    forge(lab, "again", "disk1.qcow2")
    told = run(lab)
    assert any("are both said to be 'first'" in each for each in told)
    assert len(tree(lab)[0]) == 3


def test_parents_that_lead_in_a_ring_are_cut(lab):
    lose(lab)
    forge(lab, "forged", "disk0.qcow2", parent="other")
    forge(lab, "again", "forged", name="other", parent="first")
    told = run(lab)
    assert any("lead back to itself: it has none" in each for each in told)
    assert sorted(tree(lab)[0]) == ["first", "other"]


def test_damaged_headers_are_told_of_and_never_raised(lab, seed):
    lab.take("first")
    lab.take("inner", is_disk_only=False)
    lose(lab)
    source = random.Random(seed)
    for name in ("disk0.first", "disk1.first"):
        path = lab.folder / name
        data = bytearray(path.read_bytes())
        start = source.choice([0, data.index(b"cowm"), len(data) - 4096])
        for _ in range(source.randint(1, 12)):
            data[min(start + source.randrange(300), len(data) - 1)] = source.randrange(256)
        path.write_bytes(data)
    with suppress(Refused):
        run(lab)
    with lab.host() as host:
        check(host)


def test_whoever_names_no_folder_and_has_none_is_told(tmp_path):
    lab = Lab(tmp_path / "lab")
    lose(lab)
    with lab.host() as host:
        with pytest.raises(WrongUse, match="no folder is named"):
            list(rebuild(host, []))
        with pytest.raises(MissingImage):
            list(rebuild(host, [os.path.join(tmp_path, "nowhere")]))


@pytest.mark.slow
def test_after_any_history_no_name_stands_for_another_content(tmp_path, seed):
    source, lab = random.Random(seed), Lab(tmp_path / "lab", disk_count=2)
    for step in range(10):
        lab.write(source.choice(["vda", "vdb"]), {512 * source.randrange(8): bytes([65 + step]) * 512})
        with lab.host() as host:
            names = [row.name for row in rows(host)]
        if not names or source.random() < 0.5:
            lab.take(f"s{step}", is_disk_only=source.random() < 0.7)
        elif source.random() < 0.6:
            lab.revert(source.choice(names))
        else:
            with suppress(Refused), lab.at_work() as (host, found):
                delete.delete(host, found, [snapshots.find(host.catalog, found.domain, source.choice(names))])
    for target in ("vda", "vdb"):
        lab.write(target, {0: b"last"})
    before, sources = lab.view(), lab.sources()
    lose(lab)
    run(lab)
    with lab.host() as host:
        if not domains.everyone(host.catalog):
            # All was merged into files that others made: no image tells of anything.
            assert not any("." + name in path for path in sources.values() for name in before.snapshots)
            return
    now = lab.view()
    assert lab.sources() == sources
    assert now.disks == before.disks
    for name, shown in now.snapshots.items():
        for target, content in shown.items():
            if target in before.snapshots.get(name, {}) and "tip" not in name:
                assert content == before.snapshots[name][target], (name, target)
    assert [each for each in agree(lab) if each.kind != "stranger"] == []
    assert run(lab) == []
