"""How virsh's verbs are found, and how they say what went wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

from cowtree.cli.domain.main import MODULES, find, overview
from tests.cli.running import Ran


@pytest.mark.parametrize("name", MODULES)
def test_each_verb_is_where_it_is_said_to_be(name: str, capsys: pytest.CaptureFixture[str]):
    assert find(name).name == name
    ran = Ran(capsys, name, "--help")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith(f"usage: cowtree {name} [--")


@pytest.mark.parametrize("name", MODULES)
def test_the_tables_are_such_as_virsh_would_take(name: str):
    options = find(name).options
    names = [option.name for option in options]
    assert len({*names}) == len(names)
    placed = [option for option in options if option.is_placed]
    # What is required comes first, and what takes all the rest last.
    assert [option.is_required for option in placed] == sorted((option.is_required for option in placed), reverse=True)
    assert not any(option.is_repeatable for option in placed[:-1])


def test_the_help_of_the_command_lists_them(capsys: pytest.CaptureFixture[str]):
    text = Ran(capsys, "--help").out
    for name, summary in overview():
        assert f"    {name:<20}{summary}\n" in text


def test_an_error_of_a_verb_follows_an_empty_line_and_one_of_words_does_not(capsys: pytest.CaptureFixture[str]):
    ran = Ran(capsys, "snapshot-create-as", "nosuchdom", "snap1", "snap1-desc")
    hint = "Try: cowtree list --all"
    assert (ran.status, ran.out, ran.err) == (23, "\n", f"error: failed to get domain 'nosuchdom'. {hint}\n")
    ran = Ran(capsys, "snapshot-list", "vm", "--foo")
    hint = "Try: cowtree snapshot-list --help"
    complaint = f"error: command 'snapshot-list' doesn't support option --foo. {hint}\n"
    assert (ran.status, ran.out, ran.err) == (2, "", complaint)


def test_no_control_character_reaches_the_terminal(capsys: pytest.CaptureFixture[str]):
    assert Ran(capsys, "domstate", "a\x1b[31mb").err.startswith("error: failed to get domain 'a\\x1b[31mb'")


def test_what_is_no_text_is_one_sentence(capsys: pytest.CaptureFixture[str]):
    ran = Ran(capsys, "domstate", "a\udcff")
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("error: value 'a\\xff' for <domain> option is not in UTF-8.")
    assert Ran(capsys, "define", "a\udcff").err.startswith("error: Failed to open file 'a\\xff': No such file")


def test_nothing_is_made_to_look_for_nothing(capsys: pytest.CaptureFixture[str], catalog: Path):
    for words in (["list", "--all"], ["snapshot-list", "vm"], ["undefine", "vm"], ["snapshot-create-as", "vm"]):
        Ran(capsys, *words)
    assert not catalog.parent.exists()


def test_verbs_of_images_load_none_of_them():
    words = (sys.executable, "-X", "importtime", "-m", "cowtree", "pool", "list", "--catalog", "/nowhere/x")
    loaded = subprocess.run(words, capture_output=True, text=True, check=False).stderr
    assert "cowtree.cli.domain.words" in loaded
    assert not any(f"cowtree.cli.domain.{module}\n" in loaded for module in {*MODULES.values()})
    assert "cowtree.operations" not in loaded
