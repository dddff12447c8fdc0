"""`cowtree img amend` of key slots beside qemu-img, of LUKS images and of those inside qcow2."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.img.differential import Result, run_cowtree, run_stock

pytestmark = pytest.mark.slow

NAMES = ("s", "t", "u")
SECRETS = tuple(
    word
    for name, text in zip(NAMES, ("one", "two", "three"), strict=True)
    for word in ("--object", f"secret,id={name},data={text}")
)
PREFIX = {"luks": "", "qcow2": "encrypt."}
# The secrets of the slots of each image.
IMAGES = {"one": "s", "two": "st", "same": "stt", "full": "suuuuuuu"}
OPTION = re.compile(r"(^|,)(?=[a-z])")
COUNT = re.compile(r"PBKDF iterations \d+.*")
ADD = "state=active,iter-time=1"
# Image, secret that opens it, words before the options, options.
ROWS = (
    ("one", "s", "", f"{ADD},new-secret=t"),
    ("one", "s", "--force", f"{ADD},new-secret=t"),
    ("one", "s", "-p", f"{ADD},new-secret=t,keyslot=6"),
    ("one", "s", "", f"{ADD},new-secret=t,keyslot=7"),
    ("one", "s", "", f"{ADD},new-secret=s"),
    ("one", "s", "-q", "state=active,new-secret=t,iter-time=0"),
    ("one", "s", "", "state=active,new-secret=t,iter-time=0x10"),
    ("one", "s", "", f"{ADD},new-secret=nobody"),
    ("one", "s", "", ADD),
    ("one", "s", "", f"{ADD},new-secret=t,old-secret=s"),
    ("one", "s", "", f"{ADD},old-secret=s"),
    ("one", "s", "", f"{ADD},new-secret=t,keyslot=0"),
    ("one", "s", "", f"{ADD},new-secret=nobody,keyslot=0"),
    ("one", "s", "--force", f"{ADD},new-secret=t,keyslot=0"),
    ("one", "s", "--force", f"{ADD},new-secret=s,keyslot=0"),
    ("two", "t", "--force", f"{ADD},new-secret=u,keyslot=0"),
    ("two", "t", "--force", f"{ADD},new-secret=u,keyslot=1"),
    ("full", "s", "--force", f"{ADD},new-secret=t,keyslot=0"),
    ("full", "s", "--force", f"{ADD},new-secret=t,keyslot=7"),
    ("full", "s", "", f"{ADD},new-secret=t"),
    ("full", "s", "--force", f"{ADD},new-secret=t"),
    ("one", "s", "", f"{ADD},new-secret=t,keyslot=8"),
    ("one", "s", "--force", f"{ADD},new-secret=t,keyslot=8"),
    ("one", "s", "", f"{ADD},new-secret=t,keyslot=-1"),
    ("one", "s", "", f"{ADD},new-secret=t,keyslot=x"),
    ("one", "s", "", f"{ADD},new-secret=t,keyslot=1k"),
    ("one", "s", "", f"{ADD},new-secret=t,keyslot=18446744073709551615"),
    ("one", "s", "", f"{ADD},new-secret=t,keyslot=18446744073709551616"),
    ("one", "s", "", "state=active,new-secret=t,iter-time=x"),
    ("one", "s", "", "state=active,new-secret=t,iter-time=-5"),
    ("one", "s", "", "state=active,new-secret=t,iter-time=1000000000000"),
    ("one", "s", "", "new-secret=t"),
    ("one", "s", "", "state=on,new-secret=t"),
    ("one", "s", "", "state=inactive,state=active,new-secret=t,iter-time=1"),
    ("one", "s", "", "state=inactive"),
    ("one", "s", "--force", "state=inactive"),
    ("one", "s", "", "state=inactive,old-secret=s"),
    ("one", "s", "", "state=inactive,old-secret=t"),
    ("one", "s", "", "state=inactive,old-secret=nobody"),
    ("one", "s", "", "state=inactive,keyslot=0"),
    ("one", "s", "", "state=inactive,keyslot=1"),
    ("one", "s", "", "state=inactive,keyslot=9"),
    ("one", "s", "", "state=inactive,keyslot=-1"),
    ("one", "s", "", "state=inactive,keyslot=0,old-secret=t"),
    ("one", "s", "", "state=inactive,keyslot=1,old-secret=s"),
    ("one", "s", "", "state=inactive,keyslot=0,old-secret=s"),
    ("one", "s", "", "state=inactive,keyslot=0,new-secret=t"),
    ("one", "s", "", "state=inactive,keyslot=0,iter-time=1"),
    ("one", "s", "--force", "state=inactive,keyslot=0"),
    ("one", "s", "--force", "state=inactive,keyslot=1"),
    ("one", "s", "--force", "state=inactive,old-secret=s"),
    ("one", "s", "--force", "state=inactive,old-secret=t"),
    ("two", "s", "", "state=inactive,keyslot=1"),
    ("two", "s", "", "state=inactive,keyslot=0"),
    ("two", "s", "-p", "state=inactive,old-secret=t"),
    ("two", "t", "", "state=inactive,old-secret=t"),
    ("two", "s", "", "state=inactive,keyslot=1,old-secret=t"),
    ("two", "s", "", "state=inactive,keyslot=1,old-secret=s"),
    ("same", "s", "", "state=inactive,old-secret=t"),
    ("same", "t", "", "state=inactive,old-secret=t"),
    ("one", "u", "", f"{ADD},new-secret=t"),
    ("one", "", "", f"{ADD},new-secret=t"),
    ("one", "nobody", "", f"{ADD},new-secret=t"),
    ("one", "s", "", "state=active,secret=s"),
    ("one", "s", "", "state=active,cipher-alg=aes-256"),
)


def opened(image_format: str, secret: str) -> str:
    key = f",{PREFIX[image_format]}key-secret={secret}" if secret else ""
    return f"driver={image_format},file.filename=image{key}"


def spelled(image_format: str, options: str) -> str:
    return OPTION.sub(rf"\1{PREFIX[image_format]}", options)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All images in both formats. Each key costs qemu-img a second, so that we make them."""
    folder = tmp_path_factory.mktemp("images")
    for image_format, prefix in PREFIX.items():
        for name, slots in IMAGES.items():
            start = spelled(image_format, "key-secret=s,iter-time=1") + (",encrypt.format=luks" if prefix else "")
            words = ("create", "-q", *SECRETS, "-f", image_format, "-o", start, "image", "1M")
            assert run_cowtree(folder, *words).status == 0
            for secret in slots[1:]:
                more = spelled(image_format, f"{ADD},new-secret={secret}")
                words = ("amend", *SECRETS, "--image-opts", "-o", more, opened(image_format, "s"))
                assert run_cowtree(folder, *words).status == 0
            (folder / "image").rename(folder / f"{name}.{image_format}")
    return folder


def openers(run: Callable[..., Result], folder: Path, image_format: str) -> list[str]:
    """The secrets by which a program opens the image."""
    words = ("map", *SECRETS, "--image-opts")
    return [each for each in NAMES if run(folder, *words, opened(image_format, each)).status == 0]


def active_slots(folder: Path) -> list[bool]:
    text = run_stock(folder, "info", "image").stdout
    return [each == "true" for each in re.findall(r"active: (true|false)", text)]


# Some rows are tried with the other format, too.
TRIED = [(("luks", "qcow2")[number % 2], row) for number, row in enumerate(ROWS)]
TRIED += [(("qcow2", "luks")[number % 2], row) for number, row in enumerate(ROWS) if number % 4 == 0]


@pytest.mark.parametrize(("image_format", "row"), TRIED)
def test_keys_change_as_those_of_qemu(
    tmp_path: Path, images: Path, image_format: str, row: tuple[str, str, str, str]
) -> None:
    image, secret, before, options = row
    words = ("amend", *SECRETS, *before.split(), "--image-opts", "-o", spelled(image_format, options))
    folders = [tmp_path / each for each in ("stock", "own")]
    for folder in folders:
        folder.mkdir()
        shutil.copy(images / f"{image}.{image_format}", folder / "image")
    expected = run_stock(folders[0], *words, opened(image_format, secret))
    found = run_cowtree(folders[1], *words, opened(image_format, secret))
    assert (found.status, found.stdout) == (expected.status, expected.stdout), (expected, found)
    if expected.status:
        first = COUNT.sub("PBKDF iterations", expected.stderr.splitlines()[0])
        assert COUNT.sub("PBKDF iterations", found.stderr).startswith(first.removesuffix(".")), (expected, found)
        assert (folders[1] / "image").read_bytes() == (images / f"{image}.{image_format}").read_bytes()
        return
    assert found.stderr == ""
    assert active_slots(folders[1]) == active_slots(folders[0])
    # Each program opens what the other one made.
    assert openers(run_stock, folders[1], image_format) == openers(run_cowtree, folders[0], image_format)
    if image_format == "qcow2":
        assert_untouched(folders[1] / "image", images / f"{image}.{image_format}")


def assert_untouched(image: Path, before: Path) -> None:
    """Fail unless all that lies before the header of the encryption is as it was."""
    old, new = before.read_bytes(), image.read_bytes()
    assert len(new) == len(old)
    start = old.index(b"LUKS\xba\xbe")
    assert new[:start] == old[:start]


@pytest.mark.parametrize("words", ["-f luks -o help", "-o help -f qcow2", "-f luks -o state=active,help image"])
def test_help_is_that_of_qemu(tmp_path: Path, words: str) -> None:
    assert run_cowtree(tmp_path, "amend", *words.split()) == run_stock(tmp_path, "amend", *words.split())


@pytest.mark.parametrize("options", ["encrypt.state=foo", "compat=0.9,encrypt.state=active", "state=active"])
def test_an_image_without_encryption_has_no_slots(tmp_path: Path, options: str) -> None:
    run_stock(tmp_path, "create", "-q", "-f", "qcow2", "image", "1M")
    results = [run(tmp_path, "amend", "-o", options, "image") for run in (run_stock, run_cowtree)]
    assert results[0].status == results[1].status == 1
    assert results[1].stderr.startswith(results[0].stderr.rstrip("\n"))


def test_a_slot_number_of_more_than_32_bits_is_no_slot(tmp_path: Path, images: Path) -> None:
    shutil.copy(images / "one.luks", tmp_path / "image")
    words = ("amend", *SECRETS, "--image-opts", "-o", f"{ADD},new-secret=t,keyslot=4294967297", opened("luks", "s"))
    found = run_cowtree(tmp_path, *words)
    assert found.status == 1
    assert found.stderr.startswith("qemu-img: Invalid keyslot 4294967297 specified, must be between 0 and 7")


def test_keys_and_other_things_change_together(tmp_path: Path, images: Path) -> None:
    shutil.copy(images / "one.qcow2", tmp_path / "image")
    options = spelled("qcow2", f"{ADD},new-secret=t") + ",refcount_bits=8,size=2M"
    found = run_cowtree(tmp_path, "amend", *SECRETS, "--image-opts", "-o", options, opened("qcow2", "s"))
    assert found == (0, "", "")
    assert openers(run_stock, tmp_path, "qcow2") == openers(run_cowtree, tmp_path, "qcow2") == ["s", "t"]
    described = run_stock(tmp_path, "info", "image").stdout
    assert "refcount bits: 8" in described
    assert "2 MiB" in described
    words = ("check", *SECRETS, "--image-opts", opened("qcow2", "t"))
    assert run_stock(tmp_path, *words).status == 0
