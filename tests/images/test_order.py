"""Owns the proof that a journal is read as it was written, and that a hostile one is one sentence."""

import json
import random
from typing import Any

import pytest

from cowtree.errors import BrokenJournal
from cowtree.images import order
from cowtree.images.order import DELETE, KEEP, RENAME, Order, Progress, Sight
from cowtree.plan.family import Family, Member, Merge
from cowtree.storage.memory import MemoryFiles

FAMILY = Family(
    (
        Member("/images/top", "qcow2", 4096, 1, 7),
        Member("/images/mid\udcff\n:", "qcow2", 4096, 2, 7, None, has_snapshots=True),
        Member("/images/base", "raw", 512),
        Member("/images/other", "qcow2", 512, 2, 7, "it is broken"),
    )
)
ORDER = Order(
    FAMILY,
    (Merge((0, 1), 0, 1),),
    RENAME,
    "then",
    ("commit", "/images/top"),
    (Sight(0, 0, "cowtree1:00", ((0, 65536), (131072, 196608))), Sight(3, 3, "cowtree1:11")),
)
PROGRESS = Progress(0, 2, 1 << 40, ((4096, 17), (512, 18)))
JOURNAL = "/images/.top.cowtree-merge"


def written() -> dict[str, Any]:
    files = MemoryFiles()
    order.save(files, ORDER, PROGRESS)
    content: dict[str, Any] = json.loads(files.snapshot()[JOURNAL])
    return content


def read(content: object) -> tuple[Order, Progress]:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return order.parse(JOURNAL, data)


def test_what_is_written_is_read_again():
    assert read(written()) == (ORDER, PROGRESS)


def test_a_journal_without_digests_is_one():
    content = written()
    del content["sights"]
    assert read(content) == (ORDER._replace(sights=()), PROGRESS)


def test_before_the_proof_nothing_is_removed():
    assert ORDER._replace(ending=DELETE).leaving == RENAME
    assert ORDER._replace(ending=DELETE, sights=()).leaving == DELETE
    assert ORDER._replace(ending=KEEP).leaving == KEEP


def test_a_long_name_leaves_room_for_the_ending():
    path = order.journal_path(f"/images/{'é' * 127}")
    assert len(path.rpartition("/")[2].encode(errors="surrogateescape")) <= 255
    assert path.endswith(order.SUFFIX)


def test_a_forgotten_journal_is_gone():
    files = MemoryFiles()
    order.save(files, ORDER, PROGRESS)
    order.forget(files, ORDER)
    assert files.snapshot() == {}


WRONG: dict[str, tuple[str, object]] = {
    "another version": ("version", 2),
    "an ending": ("ending", "burn"),
    "a stamp that climbs": ("stamp", "/../../etc/passwd"),
    "no stamp": ("stamp", ""),
    "no acts": ("acts", []),
    "an act on nobody": ("acts", [[[0, 9], 0, 0]]),
    "an act on somebody counted from the end": ("acts", [[[0, -1], 0, 0]]),
    "a target outside its group": ("acts", [[[0, 1], 2, 1]]),
    "a group that is no line": ("acts", [[[0, 2], 0, 0]]),
    "a group twice": ("acts", [[[0, 1, 0], 0, 0]]),
    "true for a number": ("acts", [[[False, True], 0, 1]]),
    "a phase": ("progress", [0, 4, 0, []]),
    "a begin": ("progress", [0, 0, -1, []]),
    "an act too many": ("progress", [2, 0, 0, []]),
    "words that are none": ("words", [1]),
    "gone ones": ("gone", [17]),
    "ranges that overlap": ("sights", [[0, 0, "x", [[0, 9], [8, 12]]]]),
    "a loop": ("members", [["/images/top", "qcow2", 1, 1], ["/images/x", "qcow2", 1, 0]]),
    "a member with a zero byte": ("members", [["/images/top\0", "qcow2", 1, 1], ["/images/x", "qcow2", 1, None]]),
    "a member without a number": ("members", [["/images/top", "qcow2", "1", 1], ["/images/x", "qcow2", 1, None]]),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_nobody_here_writes_is_refused(name: str):
    key, value = WRONG[name]
    with pytest.raises(BrokenJournal, match="nobody here wrote it so"):
        read({**written(), key: value})


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff", b"1", b"[" * 100_000, b'{"version": NaN}'])
def test_what_is_no_journal_at_all_is_refused(data: bytes):
    with pytest.raises(BrokenJournal, match=r"\.top\.cowtree-merge"):
        read(data)


def test_a_journal_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(order, "JOURNAL_BYTES_MAX", 100)
    with pytest.raises(BrokenJournal, match="too large"):
        read(written())


def test_a_journal_that_does_not_lie_beside_its_target_is_refused():
    content = written()
    content["members"][0][0] = "/elsewhere/top"
    with pytest.raises(BrokenJournal, match="it belongs beside /elsewhere/top"):
        read(content)


@pytest.mark.soak
def test_no_mutation_of_a_journal_gets_further_than_an_error(seed: int):
    choose = random.Random(seed)
    for _ in range(200):
        content = written()
        mutate(content, choose)
        data = bytearray(json.dumps(content).encode())
        if choose.random() < 0.3:
            data[choose.randrange(len(data))] = choose.randrange(256)
        try:
            found, progress = read(bytes(data))
        except BrokenJournal:
            continue
        assert found.journal_path == JOURNAL
        assert found.result.members
        assert 0 <= progress.act <= len(found.acts)


def mutate(content: Any, choose: random.Random) -> None:
    """Put something odd somewhere into a tree of lists and dictionaries."""
    while True:
        keys = list(content) if isinstance(content, dict) else list(range(len(content)))
        if not keys:
            return
        key = choose.choice(keys)
        if isinstance(content[key], dict | list) and content[key] and choose.random() < 0.8:
            content = content[key]
            continue
        content[key] = choose.choice(
            [None, -1, 0, 1, 2, 1 << 70, 0.5, "", "x", "/x", [], [0], {}, True, [[0, 1], 0, 0]]
        )
        return
