"""How cowtree's own verbs are found, and how their help reads."""

import subprocess
import sys

import pytest

from cowtree import __version__
from cowtree.cli.main import main
from cowtree.cli.verbs import VERBS, make_parser


@pytest.mark.parametrize("words", [["--help"], ["-h"], *([name, "--help"] for name in VERBS)])
def test_help_names_what_there_is(capsys: pytest.CaptureFixture[str], words: list[str]):
    assert main(["cowtree", *words]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.startswith("usage: cowtree ")
    for name in (*VERBS, "img") if len(words) == 1 else ("options:", "--help"):
        assert name in printed.out


def test_each_verb_says_what_it_does():
    text = make_parser().format_help()
    for summary in ("digest of what the guest sees", "family of images", "in the words of qemu-img"):
        assert summary in text


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]):
    assert main(["cowtree", "--version"]) == 0
    assert capsys.readouterr().out == f"cowtree {__version__}\n"


@pytest.mark.parametrize(
    ("columns", "most"), [("40", 38), ("100", 98), ("", 78), ("0", 78), ("wide", 78), ("9" * 5000, 78)]
)
def test_help_is_as_wide_as_the_terminal(columns: str, most: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(sys, "__stdout__", None)
    own = make_parser().format_help().partition("domains and snapshots")[0]
    assert most - 12 < max(map(len, own.splitlines())) <= most


def test_no_command_loads_what_packs_files():
    words = (sys.executable, "-X", "importtime", "-m", "cowtree", "pool", "--help")
    loaded = subprocess.run(words, capture_output=True, text=True, check=True).stderr
    assert "argparse" in loaded
    assert "shutil" not in loaded


def test_no_words_show_help_and_fail(capsys: pytest.CaptureFixture[str]):
    assert main(["cowtree"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == make_parser().format_help()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["merge"], "there is no verb 'merge'. Try: cowtree --help"),
        (["digset", "-h"], "there is no verb 'digset'. Try: cowtree --help"),
        (["--verbose"], "the following arguments are required: VERB. Try: cowtree --help"),
        (["--"], None),
        (["--", "img"], None),
        (["digest"], "the following arguments are required: IMAGE. Try: cowtree digest --help"),
        (
            ["digest", "-f", "vmdk", "a"],
            "argument -f/--format: invalid choice: 'vmdk' (choose from 'raw', 'qcow2'). Try: cowtree digest --help",
        ),
        (["tree", "--output", "xml"], None),
    ],
)
def test_wrong_words_get_one_sentence(capsys: pytest.CaptureFixture[str], words: list[str], sentence: str | None):
    assert main(["cowtree", *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("cowtree: ")
    if sentence is not None:
        assert printed.err == f"cowtree: {sentence}\n"
