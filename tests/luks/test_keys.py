"""Keys: a passphrase opens the slot that it filled, and no other one does."""

import hashlib

import pytest

from cowtree.errors import Refused
from cowtree.luks.header import Suite, Volume, new_slots, payload_offset
from cowtree.luks.keys import Filling, derive, digest_of, fill_slot, merge, noise_bytes, open_slot, split


@pytest.mark.parametrize(
    "suite", [Suite(), Suite("aes-192", "cbc", "plain64", None, "sha1"), Suite("aes-128", "cbc", "essiv", "sha256")]
)
def test_a_slot_gives_back_the_key_that_was_put_into_it(suite):
    key, volume = (
        b"k" * suite.key_bytes,
        Volume(suite, payload_offset(suite), b"", b"s" * 32, 1000, "", new_slots(suite)),
    )
    volume = volume._replace(digest=digest_of(volume, key))
    volume, material = fill_slot(volume, 2, key, Filling(b"abc", 1000, b"t" * 32, b"n" * noise_bytes(suite)))
    assert len(material) == volume.material_bytes
    assert open_slot(volume, 2, material, b"abc") == key
    assert open_slot(volume, 2, material, b"abd") is None


@pytest.mark.parametrize("length", [20, 32, 33, 64])
def test_a_key_is_spread_over_its_stripes_and_put_together(length):
    key, noise = bytes(range(length)), b"n" * (length * 9)
    assert merge("sha256", split("sha256", key, noise), length) == key
    assert merge("sha256", split("sha256", key, noise)[:-1] + b"\0", length) != key


@pytest.mark.parametrize("name", ["sha1", "sha256", "sha512"])
def test_keys_are_derived_as_the_standard_says(name):
    assert derive(name, b"abc", b"salt", 10, 50) == hashlib.pbkdf2_hmac(name, b"abc", b"salt", 10, 50)


def test_a_hash_that_derives_no_keys_is_refused():
    with pytest.raises(Refused, match="PBKDF does not support hash algorithm md4"):
        derive("md4", b"", b"", 1, 1)
