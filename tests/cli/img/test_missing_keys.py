"""Encrypted images without a key, with a wrong one and with the right one: each subcommand beside qemu-img."""

import shutil
from pathlib import Path

import pytest

from tests.cli.img.differential import run_cowtree, run_stock

pytestmark = pytest.mark.slow

SECRETS = ("--object", "secret,id=s,data=one", "--object", "secret,id=w,data=two")
PREFIX = {"luks": "", "qcow2": "encrypt."}
# IMAGE stands for the image.
CALLS = (
    *("check IMAGE", "check --output=json IMAGE", "check -r leaks IMAGE", "check -U IMAGE"),
    *("map IMAGE", "map --output=json IMAGE", "info IMAGE", "info --output=json IMAGE"),
    *("snapshot -l IMAGE", "snapshot -U -l IMAGE", "snapshot IMAGE", "snapshot -c new IMAGE"),
    *("snapshot -a old IMAGE", "snapshot -d old IMAGE", "snapshot -d none IMAGE"),
    *("bitmap --add IMAGE new", "bitmap --remove IMAGE old", "bitmap --clear IMAGE old"),
    *("resize IMAGE +1M", "resize --shrink IMAGE 512k", "measure -O qcow2 IMAGE", "measure --output=json -O raw IMAGE"),
    *("compare IMAGE IMAGE", "convert -O raw IMAGE out", "dd if=IMAGE of=out", "commit IMAGE", "bench -c 1 IMAGE"),
    *("rebase -u -b base -F raw IMAGE", "rebase -u -b  IMAGE", "amend -o size=2M IMAGE", "amend -o nothing=1 IMAGE"),
)
# What qemu-img names by a number that it has given the node.
UNNAMED = "Can't store persistent bitmaps to #block"


def opened(image_format: str, key: str) -> str:
    secret = f",{PREFIX[image_format]}key-secret={key}" if key else ""
    return f"driver={image_format},file.filename=image{secret}"


@pytest.fixture(scope="module", params=PREFIX)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The format of an encrypted image, and the folder that it is in, made by qemu-img."""
    image_format, folder = request.param, tmp_path_factory.mktemp("made")
    options = f"{PREFIX[image_format]}key-secret=s,{PREFIX[image_format]}iter-time=1"
    options += ",encrypt.format=luks" if image_format == "qcow2" else ""
    (folder / "base").write_bytes(b"B" * 4096)
    assert run_stock(folder, "create", "-q", *SECRETS, "-f", image_format, "-o", options, "image", "1M").status == 0
    if image_format == "qcow2":
        opts = (*SECRETS, "--image-opts", opened(image_format, "s"))
        assert run_stock(folder, "snapshot", "-c", "old", *opts).status == 0
    return image_format, folder


def words_of(call: str, image_format: str, key: str | None) -> list[str]:
    """The words of a call; the key None stands for an image that is named by its format alone."""
    verb, *words = (
        word.replace("IMAGE", "image" if key is None else opened(image_format, key)) for word in call.split(" ")
    )
    how = ["--image-opts"] if key is not None else [] if verb == "snapshot" else ["-f", image_format]
    return [verb, *SECRETS, *how, *words]


@pytest.mark.parametrize("key", [None, "", "w", "nobody", "s"])
def test_a_key_is_asked_for_where_qemu_asks(tmp_path: Path, made: tuple[str, Path], key: str | None) -> None:
    image_format, source = made
    folders = [tmp_path / each for each in ("stock", "own")]
    for call in CALLS:
        for folder in folders:
            shutil.copytree(source, folder, dirs_exist_ok=True)
        words = words_of(call, image_format, key)
        expected, found = run_stock(folders[0], *words), run_cowtree(folders[1], *words)
        assert found.status == expected.status, (words, expected, found)
        assert "Traceback" not in found.stderr
        if call.startswith("bench"):
            continue
        if "actual-size" not in expected.stdout:
            assert found.text == expected.text, (words, expected, found)
        if expected.status:
            first = expected.stderr.splitlines()[0]
            if key != "s":
                assert found.stderr.startswith(first.removesuffix(".")), (words, expected, found)
                assert (folders[1] / "image").read_bytes() == (source / "image").read_bytes(), words
            elif UNNAMED not in first:
                assert found.stderr.startswith(first.removesuffix(".")), (words, expected, found)
