"""Owns the proof that what was set aside is told by its name, and only that."""

import os
import time

import pytest

from cowtree.chain.aside import is_aside, set_aside, stamp_of


def test_what_is_set_aside_is_known_by_its_name():
    stamp = stamp_of(time.time_ns())
    for path in ("disk.qcow2", "/a/b/disk", "x" * 255, "ä" * 120, os.fsdecode(b"\xff.img")):
        name = set_aside(path, stamp)
        assert is_aside(name)
        assert os.path.dirname(name) == os.path.dirname(path)
        assert len(os.fsencode(os.path.basename(name))) <= 255


@pytest.mark.parametrize(
    "name",
    [
        "disk.invalid",
        "disk.invalid-2026",
        "disk.invalid-20261124T203100.123456.qcow2",
        "disk.invalid-x0261124T203100.123456",
        "",
    ],
)
def test_other_names_are_those_of_good_images(name: str):
    assert not is_aside(name)
