"""Owns the proof that the words of `--diskspec` and `--memspec` mean what they mean to virsh."""

import pytest

from cowtree.domain.moment import DiskRequest, Memory
from cowtree.domain.specs import disk_spec, memory_spec
from cowtree.errors import WrongUse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("vda", DiskRequest("vda")),
        ("vda,snapshot=no", DiskRequest("vda", "no")),
        ("vda,file=/a", DiskRequest("vda", None, "/a")),
        ("/vm/a.qcow2,snapshot=manual", DiskRequest("/vm/a.qcow2", "manual")),
        (
            "vda,snapshot=external,file=/a,,b.qcow2,driver=qcow2,stype=file",
            DiskRequest("vda", "external", "/a,b.qcow2", "qcow2", "file"),
        ),
        ("vda,stype=block,file=/dev/a=b", DiskRequest("vda", None, "/dev/a=b", None, "block")),
        (",,a,,,,b,,,file=/c,,", DiskRequest(",a,,b,", None, "/c,")),
        ("vda,snapshot=whatever", DiskRequest("vda", "whatever")),
    ],
)
def test_a_disk_is_asked_for(text: str, expected: DiskRequest):
    assert disk_spec(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/m", Memory(None, "/m")),
        ("file=/m", Memory(None, "/m")),
        ("file=/m,,n,snapshot=external", Memory("external", "/m,n")),
        ("snapshot=no", Memory("no")),
        ("snapshot=external,/m=n", Memory("external", "/m=n")),
    ],
)
def test_memory_is_asked_for(text: str, expected: Memory):
    assert memory_spec(text) == expected


@pytest.mark.parametrize(
    ("text", "blame"),
    [
        ("", ""),
        (",file=/a", "''"),
        ("vda,", "''"),
        ("vda,/a", "'/a'"),
        ("vda,file=", "'file='"),
        ("vda,file=/a,file=/b", "'file=/b'"),
        ("vda,format=raw", "'format=raw'"),
    ],
)
def test_a_word_about_a_disk_that_means_nothing_is_refused(text: str, blame: str):
    with pytest.raises(WrongUse) as caught:
        disk_spec(text)
    assert caught.value.reason == f"unable to parse diskspec: {text}" + (
        f": {blame} is not understood" if blame else ""
    )
    assert "--diskspec DISK,snapshot=external," in caught.value.advice


@pytest.mark.parametrize(
    ("text", "blame"),
    [
        ("", ""),
        ("m", ""),
        ("/m,/n", "'/n'"),
        ("file=/m,", "''"),
        ("/m,driver=raw", "'driver=raw'"),
        ("/m,snapshot=", "'snapshot='"),
    ],
)
def test_a_word_about_memory_that_means_nothing_is_refused(text: str, blame: str):
    with pytest.raises(WrongUse) as caught:
        memory_spec(text)
    assert caught.value.reason == f"unable to parse memspec: {text}" + (f": {blame} is not understood" if blame else "")


def test_a_disk_lies_in_a_file_or_on_a_device():
    with pytest.raises(WrongUse, match="Unknown storage type: 'network'"):
        disk_spec("vda,stype=network,file=/a")
