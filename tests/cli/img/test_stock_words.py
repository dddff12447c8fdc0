"""What `qemu-img` itself says, to the letter: whoever calls cowtree by that name may compare all of it."""

import os
from pathlib import Path

import pytest

from tests.cli.img.differential import Both, read_both, run_both, run_cowtree
from tests.qemu import qemu_img, qemu_io

COMMANDS = ("info", "map", "check", "compare", "commit", "convert", "create", "rebase")
NAMES = {"compare": "disk disk", "convert": "disk out", "create": "-f qcow2 out 1M", "rebase": "-b base -F raw disk"}
WRONG_WORDS = (
    "--bogus",
    "--bogus=1 x",
    "-Z x",
    "--object",
    "-f",
    "--object help",
    "--object secret,help",
    "--object ?",
    "--object nothing,id=a {}",
    "--object secret,id=a {}",
    "--object secret,data=a {}",
    "--object secret,id=a,data=b --object secret,id=a,data=b {}",
    "{} -f nothing",
    "{} --output",
    "--image-opts=1 {}",
)
FAILURES = (
    "create -f qcow2 out -- -1",
    "create -f qcow2 -o size=-1k out",
    "create -f qcow2 -o size=many out",
    "create -f qcow2 -o refcount_bits=-1 out 1M",
    "rebase -f raw -b base -F raw base",
    "create -f qcow2 -o cluster_size=1kilobyte out 1M",
    "create -f qcow2 -b gone -F raw out",
    "create -f qcow2 -b gone -F raw out 1M",
    "create -f qcow2 -b gone out",
    "create -f qcow2 -b base -F qcow2 out",
    "create -f qcow2 -b a:b -F qcow2 out",
    "info a:b",
    "info file:a:b",
    "info gone",
    "info --backing-chain endless",
    "map -s x disk",
    "map packed",
    "convert -l snapshot.none=1 disk out",
    "convert -B base disk disk out",
    "convert -O qcow2 -B base disk out",
    "convert -S 3 disk out",
    "commit -b gone disk",
    "rebase -b other disk",
    "snapshot -a none disk",
    "snapshot -d none disk",
    "measure -l snapshot.none=1 -f qcow2 disk",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An overlay over a raw base, an image that backs itself, and one with a packed cluster."""
    place = tmp_path_factory.mktemp("folder")
    for name in ("base", "other"):
        qemu_img("create", "-q", "-f", "raw", place / name, "1M")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", place / "disk")
    qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", "endless", "-F", "qcow2", place / "endless", "1M")
    qemu_img("create", "-q", "-f", "qcow2", place / "packed", "1M")
    qemu_io(place / "packed", "write -c -P 1 0 64k")
    (place / "c:d").write_bytes(bytes(512))
    return place


@pytest.mark.parametrize("name", COMMANDS)
def test_words_that_make_no_sense_are_named_to_the_letter(folder: Path, name: str):
    for words in WRONG_WORDS:
        both = read_both(folder, name, *words.replace("{}", NAMES.get(name, "disk")).split())
        assert both.own == both.stock, both.words


@pytest.mark.parametrize("words", FAILURES)
def test_failures_are_told_to_the_letter(folder: Path, tmp_path: Path, words: str):
    assert_told_to_the_letter(run_both(folder, tmp_path, *words.split()))


def assert_told_to_the_letter(both: Both) -> None:
    assert (both.own.status, both.own.stderr) == (both.stock.status, both.stock.stderr.removesuffix("\n") + "\n")
    assert both.own.text == both.stock.text


def test_a_path_behind_file_is_shown_as_the_path_that_it_is(folder: Path):
    for words in (("info", "file:c:d"), ("map", "-f", "raw", "file:c:d"), ("check", "file:c:d")):
        both = read_both(folder, *words)
        assert (both.own.text, both.own.status) == (both.stock.text, both.stock.status)


ENCRYPTED = ("-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10")


def test_a_secret_is_read_once_for_a_pipe_can_be_read_only_once(tmp_path: Path):
    qemu_img("create", "-q", "-f", "raw", tmp_path / "disk", "1M")
    reader, writer = os.pipe()
    os.write(writer, b"abc")
    os.close(writer)
    secret = f"secret,id=s,file=/dev/fd/{reader}"
    made = run_cowtree(tmp_path, "convert", "--object", secret, "-O", "qcow2", *ENCRYPTED, "disk", "out")
    os.close(reader)
    assert made == (0, "", "")
    name = "driver=qcow2,encrypt.key-secret=s,file.filename=out"
    assert run_cowtree(tmp_path, "map", "--object", "secret,id=s,data=abc", "--image-opts", name).status == 0


@pytest.mark.slow
def test_an_overlay_needs_no_key_for_what_backs_it(tmp_path: Path):
    place = tmp_path / "folder"
    place.mkdir()
    qemu_img("create", "-q", "--object", "secret,id=s,data=abc", "-f", "qcow2", *ENCRYPTED, place / "locked", "1M")
    words = ("create", "-f", "qcow2", "-b", "locked", "-F", "qcow2", "out")
    both = run_both(place, tmp_path, *words)
    both.assert_same_result()
    assert both.own.stderr == both.stock.stderr


NO_FORMAT = (
    *("info -f= disk", "map -f= disk", "check -f= disk", "compare -f= disk disk", "compare -F= disk disk"),
    *("convert -f= disk out", "convert -O= disk out", "create -f= out 1M", "create -f qcow2 -b disk -F= out"),
    *("resize -f= disk 2M", "rebase -f= -u -b base -F raw disk", "rebase -u -b base -F= disk", "commit -f= disk"),
    *("dd -f= if=disk of=out", "dd -O= if=disk of=out", "measure -f= disk", "measure -O= disk"),
    *("bitmap -f= --add disk x", "amend -f= -o compat=1.1 disk", "bench -f= -c 1 disk"),
)


@pytest.mark.slow
@pytest.mark.parametrize("words", NO_FORMAT)
def test_an_empty_format_is_none_that_anybody_knows(folder: Path, tmp_path: Path, words: str):
    spelled = [part for word in words.split() for part in ((word[:-1], "") if word.endswith("=") else (word,))]
    assert_told_to_the_letter(run_both(folder, tmp_path, *spelled))
