"""Owns what the catalogue keeps of how fast merges were."""

from cowtree.catalog import speeds


def test_the_last_speed_of_each_device_is_kept(catalog):
    assert speeds.recall(catalog, 1) is None
    speeds.note(catalog, 1, 100)
    speeds.note(catalog, 2, 200)
    speeds.note(catalog, 1, 300)
    assert [speeds.recall(catalog, each) for each in (1, 2, 3)] == [300, 200, None]
