"""The objects of the command line, in qemu-img's words."""

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from cowtree.cli.img.objects import read_secrets
from cowtree.errors import WrongUse
from tests.qemu import run


@pytest.mark.parametrize(
    "words",
    [
        *("secret,data=x", "secret,id=s", "foo,id=a", "secret,id=s,data=x,file=y", "secret,id=s,data=x,bar=1"),
        *("secret,id=s,file=/nonexistent", "secret,id=s,data=x,format=hex", "secret,id=s,data=x!,format=base64"),
        *("secret,id=s,data=x,keyid=k", "secret", "iothread,id=i", "secret,id=1s,data=x"),
    ],
)
def test_what_qemu_refuses_is_refused_in_its_words(words):
    stock = run("qemu-img", "info", "--object", words, "none")
    assert stock.returncode == 1
    with pytest.raises(WrongUse) as caught:
        read_secrets([words])
    assert stock.stderr == f"qemu-img: {caught.value.message}\n"


def test_secrets_are_read_plain_and_in_base64_and_from_files(tmp_path):
    path = tmp_path / "key"
    path.write_bytes(b"c\n")
    words = ["secret,id=a,data=x,,y", "secret,id=b,data=YWJj,format=base64", f"secret,id=c,file={path}"]
    assert read_secrets(words) == {"a": b"x,y", "b": b"abc", "c": b"c\n"}


def test_a_secret_may_be_encrypted_by_another_one(tmp_path):
    path = tmp_path / "key"
    path.write_bytes(Cipher(algorithms.AES(b"k" * 32), modes.CBC(b"i" * 16)).encryptor().update(b"abc" + b"\r" * 13))
    words = [f"secret,id=m,data={'k' * 32}", f"secret,id=s,file={path},keyid=m,iv=aWlpaWlpaWlpaWlpaWlpaQ=="]
    assert read_secrets(words)["s"] == b"abc"
