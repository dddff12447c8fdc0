"""Owns the proof that mending writes only what is wrong, and in the order that its file draws."""

from pathlib import Path

import pytest

from cowtree.chain import gate
from cowtree.chain.load import load_image
from cowtree.images.count import Count
from cowtree.images.mend import Mender
from cowtree.qcow2.findings import Finding
from cowtree.storage.contract import Access
from cowtree.storage.memory import MemoryFiles
from cowtree.storage.recording import Event, RecordingFiles, Synced, Wrote, Zeroed
from tests.damage import COPIED, Words, find_words, put_word
from tests.qemu import qemu_img, qemu_io

CLUSTER = 4096


@pytest.fixture
def words(tmp_path: Path) -> Words:
    """An image with a snapshot, and ten clusters of which two are its own."""
    path = tmp_path / "disk"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"cluster_size={CLUSTER}", path, "4M")
    qemu_io(path, "write -P 1 0 40k")
    qemu_img("snapshot", "-c", "first", path)
    qemu_io(path, "write -P 2 8k 8k")
    return find_words(path.read_bytes())


def word(data: bytes | bytearray, place: int) -> int:
    return int.from_bytes(data[place : place + 8], "big")


def mended(data: bytes, *, anew: bool = False) -> tuple[bytes, list[Event], list[Finding]]:
    """Mend everything. Returns: the file, what was done to it, and what was said of flags."""
    files = RecordingFiles(MemoryFiles({"disk": data}))
    layer = gate.open_layer(files, "disk", "qcow2", Access.WRITE)
    image = load_image(layer)
    assert image is not None
    count = Count(layer, image, lambda finding: None)
    count.count()
    mender = Mender(layer, image, count.references)
    said = mender.mend(anew=anew)
    mender.finish(all_is_right=True)
    after = layer.file.pread(0, layer.file.size_bytes)
    layer.close()
    return after, files.log, said


def writes(log: list[Event]) -> list[str]:
    """What was done, in short: the place of a write, `|` for a flush."""
    done = [event for event in log if isinstance(event, Wrote | Zeroed | Synced)]
    return ["|" if isinstance(event, Synced) else str(event.offset) for event in done]


def test_nothing_is_written_when_all_is_right(words: Words):
    after, log, said = mended(words.data)
    assert after == words.data
    assert writes(log) == []
    assert said == []


def test_a_wrong_flag_goes_first_then_counts_go_up_then_down_and_missing_flags_are_set_last(words: Words):
    data = bytearray(words.data)
    # Cluster 0 of the guest is shared with the snapshot; cluster 2 is not.
    put_word(data, words.l2[0], word(data, words.l2[0]) | COPIED)
    put_word(data, words.l2[2], word(data, words.l2[2]) & ~COPIED)
    own = (word(data, words.l2[2]) & ~COPIED) // CLUSTER
    shared = (word(data, words.l2[0]) & ~COPIED) // CLUSTER
    block = word(data, words.refcount_table[0])
    data[block + 2 * shared + 1] = 1
    data[block + 2 * own + 1] = 3
    after, log, said = mended(bytes(data))
    assert after == words.data
    assert [finding.error_count for finding in said] == [1, 1]
    steps = [each for each in writes(log) if each != "|"]
    places = [words.l2[0], block + 2 * shared, block + 2 * own, words.l2[2]]
    assert steps == [str(place) for place in places]
    done = writes(log)
    for earlier, later in ((0, 2), (1, 2), (2, 3)):
        between = done[done.index(str(places[earlier])) : done.index(str(places[later]))]
        assert "|" in between, done
    assert done[-1] == "|"


def test_a_new_block_is_durable_before_the_table_names_it(words: Words):
    data = bytearray(words.data)
    put_word(data, words.refcount_table[0], 0)
    after, log, _ = mended(bytes(data))
    block = word(after, words.refcount_table[0])
    done = writes(log)
    assert "|" in done[done.index(str(block)) : done.index(str(words.refcount_table[0]))]
    assert mended(after)[0] == after


def test_a_structure_that_is_made_anew_leaves_the_old_one_until_the_header_changes(words: Words):
    after, log, _ = mended(words.data, anew=True)
    done = writes(log)
    header = done.index("0")
    assert all(int(place) >= len(words.data) // CLUSTER * CLUSTER for place in done[:header] if place != "|")
    assert done[header - 1] == "|"
    assert int.from_bytes(after[48:56], "big") != words.refcount_table[0]
    assert mended(after)[0] == after
