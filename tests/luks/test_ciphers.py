"""Ciphers over sectors, against the library's own modes."""

import random
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from cowtree.errors import Refused
from cowtree.luks.ciphers import SectorCipher
from cowtree.luks.header import CIPHER_MODES, IV_GENERATORS, Suite


def by_library(suite, key, sector, data):
    iv = (sector & 0xFFFF_FFFF if suite.iv_generator == "plain" else sector).to_bytes(16, "little")
    mode = {"ecb": modes.ECB, "cbc": lambda: modes.CBC(iv), "xts": lambda: modes.XTS(iv)}
    mode["ctr"] = lambda: modes.CTR(iv)
    library: Any = Cipher(algorithms.AES(key), mode[suite.mode]())
    return library.encryptor().update(data)


@pytest.mark.parametrize("mode", CIPHER_MODES)
@pytest.mark.parametrize("iv_generator", IV_GENERATORS[:2])
@pytest.mark.parametrize("sector", [0, 7, (1 << 33) + 5])
def test_sectors_are_encrypted_as_the_library_does(mode, iv_generator, sector):
    suite = Suite("aes-256", mode, iv_generator)
    key, data = (random.Random(mode).randbytes(count) for count in (suite.key_bytes, 200 * 512))
    cipher = SectorCipher(suite, key)
    secret = cipher.encrypt(sector, data)
    for number in (0, 1, 130, 199):
        part = slice(number * 512, (number + 1) * 512)
        assert secret[part] == by_library(suite, key, sector + number, data[part])
    assert cipher.decrypt(sector, secret) == data


@pytest.mark.parametrize("mode", CIPHER_MODES)
def test_what_is_encrypted_by_essiv_comes_back(mode):
    suite = Suite("aes-128", mode, "essiv", "sha256")
    cipher = SectorCipher(suite, bytes(range(suite.key_bytes)))
    assert cipher.decrypt(3, cipher.encrypt(3, b"a" * 1024)) == b"a" * 1024


def test_a_cipher_that_the_library_lacks_is_refused():
    with pytest.raises(Refused, match="serpent-256"):
        SectorCipher(Suite("serpent-256"), bytes(64))
