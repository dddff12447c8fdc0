"""The layers below a disk, and reading what they hold."""

from pathlib import Path

from cowtree import extents as ex
from cowtree.chain.view import Chain, open_chain
from cowtree.execute.read import fetch
from cowtree.live import layers as subject
from cowtree.live import map as guest_map
from cowtree.live.layers import Layers
from cowtree.live.sight import Sight
from cowtree.storage.file import LocalFiles
from tests.pictures import family
from tests.qemu import content, qemu_img, qemu_io


def test_a_piece_is_read_from_the_layer_that_holds_it():
    made = family("-B", "AA", raw_base=True)
    chain = open_chain(made.files, made.top)
    layers = Layers(chain)
    code = guest_map.code_of(1, ex.DATA)
    buffer = bytearray(6)
    layers.read(8, [(8, 10, code, 0), (10, 12, guest_map.NOTHING, 0), (12, 14, code, 0)], memoryview(buffer))
    assert buffer == b"AA\0\0AA"
    layers.close()


def test_compressed_clusters_are_read_through_a_small_cache(tmp_path: Path, monkeypatch):
    path = tmp_path / "packed.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    qemu_io(path, "write -c -P 1 0 64k", "write -c -P 2 64k 64k", "write -c -P 3 512k 64k")
    chain = open_chain(LocalFiles(), str(path))
    sight = Sight(chain)
    expected = content(path)
    read = list[int]()

    def noted(*words) -> None:
        read.append(1)
        fetch(*words)

    monkeypatch.setattr(subject, "fetch", noted)
    for offset in range(0, 1 << 20, 4096):
        assert sight.read(offset, 4096) == expected[offset : offset + 4096]
    assert len(read) == 3
    monkeypatch.setattr(subject, "INFLATED_BYTES_MAX", 1 << 16)
    other = Sight(chain)
    assert other.read(0, 1 << 20) == other.read(0, 1 << 20) == expected
    assert len(read) == 3 + 6
    chain.close()


def test_a_chain_is_put_together_again():
    made = family("A", "B")
    chain = open_chain(made.files, made.top)
    assert Layers(chain).chain == Chain(chain.layers, chain.images)
    chain.close()


def test_layers_keep_their_numbers_when_others_come_and_go():
    made = family("A", "B", "C")
    chain = open_chain(made.files, made.top)
    layers = Layers(chain.below(1))
    assert layers.numbers == [0, 1]
    number = layers.add(chain.top, chain.images[0])
    assert layers.numbers == [number, 0, 1]
    assert layers.drop(0) == chain.layers[1]
    assert layers.numbers == [number, 1]
    assert layers.add(chain.layers[1], chain.images[1]) not in (0, 1, number)
    assert guest_map.code_of(0, ex.DATA) not in layers.files
    chain.close()
