"""The encryption of new images: keys are drawn anew, and hashed as often as the time wanted allows."""

import pytest

from cowtree.errors import Refused, WrongUse
from cowtree.images.encryption import furnish
from cowtree.luks import header as luks
from cowtree.luks.volume import Encryption
from cowtree.plan.create import NewImage
from cowtree.storage.memory import MemoryFiles


def made(time_ms: int = 10) -> Encryption:
    files = MemoryFiles()
    files.secrets["s"] = b"horse"
    found = furnish(files, NewImage("disk", "luks", 512, encryption=Encryption("luks", "s", iteration_time_ms=time_ms)))
    assert found.encryption
    assert furnish(files, found) is found
    return found.encryption


@pytest.mark.slow
def test_no_two_images_share_a_key():
    one, other = made(), made()
    assert one.key != other.key
    assert len(one.key) == 64
    volumes = [luks.parse("disk", each.header[: luks.HEADER_BYTES]) for each in (one, other)]
    assert volumes[0].uuid != volumes[1].uuid
    assert volumes[0].slots[0].salt != volumes[1].slots[0].salt


@pytest.mark.slow
def test_more_time_hashes_more_often():
    short, long = (luks.parse("disk", made(time).header[: luks.HEADER_BYTES]).slots[0] for time in (0, 200))
    assert short.iteration_count == luks.ITERATION_COUNT_MIN
    assert long.iteration_count > 10 * luks.ITERATION_COUNT_MIN


def test_nobody_waits_for_ever():
    with pytest.raises(Refused, match=r"PBKDF iterations \d+ larger than"):
        made(10**9)


def test_an_image_without_encryption_stays_as_it_is():
    new = NewImage("disk", "qcow2", 512)
    assert furnish(MemoryFiles(), new) is new


def test_a_secret_that_is_not_there_is_named():
    with pytest.raises(WrongUse, match="No secret with id 's'"):
        furnish(MemoryFiles(), NewImage("disk", "luks", 512, encryption=Encryption("luks", "s")))
