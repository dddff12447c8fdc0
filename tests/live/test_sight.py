"""What is seen through a disk."""

from pathlib import Path

from cowtree.chain import view
from cowtree.chain.view import open_chain
from cowtree.live import sight as subject
from cowtree.live.sight import Sight
from cowtree.storage.file import LocalFiles
from tests.crash import guest_view
from tests.pictures import CLUSTER_BYTES, family
from tests.qemu import content, random_chain


def test_the_guest_sees_through_all_layers():
    made = family("A---0", "-B0--", "CCCCC", raw_base=True)
    sight = Sight(open_chain(made.files, made.top))
    assert sight.read(0, sight.size_bytes) == guest_view(made.files, made.top)
    assert [sight.read(index * CLUSTER_BYTES, 1) for index in range(5)] == [b"A", b"B", b"\0", b"C", b"\0"]
    sight.layers.close()


def test_random_chains_of_qemu_are_seen_as_qemu_sees_them(tmp_path: Path):
    for seed in range(4):
        folder = tmp_path / str(seed)
        folder.mkdir()
        made = random_chain(folder, seed)
        sight = Sight(open_chain(LocalFiles(), str(made.top)))
        assert sight.read(0, sight.size_bytes) == content(made.top, made.formats[-1])
        sight.layers.close()


def test_zeroes_are_known_without_reading():
    made = family("A-0", "---")
    sight = Sight(open_chain(made.files, made.top))
    assert sight.is_zero(CLUSTER_BYTES, 3 * CLUSTER_BYTES)
    assert not sight.is_zero(CLUSTER_BYTES - 1, 3 * CLUSTER_BYTES)
    sight.layers.close()


def test_depth_costs_nothing_once_a_window_is_known(monkeypatch):
    made = family(*["-" * 7 + "Z"] * 19, "ABCDEFGH")
    sight = Sight(open_chain(made.files, made.top))
    sight.read(0, 1)
    for layer in sight.layers.chain.layers[1:-1]:
        monkeypatch.setattr(layer.file, "pread", None)
        monkeypatch.setattr(layer.file, "preadv", None)
    assert sight.read(0, sight.size_bytes) == b"".join(bytes([sign]) * CLUSTER_BYTES for sign in b"ABCDEFGZ")
    sight.layers.close()


def test_what_is_forgotten_while_it_is_looked_up_is_looked_up_again(monkeypatch):
    made = family("A-", "BB")
    sight = Sight(open_chain(made.files, made.top))
    found = list[int]()

    def resolve(*words, **more):
        # Only the layers below are looked up without the lock.
        if more:
            found.append(1)
            if len(found) < 3:
                sight.forget()
        return view.resolve(*words, **more)

    monkeypatch.setattr(subject, "resolve", resolve)
    assert sight.read(CLUSTER_BYTES, 1) == b"B"
    assert len(found) == 3
    assert list(sight.map.known())
    sight.layers.close()
