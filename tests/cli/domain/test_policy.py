"""`cowtree policy` and `cowtree tidy`, as they are called and as they answer."""

import json

import pytest

from cowtree.catalog.store import open_catalog
from tests.cli.running import Ran
from tests.qemu import qemu_img, qemu_io

DAY_NS = 86_400 * 10**9


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *words: Ran(capsys, *words)


@pytest.fixture
def guest(run, tmp_path, catalog):
    """A guest with three external snapshots, one each day."""
    qemu_img("create", "-q", "-f", "qcow2", "disk.qcow2", "1M")
    assert run("adopt", "vm", "disk.qcow2").status == 0
    for number in range(3):
        source = "disk.qcow2" if number == 0 else f"disk.day{number - 1}"
        qemu_io(tmp_path / source, f"write -P {number + 1} 0 64k")
        assert run("snapshot-create-as", "vm", f"day{number}", "--disk-only").status == 0
        with open_catalog(str(catalog)) as opened:
            words = "UPDATE snapshot SET created_ns = ? WHERE name = ?"
            opened.change(words, (20_000 + number) * DAY_NS + DAY_NS // 2, f"day{number}")
    return "vm"


def test_a_policy_is_set_shown_replaced_and_removed(run, guest):
    assert run("policy", "set", guest, "--keep", "24h:7d:4w", "--max-depth", "5").out == ""
    assert run("policy", "show").out == "vm: --keep 24h:7d:4w --max-depth 5\n"
    assert run("policy", "set", guest, "--keep", "2d").status == 0
    shown = run("policy", "show", guest, "--output", "json")
    assert json.loads(shown.out) == [{"domain": "vm", "keep": "2d", "max_depth": None}]
    assert run("policy", "remove", guest).status == 0
    assert run("policy", "show").out == ""
    again = run("policy", "remove", guest)
    assert again.status == 15
    assert again.err == "cowtree: domain 'vm' has no policy. Try: cowtree policy set vm --keep 24h:7d:4w\n"


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (["set"], 2, "set needs a domain"),
        (["set", "vm"], 2, "set needs --keep or --max-depth, or both"),
        (["set", "vm", "--keep", "24x"], 2, "'24x' is no rule for what is kept: '24x' ends with none of"),
        (["set", "vm", "--keep", ""], 2, "'' is no rule for what is kept"),
        (["set", "vm", "--max-depth", "0"], 2, "a chain consists of 1 to 256 images, not of 0"),
        (["set", "vm", "--max-depth", "many"], 2, "invalid int value: 'many'"),
        (["set", "nobody", "--keep", "1d"], 23, "failed to get domain 'nobody'"),
        (["show", "nobody"], 23, "failed to get domain 'nobody'"),
        (["show", "--keep", "1d"], 2, "show takes no --keep and no --max-depth"),
        (["forget", "vm"], 2, "invalid choice: 'forget'"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(run, words, status, sentence):
    ran = run("policy", *words)
    assert ran.status == status
    assert sentence in ran.err
    assert ran.err.count("\n") == 1
    assert "Try: " in ran.err


def test_tidy_says_what_goes_and_why_and_then_it_goes(run, guest, tmp_path):
    run("policy", "set", guest, "--keep", "1d", "--max-depth", "2")
    trial = run("tidy", "--dry-run")
    assert trial.status == 0
    assert trial.out.splitlines() == [
        "domain 'vm': snapshot 'day0' would be deleted: no part of 1d keeps it",
        "domain 'vm': snapshot 'day1' would be deleted: no part of 1d keeps it",
        "domain 'vm': snapshot 'day2' stays: kept by 1d",
        "domain 'vm': disk vda is 4 images deep, would be 2: no deeper than 2",
    ]
    assert len([*tmp_path.glob("disk.*")]) == 4
    done = run("tidy", guest)
    assert done.out.splitlines() == [
        "domain 'vm': snapshot 'day0' is deleted: no part of 1d keeps it",
        "domain 'vm': snapshot 'day1' is deleted: no part of 1d keeps it",
        "domain 'vm': snapshot 'day2' stays: kept by 1d",
        "domain 'vm': disk vda is 2 images deep: no deeper than 2",
    ]
    assert (done.err, done.status) == ("", 0)
    assert len([*tmp_path.glob("disk.*")]) == 2
    qemu_io(tmp_path / "disk.day2", "read -P 3 0 64k")
    assert run("catalog", "check").out == "the catalogue and the disk agree\n"


def test_tidy_in_json(run, guest):
    run("policy", "set", guest, "--keep", "2d")
    (told,) = json.loads(run("tidy", "-n", "--output", "json").out)
    assert told["domain"] == "vm"
    assert [each["goes"] for each in told["snapshots"]] == [True, False, False]
    assert told["chains"] == []


def test_one_domain_that_cannot_be_tidied_does_not_keep_the_others_from_it(run, guest):
    run("policy", "set", guest, "--keep", "2d")
    ran = run("tidy", "nobody", guest)
    assert ran.status == 23
    assert "failed to get domain 'nobody'" in ran.err
    assert "snapshot 'day0' is deleted" in ran.out


def test_without_a_policy_there_is_nothing_to_tidy(run, guest):
    assert run("tidy").out == "no domain has a policy: cowtree policy set DOMAIN --keep 24h:7d:4w\n"
    ran = run("tidy", guest)
    assert ran.status == 15
    assert "domain 'vm' has no policy" in ran.err
