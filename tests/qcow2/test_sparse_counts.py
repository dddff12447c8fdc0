"""Numbers of clusters: what is put in is what comes out, however they are kept."""

from collections import Counter

import numpy as np
import pytest

from cowtree.qcow2.sparse_counts import PAGE, SparseCounts


@pytest.mark.soak
@pytest.mark.parametrize("flat_length_max", [0, 1 << 20], ids=["pages", "flat"])
def test_numbers_are_those_of_a_dictionary(seed: int, flat_length_max: int):
    choose = np.random.default_rng(seed)
    length = int(choose.integers(1, 40 * PAGE))
    counts, slow = SparseCounts(length, flat_length_max), dict.fromkeys(range(100 * PAGE), 0)
    for _ in range(12):
        clusters = choose.integers(0, length, int(choose.integers(0, 20)))
        once = np.unique(clusters)
        if choose.random() < 0.5:
            counts.widen(int(counts.get(clusters).max(initial=0)) + len(clusters))
            counts.add_each(clusters)
            slow |= {cluster: slow[cluster] + times for cluster, times in Counter(clusters.tolist()).items()}
        else:
            numbers = choose.choice([0, 1, 255, 256, 70000, 1 << 33], len(once))
            counts.put(once, numbers)
            slow |= dict(zip(once.tolist(), numbers.tolist(), strict=True))
        if choose.random() < 0.3:
            length += int(choose.integers(0, 3 * PAGE))
            counts.reach(length)
        assert counts.window(0, length).tolist() == [slow[cluster] for cluster in range(length)]
        first, last = sorted(choose.integers(0, length + 1, 2).tolist())
        assert counts.window(first, last).tolist() == [slow[cluster] for cluster in range(first, last)]
        assert counts.any_in(first, last) == any(slow[cluster] for cluster in range(first, last))


def test_each_time_that_is_taken_away_counts():
    for flat_length_max in (0, 1 << 20):
        counts = SparseCounts(1000, flat_length_max)
        counts.put(np.array([5, 900]), np.array([3, 1]))
        counts.take_each(np.array([5, 900, 5]))
        assert counts.get(np.array([5, 900, 6])).tolist() == [1, 0, 0]


def test_a_kind_is_no_wider_than_it_must_be():
    counts = SparseCounts(10)
    for number, kind in ((255, "u1"), (256, "u2"), (1 << 16, "u4"), (1 << 32, "u8")):
        counts.put(np.array([3]), np.array([number]))
        assert (counts.dtype, counts.get(np.array([3])).tolist()) == (np.dtype(kind), [number])
