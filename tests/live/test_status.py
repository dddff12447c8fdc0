"""What block status says of a disk."""

import json
from pathlib import Path

from cowtree.chain.view import open_chain
from cowtree.live import status
from cowtree.live.sight import Sight
from cowtree.nbd.wire import STATE_HOLE, STATE_ZERO
from cowtree.storage.file import LocalFiles
from tests.pictures import CLUSTER_BYTES, family
from tests.qemu import qemu_img, random_chain

HOLE = STATE_HOLE | STATE_ZERO


def in_clusters(found: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Lengths in clusters."""
    return [(length // CLUSTER_BYTES, flags) for length, flags in found]


def sight_of(*layers: str) -> Sight:
    """Some layers, the top first."""
    made = family(*layers)
    return Sight(open_chain(made.files, made.top))


def test_data_zeroes_and_holes_are_told_apart():
    sight = sight_of("AA0-o-", "--C-CC")
    found = status.allocation(sight, 0, sight.size_bytes)
    assert in_clusters(found) == [(2, 0), (2, HOLE), (1, STATE_ZERO), (1, 0)]


def test_a_part_is_told_from_where_it_begins():
    sight = sight_of("AA0-")
    assert status.allocation(sight, 100, 2 * CLUSTER_BYTES + 7) == [(2 * CLUSTER_BYTES - 100, 0), (7, HOLE)]


def test_the_depth_counts_layers_from_the_top():
    sight = sight_of("A0----", "--B---", "CCCC--")
    assert in_clusters(status.depth(sight, 0, sight.size_bytes)) == [(2, 1), (1, 2), (1, 3), (2, 0)]


def test_a_long_answer_ends_early(monkeypatch):
    monkeypatch.setattr(status, "EXTENT_COUNT_MAX", 2)
    sight = sight_of("A0A0A0")
    assert in_clusters(status.allocation(sight, 0, sight.size_bytes)) == [(1, 0), (1, HOLE)]


def test_random_chains_are_mapped_as_qemu_maps_them(tmp_path: Path):
    for seed in (1, 3, 6):
        folder = tmp_path / str(seed)
        folder.mkdir()
        made = random_chain(folder, seed)
        sight = Sight(open_chain(LocalFiles(), str(made.top)))
        found = status.allocation(sight, 0, sight.size_bytes)
        mapped = json.loads(qemu_img("map", "-f", made.formats[-1], "--output=json", made.top))
        zero = {
            at for each in mapped if each["zero"] for at in range(each["start"], each["start"] + each["length"], 512)
        }
        offset = 0
        for length, flags in found:
            assert bool(flags & STATE_ZERO) == (offset in zero), offset
            offset += length
        assert offset == sight.size_bytes
        sight.layers.close()
