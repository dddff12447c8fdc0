"""Damaged headers of the encryption: every command ends soon, with a sentence, and writes nothing."""

import random
import struct
import time
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from cowtree.luks import header as luks
from tests.cli.img.differential import assert_one_sentence, run_cowtree, run_stock
from tests.qemu import qemu_img

pytestmark = pytest.mark.slow

SECRETS = ("--object", "secret,id=s,data=one", "--object", "secret,id=t,data=two")
PREFIX = {"luks": "", "qcow2": "encrypt."}
CPU_S_MAX = 2
# Offsets of the counts in which a high number means work, not damage.
COUNTS = (164, *(luks.slot_place(index) + 4 for index in range(luks.SLOT_COUNT)))
CALLS = ("info", "info --output=json", "map", "check", "convert -O raw", "amend -o {}state=active,{}new-secret=t")


@cache
def template(image_format: str) -> bytes:
    with TemporaryDirectory() as folder:
        path, prefix = Path(folder) / "image", PREFIX[image_format]
        options = f"{prefix}key-secret=s,{prefix}iter-time=1" + (",encrypt.format=luks" if prefix else "")
        qemu_img("create", "-q", *SECRETS, "-f", image_format, "-o", options, path, "64k")
        return path.read_bytes()


def damaged(choose: random.Random, image_format: str) -> bytes:
    """An image with a few wrong bytes, or wrong numbers, among the first of the encryption's; or cut."""
    data = bytearray(template(image_format))
    start = data.index(luks.MAGIC)
    if choose.random() < 0.1:
        return bytes(data[: choose.randrange(start, len(data))])
    for _ in range(choose.randint(1, 3)):
        kind, at = choose.random(), start + choose.randrange(luks.HEADER_BYTES)
        if kind < 0.4:
            data[at] ^= 1 << choose.randrange(8)
        elif kind < 0.6:
            data[at : at + 32] = choose.randbytes(32)
        else:
            at = start + choose.choice([104, 108, 164, *(COUNTS[1] + 4 * step for step in range(-1, 96))])
            number = choose.choice([0, 1, 2, 7, 8, 4000, 0xAC71F3, 0xDEAD, 1 << 16, 1 << 31, (1 << 32) - 1])
            data[at : at + 4] = struct.pack(">I", number)
    for place in COUNTS:
        (count,) = struct.unpack_from(">I", data, start + place)
        if 1 << 17 < count <= luks.ITERATION_COUNT_MAX:
            struct.pack_into(">I", data, start + place, luks.ITERATION_COUNT_MAX + 1)
    return bytes(data)


@pytest.mark.soak
@pytest.mark.parametrize("image_format", PREFIX)
def test_a_damaged_header_ends_every_command_soon(tmp_path: Path, image_format: str, seed: int) -> None:
    data = damaged(random.Random(f"{seed} {image_format}"), image_format)
    image, prefix = tmp_path / "image", PREFIX[image_format]
    place = f"driver={image_format},file.filename=image,{prefix}key-secret=s"
    for call in CALLS:
        image.write_bytes(data)
        began_s = time.process_time()
        target = ("new",) if call.startswith("convert") else ()
        words = (*call.replace("{}", prefix).split(), *SECRETS, "--image-opts", place, *target)
        # A new slot takes the time that it is told to take.
        found = run_cowtree(tmp_path, *(word + f",{prefix}iter-time=0" if "state=" in word else word for word in words))
        assert time.process_time() - began_s < CPU_S_MAX, words
        if found.status not in (0, 63):
            assert_one_sentence(found)
            assert image.read_bytes() == data, words
        # A file that is cut inside of the key slots is refused at once.
        if call == "info" and len(data) == len(template(image_format)) and not has_high_count(data):
            assert found.status == run_stock(tmp_path, *words).status, (words, found)


def has_high_count(data: bytes) -> bool:
    start = data.find(luks.MAGIC[:4])
    return any(
        struct.unpack_from(">I", data.ljust(start + 1024, b"\0"), start + place)[0] > luks.ITERATION_COUNT_MAX
        for place in COUNTS
    )
