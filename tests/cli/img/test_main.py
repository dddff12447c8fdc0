"""How the subcommands of `cowtree img` are found, and how failures read."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from cowtree.cli.img.command import Given
from cowtree.cli.img.main import COMMANDS, complain
from cowtree.cli.main import main
from cowtree.errors import BrokenTable, CowtreeError, ImageLocked, MissingImage, StorageFailed, WrongUse
from tests.cli.img.differential import content_of, read_both, run_both, run_cowtree
from tests.cli.img.test_bad_input import CASES, Case
from tests.qemu import qemu_img, qemu_io

READING = ("info {}", "info -f qcow2 --output=json {}", "map -f qcow2 {}", "map -f qcow2 --output=json {}")
# What qemu-img does not answer: it follows the loop for ever.
ENDLESS = ("loop", "own child")


@pytest.mark.parametrize(
    "call", ["", "-T all", "nope", "-x", "--nope info", "--help=1", "-T", "info info", "--trace=x"]
)
def test_words_in_front_mean_what_they_mean_to_stock(zoo: Path, call: str):
    both = read_both(zoo, *call.split())
    both.assert_same_result()
    assert "Traceback" not in both.own.stderr


@pytest.mark.parametrize("program", ["qemu-img", "/usr/bin/qemu-img", "cowtree"])
def test_the_version_is_that_of_the_tool_it_stands_for(capsys: pytest.CaptureFixture[str], program: str):
    words = [program, "--version"] if program != "cowtree" else [program, "img", "-V"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("qemu-img version 7.2." if program != "cowtree" else "cowtree img version 7.2.")


@pytest.mark.parametrize("words", [["-h"], ["--help"], ["-h", "nope"]])
def test_help_names_every_subcommand(capsys: pytest.CaptureFixture[str], words: list[str]):
    assert main(["qemu-img", *words]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n  {name} " in printed for name in COMMANDS)
    assert printed.endswith("Supported formats: luks qcow2 raw vdi vhdx vmdk vpc\n")


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("word", ["-h", "--help"])
def test_every_subcommand_explains_itself(capsys: pytest.CaptureFixture[str], name: str, word: str):
    assert main(["cowtree", "img", name, word]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: cowtree img {name} [")
    assert "-h, --help" in printed


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (WrongUse(reason="No {such} thing"), "No {such} thing"),
        (
            BrokenTable(path="a", reason="it is torn", hint=""),
            "Could not open 'a': it is torn. Try: cowtree img check a",
        ),
        (
            MissingImage(path="a", reason="No such file"),
            "Could not open 'a': Could not open 'a': No such file. Try: see whether the name is right, and the folder",
        ),
        (
            MissingImage(path="b", reason="No such file", overlay="a{}"),
            "Could not open 'a{}': Could not open backing file: Could not open 'b': No such file. Try: put the file "
            "back, or name the right one: cowtree img rebase -u -b BASE -F FORMAT a{}",
        ),
        (
            ImageLocked(path="a", what='"write"'),
            "Could not open 'a': Failed to get \"write\" lock\nIs another process using the image [a]? Try: stop the "
            "guest that uses a, or read it with -U",
        ),
        (
            StorageFailed(path="a", action="create", reason="No space", hint="look"),
            "Could not create 'a': No space. Try: look",
        ),
        (
            StorageFailed(path="a", action="write", reason="No space", hint="look"),
            "a: write failed: No space. Try: look",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_failure_reads_as_with_qemu_img_and_says_what_to_do(
    capsys: pytest.CaptureFixture[str], error: CowtreeError, expected: str
):
    complain(Given("cowtree img", [], []), error)
    assert capsys.readouterr().err == f"cowtree img: {expected}\n"
    # Whoever calls it in the other's place compares what it says.
    complain(Given("qemu-img", [], []), error)
    text = capsys.readouterr().err
    assert text.startswith("qemu-img: ")
    assert " Try: " not in text
    assert expected.startswith(text.removeprefix("qemu-img: ").rstrip("\n"))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images that are sound."""
    folder = tmp_path_factory.mktemp("sound")
    qemu_img("create", "-q", "-f", "raw", folder / "base", "1M")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", folder / "middle")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "middle", "-F", "qcow2", folder / "top")
    qemu_io(folder / "middle", "write -P 1 0 200k")
    qemu_io(folder / "top", "write -P 2 0 300k")
    return folder


@pytest.fixture
def damaged(sound: Path, tmp_path: Path) -> Path:
    """A copy to do damage to."""
    folder = tmp_path / "damaged"
    subprocess.run(["cp", "-a", sound, folder], check=True)
    return folder


@pytest.mark.parametrize("call", READING)
@pytest.mark.parametrize("name", CASES)
def test_damage_is_named_when_it_is_met(damaged: Path, name: str, call: str):
    case: Case = CASES[name]
    case.damage(damaged)
    before = content_of(damaged)
    done = run_cowtree(damaged, *call.format(case.top).split())
    assert content_of(damaged) == before
    if done.status:
        assert done.status == 1
        assert case.sentence in done.stderr
        assert re.match("qemu-img: (Could not open|Backing file) '", done.stderr)
        assert done.stderr.count("\n") == 1
    else:
        # What is wrong lies in tables or in images that the call has no need to look at.
        assert not done.stderr
        assert call.startswith("info")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name not in ENDLESS])
def test_a_check_of_damage_ends_as_with_stock(damaged: Path, name: str):
    case: Case = CASES[name]
    case.damage(damaged)
    for way in ("", "-f qcow2", "--output=json"):
        read_both(damaged, "check", *way.split(), case.top).assert_same_result()


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_nothing_is_built_upon_damage_in_a_header(damaged: Path, tmp_path: Path, name: str):
    case: Case = CASES[name]
    case.damage(damaged)
    before = content_of(damaged)
    done = run_cowtree(damaged, "create", "-f", "qcow2", "-b", case.top, "-F", "qcow2", "new")
    if done.status:
        assert case.sentence in done.stderr
        assert content_of(damaged) == before
    else:
        (damaged / "new").unlink()
        assert content_of(damaged) == before
        run_both(damaged, tmp_path, "create", "-f", "qcow2", "-b", case.top, "-F", "qcow2", "new").assert_same_result()


@pytest.mark.parametrize("name", ENDLESS)
def test_a_loop_is_found_by_every_command_that_follows_it(damaged: Path, name: str):
    CASES[name].damage(damaged)
    for call in ("info --backing-chain top", "map top", "check top", "create -f qcow2 -b top -F qcow2 new"):
        done = run_cowtree(damaged, *call.split())
        assert done.status == 1, call
        assert "infinite loop" in done.stderr
        assert done.stdout == ""


def test_a_full_disk_and_a_reader_that_has_gone_are_no_reason_for_a_traceback(zoo: Path):
    command = [sys.executable, "-m", "cowtree", "img", "info", "v3.qcow2"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, cwd=zoo, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "cowtree img: output: No space left on device\n")
    words = " ".join([*command[:4], "map", "-f", "raw", "--output=json"])
    shell = f"({words} v3.qcow2; echo $? >&2) | true; {words} v3.qcow2 >&-"
    done = subprocess.run(["sh", "-c", shell], cwd=zoo, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr in ("141\n", "0\n")
