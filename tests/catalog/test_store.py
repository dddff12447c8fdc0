"""The catalogue: what it keeps, what it refuses, who may write at once, and what a kill leaves."""

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cowtree.catalog import store
from cowtree.catalog.store import Merge, default_path, migrations, open_catalog
from cowtree.errors import CatalogError
from tests.rights import as_nobody

WRITER = """
import sys
from cowtree.catalog.store import open_catalog
with open_catalog(sys.argv[1]) as catalog:
    for number in range(int(sys.argv[3])):
        catalog.add_pool(f"/{sys.argv[2]}/{number}")
        print(number, flush=True)
"""


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "state" / "catalog.db")


@pytest.fixture
def catalog(path):
    with open_catalog(path, clock=iter(range(100, 1000)).__next__) as opened:
        yield opened


def write(path, name, count, **how):
    return subprocess.Popen([sys.executable, "-c", WRITER, path, name, str(count)], **how)


def test_pools_are_kept_in_order_and_each_once(catalog, path):
    assert [catalog.add_pool(each) for each in ("/b", "/a", "/b")] == [True, True, False]
    assert catalog.pools() == ["/a", "/b"]
    assert [catalog.remove_pool(each) for each in ("/a", "/a")] == [True, False]
    with open_catalog(path) as again:
        assert again.pools() == ["/b"]


def test_a_pool_may_have_any_name_that_a_folder_may_have(catalog):
    names = [os.fsdecode(b"/\xff\xfe"), "/a'; DROP TABLE pool; --", "/line\nbreak", "/ÿ"]
    for name in names:
        catalog.add_pool(name)
    assert sorted(catalog.pools()) == sorted(names)


def test_what_is_known_of_a_base_counts_for_its_link_only(catalog):
    overlay = (1 << 63, (1 << 64) - 1)
    assert catalog.recall_base(overlay, b"qcow2\0base") is None
    catalog.remember_base(overlay, b"qcow2\0base", b"\xff\0")
    assert catalog.recall_base(overlay, b"qcow2\0base") == b"\xff\0"
    assert catalog.recall_base(overlay, b"raw\0base") is None
    assert catalog.recall_base((1, 2), b"qcow2\0base") is None
    catalog.remember_base(overlay, b"raw\0base", b"new")
    assert catalog.recall_base(overlay, b"qcow2\0base") is None
    assert catalog.recall_base(overlay, b"raw\0base") == b"new"


def test_merges_are_remembered_and_the_last_one_that_was_not_undone_is_found(catalog):
    assert catalog.merges() == []
    first, second = catalog.begin_merge('{"a": 1}'), catalog.begin_merge("two")
    catalog.finish_merge(first)
    assert catalog.merges()[0] == Merge(second, "two", 101, None, None)
    catalog.mark_undone(second)
    assert catalog.merges()[0] == Merge(first, '{"a": 1}', 100, 102, None)
    catalog.mark_undone(first)
    assert catalog.merges() == []
    assert catalog.begin_merge("three") == second + 1


def test_what_is_known_of_a_merge_when_it_is_done_takes_the_place_of_its_plan(catalog):
    first, second = catalog.begin_merge("one"), catalog.begin_merge("two")
    catalog.finish_merge(first, "one, done")
    assert [(merge.id, merge.plan) for merge in catalog.merges()] == [(second, "two"), (first, "one, done")]
    catalog.mark_undone(second)
    assert [merge.id for merge in catalog.merges()] == [first]


def test_folder_and_file_are_for_nobody_else(catalog, path):
    catalog.add_pool("/a")
    assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700
    assert {stat.S_IMODE(each.stat().st_mode) for each in Path(path).parent.iterdir()} == {0o600}


def test_a_catalogue_is_made_only_when_something_is_to_be_kept(path):
    with open_catalog(path, creates=False) as catalog:
        assert catalog.pools() == []
    assert not os.path.exists(os.path.dirname(path))
    open_catalog(path).close()
    with open_catalog(path, creates=False) as catalog:
        assert catalog.add_pool("/a")
    with open_catalog(path) as catalog:
        assert catalog.pools() == ["/a"]


def test_the_place_follows_the_environment(tmp_path):
    assert default_path({"COWTREE_CATALOG": "x"}) == "x"
    with as_nobody() as folder:
        assert default_path({"XDG_STATE_HOME": str(folder)}) == f"{folder}/cowtree/catalog.db"
        assert default_path({}).endswith("/.local/state/cowtree/catalog.db")
    if os.geteuid() == 0:
        assert default_path({}) == "/var/lib/cowtree/catalog.db"


def test_what_is_written_is_durable_and_outlives_the_process(catalog):
    asked = {
        name: catalog._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")
    }
    assert asked == {"journal_mode": "wal", "synchronous": 2}


def damage(path, how):
    data = bytearray(Path(path).read_bytes())
    if how == "no database":
        data = bytearray(b"hello, this is a text and no database at all")
    elif how == "cut":
        del data[5000:]
    else:
        for at in range(100, len(data), 7):
            data[at] ^= 0x55
    Path(path).write_bytes(data)


def use_all(path):
    with open_catalog(path) as catalog:
        catalog.pools()
        catalog.add_pool("/new")
        catalog.merges()


@pytest.mark.parametrize("how", ["no database", "cut", "bits"])
def test_damage_is_one_sentence(path, how):
    with open_catalog(path) as catalog:
        for number in range(20):
            catalog.add_pool(f"/{number}" * 200)
    damage(path, how)
    with pytest.raises(CatalogError) as caught:
        use_all(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "aside" in caught.value.advice


def test_a_newer_catalogue_is_refused_and_kept(path):
    open_catalog(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {len(migrations()) + 1}")
    connection.close()
    before = Path(path).read_bytes()
    with pytest.raises(CatalogError, match="newer cowtree"):
        open_catalog(path)
    assert Path(path).read_bytes() == before


def test_the_database_of_another_program_is_refused_and_kept(tmp_path):
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE pool (x)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(CatalogError, match="another program"):
        open_catalog(str(path))
    assert path.read_bytes() == before


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(CatalogError, match="not a file"):
        open_catalog(str(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(CatalogError):
        open_catalog(str(tmp_path / "file" / "catalog.db"))


def test_a_folder_that_nobody_may_write_is_one_sentence():
    with as_nobody() as folder:
        path = folder / "catalog.db"
        open_catalog(str(path)).close()
        folder.chmod(0o500)
        path.chmod(0o400)
        with pytest.raises(CatalogError), open_catalog(str(path)) as catalog:
            catalog.add_pool("/a")
        with pytest.raises(CatalogError, match="Permission denied"):
            open_catalog(str(folder / "more" / "catalog.db"))
        folder.chmod(0o700)


def test_a_migration_that_was_stopped_is_run_again_whole(path, monkeypatch):
    open_catalog(path).close()
    more = [*migrations(), "CREATE TABLE more (x);\nCREATE TABLE pool (x);\n"]
    monkeypatch.setattr(store, "migrations", lambda: more)
    with pytest.raises(CatalogError, match="already exists"):
        open_catalog(path)
    more[-1] = "CREATE TABLE more (x);\n"
    with open_catalog(path) as catalog:
        catalog.add_pool("/a")
        assert catalog.read("SELECT count(*) FROM more") == [(0,)]


def test_several_processes_begin_and_write_at_once(path):
    writers = [write(path, name, 40, stdout=subprocess.DEVNULL) for name in "abcd"]
    assert [each.wait() for each in writers] == [0, 0, 0, 0]
    with open_catalog(path) as catalog:
        assert len(catalog.pools()) == 160


@pytest.mark.slow
def test_a_kill_leaves_all_that_was_reported_and_nothing_half(path):
    reported = set()
    for round_number in range(8):
        writer = write(path, f"r{round_number}", 100000, stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        lines = [writer.stdout.readline()] if round_number % 2 else []
        time.sleep(0.03 * round_number)
        writer.send_signal(signal.SIGKILL)
        lines += writer.stdout.readlines()
        writer.wait()
        writer.stdout.close()
        reported |= {f"/r{round_number}/{int(line)}" for line in lines if line.endswith("\n")}
        with open_catalog(path) as catalog:
            assert reported <= set(catalog.pools())
            assert catalog.read("PRAGMA integrity_check") == [("ok",)]
    assert reported
