"""New volumes: what is made opens again, and only by its passphrase."""

import pytest

from cowtree.errors import Refused
from cowtree.luks import header as luks
from cowtree.luks.header import Suite
from cowtree.luks.keys import Filling, noise_bytes, open_slot
from cowtree.luks.volume import Draw, Encryption, make_header


def draw(suite: Suite) -> Draw:
    noise = bytes(range(251)) * (noise_bytes(suite) // 251 + 1)
    filling = Filling(b"horse", 1001, b"s" * luks.SALT_BYTES, noise[: noise_bytes(suite)])
    return Draw(b"k" * suite.key_bytes, b"d" * luks.SALT_BYTES, 1002, "a-uuid", filling)


@pytest.mark.parametrize("suite", [Suite(), Suite("aes-128", "cbc", "essiv", "sha256", "sha1")])
def test_a_new_volume_opens_with_its_passphrase_alone(suite: Suite):
    data = make_header(suite, draw(suite))
    volume = luks.parse("disk", data[: luks.HEADER_BYTES])
    assert (volume.suite, volume.uuid, volume.active) == (suite, "a-uuid", [0])
    assert volume.payload_offset == luks.payload_offset(suite)
    material = data[volume.slots[0].offset :]
    assert len(material) == volume.material_bytes
    assert open_slot(volume, 0, material, b"horse") == b"k" * suite.key_bytes
    assert open_slot(volume, 0, material, b"house") is None


def test_a_cipher_that_the_library_lacks_is_refused():
    suite = Suite("serpent-256")
    with pytest.raises(Refused, match="serpent-256"):
        make_header(suite, draw(suite))


def test_only_a_volume_has_a_header():
    assert Encryption("luks", "s").header_bytes == luks.payload_offset(Suite())
    assert Encryption("aes", "s").header_bytes == 0
