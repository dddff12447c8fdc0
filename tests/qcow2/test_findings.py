"""Owns the proof that findings are counted, worded and put in order."""

import numpy as np
import pytest

from cowtree.qcow2 import findings
from cowtree.qcow2.findings import CORRUPTION, LEAK, TURN_COUNT_MAX, Finding, at, in_order, remark

COLUMN = np.array([10, 11, 12, 13], np.uint64)


def said(parts: list[tuple[list[int], Finding]]) -> list[str]:
    found = in_order([(np.array(position, np.int64), finding) for position, finding in parts])
    return [sentence for finding in found for sentence in finding.sentences()]


def test_a_mask_or_an_index_chooses_the_places():
    for where in (np.array([False, True, False, True]), np.array([1, 3])):
        finding = at(findings.TOO_LOW, where, COLUMN, np.zeros(4, np.uint64), np.ones(4, np.uint64))
        assert list(finding.sentences()) == [
            "ERROR cluster 11 refcount=0 reference=1",
            "ERROR cluster 13 refcount=0 reference=1",
        ]
        assert finding.error_count == 2


def test_a_shared_place_is_said_once_and_counts_as_often_as_it_is_shared():
    finding = at(findings.L1_RESERVED, np.array([0, 2]), COLUMN, times=np.array([5, 6, 7, 8]))
    assert list(finding.sentences()) == [
        "ERROR found L1 entry with reserved bits set: a",
        "ERROR found L1 entry with reserved bits set: c",
    ]
    assert finding.error_count == 12


def test_a_kind_without_values_is_counted():
    finding = at(findings.BITMAP_ALONE, np.array([True, False, True]))
    assert finding.error_count == 2
    assert list(finding.sentences()) == ["ERROR: Unallocated cluster has non-zero subcluster allocation map"] * 2


def test_a_remark_may_hold_braces():
    finding = remark(CORRUPTION, "ERROR snapshot {0} is odd")
    assert list(finding.sentences()) == ["ERROR snapshot {0} is odd"]
    assert (finding.kind.counts_as, finding.error_count) == (CORRUPTION, 1)


@pytest.mark.parametrize("kind", findings.MENDED)
def test_what_is_mended_has_the_same_values(kind: findings.Kind):
    finding = Finding(kind, np.array([[1, 2, 3]], np.uint64), np.ones(1, np.int64))
    mended = finding.mended()
    assert mended.kind.counts_as in (findings.CORRUPTION_FIXED, findings.LEAK_FIXED)
    assert (mended.kind.counts_as == findings.LEAK_FIXED) == (kind.counts_as == LEAK)
    after = [sentence.removeprefix("Repairing") for sentence in mended.sentences()]
    assert after == [sentence.removeprefix("ERROR").removeprefix("Leaked") for sentence in finding.sentences()]


def test_kinds_take_turns_in_the_order_of_their_places():
    low = at(findings.L2_RESERVED, np.array([0, 1, 2]), COLUMN)
    high = at(findings.L1_RESERVED, np.array([3]), COLUMN)
    assert said([([1, 5, 9], low), ([6], high)]) == [
        "ERROR found l2 entry with reserved bits set: a",
        "ERROR found l2 entry with reserved bits set: b",
        "ERROR found L1 entry with reserved bits set: d",
        "ERROR found l2 entry with reserved bits set: c",
    ]


def test_at_the_same_place_the_first_kind_goes_first():
    first, second = (at(kind, np.array([0]), COLUMN) for kind in (findings.L2_RESERVED, findings.L1_RESERVED))
    assert said([([4], first), ([4], second)])[0].startswith("ERROR found l2")


def test_nothing_is_said_of_nothing():
    assert said([]) == []
    assert said([([], at(findings.L2_RESERVED, np.array([], np.int64), COLUMN))]) == []


def test_noise_is_said_kind_by_kind():
    count = TURN_COUNT_MAX + 2
    kinds = findings.L2_RESERVED, findings.L1_RESERVED
    parts = [
        (np.arange(count) * 2 + odd, at(kind, np.arange(count), np.arange(count))) for odd, kind in enumerate(kinds)
    ]
    found = list(in_order(parts))
    assert [each.kind for each in found] == list(kinds)
    assert [each.error_count for each in found] == [count, count]
