"""What may be amended, and what the header says afterwards."""

import numpy as np
import pytest

from cowtree.errors import Refused
from cowtree.plan.amend import (
    Asked,
    Pool,
    amended,
    check,
    downgraded,
    from_pool,
    without_zeroes,
    zero_entries,
    zero_users,
)
from cowtree.plan.keyslots import KeyChange
from cowtree.qcow2 import header as qcow2
from cowtree.qcow2.geometry import Geometry
from cowtree.qcow2.header import Header
from cowtree.qcow2.tables import Tables

V2 = Header(2, 16, 1 << 20, 1, 0x30000, 0x10000, 1, header_length=qcow2.V3_START)
V3 = V2._replace(version=3, header_length=112)


@pytest.mark.parametrize(
    ("header", "asked", "words"),
    [
        (V2, Asked(refcount_order=3), "Refcount widths other than 16 bits"),
        (V3, Asked(version=2, refcount_order=3), "Refcount widths other than 16 bits"),
        (V2, Asked(lazy_refcounts=True), "Lazy refcounts only supported"),
        (V3, Asked(backing_file="other"), "Cannot amend the backing file"),
        (V3, Asked(data_file="other"), "data-file can only be set"),
        (V3, Asked(is_data_file_raw=True), "data-file-raw cannot be set"),
        (V3, Asked(keys=KeyChange(is_active=True)), "encryption not present"),
    ],
)
def test_what_cannot_be_is_refused(header: Header, asked: Asked, words: str) -> None:
    with pytest.raises(Refused, match=words):
        check(header, asked)


def test_a_version_that_goes_up_takes_its_switches_along() -> None:
    asked = Asked(version=3, lazy_refcounts=True, refcount_order=0)
    check(V2, asked)
    header = amended(V2, asked)
    assert (header.version, header.header_length, header.compatible) == (3, 112, qcow2.LAZY_REFCOUNTS)
    assert header.extension(qcow2.FEATURE_NAMES)
    assert header.refcount_order == V2.refcount_order


def test_version_2_knows_no_features() -> None:
    header = downgraded(V3._replace(compatible=1, autoclear=1, extensions=(qcow2.feature_table(),)))
    assert (header.version, header.compatible, header.autoclear, header.extensions) == (2, 0, 0, ())
    assert header == downgraded(header)


def test_nothing_asked_changes_nothing() -> None:
    assert amended(V3, Asked()) == V3


def test_zero_clusters_are_told_from_the_others() -> None:
    words = np.array([[0, 1, 0x50001 | 1 << 63, 0x60000 | 1 << 63]], np.uint64)
    geometry = Geometry(3, 16, 4, has_subclusters=False, has_data_file=False)
    held = Tables(np.zeros(1, np.int64), np.array([0x40000]), words, np.zeros((1, 0), np.uint64))
    assert zero_entries(geometry, held).tolist() == [[False, True, True, False]]
    assert without_zeroes(geometry, held).entries.tolist() == [[0, 0, 0, 0x60000 | 1 << 63]]


def test_zero_clusters_that_share_never_overfill_what_they_share() -> None:
    geometry = Geometry(3, 12, 4)
    words = np.zeros((3, geometry.l2_entry_count), np.uint64)
    words[0, :40], words[1, 5], words[2, 10:30] = 1, 0x50000 | 1 << 63, 1
    held = Tables(np.arange(3), np.arange(3) * 4096, words, np.empty((3, 0), np.uint64))
    users = np.array([3, 1, 2])
    assert zero_users(geometry, held, users) == (160, 3)
    new, pool = from_pool(geometry, held, users, Pool(100, 10, 7))
    assert pool == Pool(100, 10, 167)
    assert new.entries[1, 5] == words[1, 5]
    weight = np.where(zero_entries(geometry, held), users[:, None], 0)
    assert not zero_entries(geometry, new).any()
    counts = np.bincount((new.entries[weight > 0] >> np.uint64(12)).astype(np.int64), weight[weight > 0])
    assert counts[100:].sum() == 160
    assert counts.max() <= 10 + 3 - 1
    assert len(counts) == 117
    again, _ = from_pool(geometry, new, users, pool)
    assert (again.entries == new.entries).all()
