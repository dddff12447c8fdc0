"""What `-o` may say: read, shown, and turned into an image."""

import pytest

from cowtree.cli.img.options import Settings, new_image, option_help
from cowtree.errors import WrongUse
from cowtree.luks.volume import Encryption
from cowtree.plan.create import NewImage
from cowtree.qcow2.header import ZSTD
from tests.qemu import run


def image(text: str, image_format: str = "qcow2") -> NewImage:
    return new_image("disk", Settings(image_format, text))


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_help_lists_what_stock_lists(image_format: str):
    for words in ((), ("disk",)):
        stock = run("qemu-img", "create", "-f", image_format, "-o", "help", *words).stdout
        assert option_help(image_format, has_name=bool(words)) + "\n" == stock


def test_defaults_are_shown_with_what_was_given():
    assert Settings("raw").describe() == ""
    assert Settings("raw", "preallocation=full,size=1k").describe() == "size=1024 preallocation=full"
    assert Settings("qcow2", "size=64k,backing_file=a,,b,compat=v2").describe() == (
        "cluster_size=65536 extended_l2=off compression_type=zlib size=65536 compat=v2 backing_file=a,,b "
        "lazy_refcounts=off refcount_bits=16"
    )


def test_settings_become_an_image():
    assert image("size=1") == NewImage("disk", "qcow2", 512)
    text = "size=1M,compat=1.1,cluster_size=16k,refcount_bits=1,lazy_refcounts=yes,compression_type=zstd,extended_l2=on"
    assert image(text + ",backing_file=b,backing_fmt=raw,preallocation=falloc") == NewImage(
        "disk",
        "qcow2",
        1 << 20,
        cluster_bits=14,
        refcount_order=0,
        lazy_refcounts=True,
        compression_type=ZSTD,
        backing_file="b",
        backing_format="raw",
        preallocation="falloc",
        has_subclusters=True,
    )
    assert image("size=1M,preallocation=full", "raw") == NewImage("disk", "raw", 1 << 20, preallocation="full")


def test_a_raw_data_file_is_mapped_from_the_start():
    assert image("size=1M,data_file=d,data_file_raw=on").preallocation == "metadata"
    assert image("size=1M,data_file=d").preallocation == "off"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nope=1", "Invalid parameter 'nope'"),
        ("size=1x", "Parameter 'size' expects a non-negative number below"),
        ("size=16E", "Value '16E' is out of range for parameter 'size'"),
        ("refcount_bits=1k", "Parameter 'refcount_bits' expects a number"),
        ("refcount_bits=08", "Parameter 'refcount_bits' expects a number"),
        ("refcount_bits=0x1ffffffffffffffff", "is too large for parameter 'refcount_bits'"),
        ("extended_l2=maybe", "Parameter 'extended_l2' expects 'on' or 'off'"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_when_it_is_read(text: str, reason: str):
    with pytest.raises(WrongUse, match=reason):
        Settings("qcow2", text)


@pytest.mark.parametrize("text", ["encryption=on", "encrypt.format=luks", "encrypt.format=aes"])
def test_an_encrypted_image_needs_a_passphrase(text: str):
    with pytest.raises(WrongUse, match=r"'encrypt.key-secret' is required for cipher. Try: "):
        image(text)


def test_an_encrypted_image_carries_how_it_is_encrypted():
    assert image("encryption=off").encryption is None
    assert image("encrypt.format=luks,encrypt.key-secret=s").encryption == Encryption("luks", "s")
    assert image("encryption=on,encrypt.key-secret=s").encryption == Encryption("aes", "s")
    assert image("key-secret=s,size=1", "luks") == NewImage("disk", "luks", 512, encryption=Encryption("luks", "s"))


def test_a_format_that_nobody_can_write_is_refused():
    for call in (lambda: Settings("vmdk"), lambda: option_help("vmdk", has_name=False)):
        with pytest.raises(WrongUse, match=r"^Unknown file format 'vmdk'"):
            call()
