"""Which layer somebody means: by target, by number, by path from here, from the image, or from the root."""

import pytest

from cowtree.errors import WrongUse
from cowtree.operations.layers import find_disk, find_layer, refuse_unknown
from tests.lab import Lab


@pytest.fixture
def lab(tmp_path):
    lab = Lab(tmp_path / "lab", disk_count=2)
    lab.take("one")
    lab.take("two")
    return lab


@pytest.mark.parametrize(
    ("word", "target", "index"),
    [
        ("vda", "vda", 0),
        ("vdb[1]", "vdb", 0),
        ("vdb[3]", "vdb", 2),
        ("{folder}/disk1.two", "vdb", 0),
        ("{folder}/disk1.qcow2", "vdb", 2),
        ("disk0.one", "vda", 1),
        ("{below}/disk0.one", "vda", 1),
        ("./link", "vda", 1),
    ],
)
def test_a_disk_and_its_layer_are_found(lab, monkeypatch, word, target, index):
    monkeypatch.chdir(lab.folder)
    (lab.folder / "link").symlink_to("disk0.one")
    word = word.format(folder=lab.folder, below=str(lab.folder)[1:])
    with lab.host() as host, lab.at_work() as (_, found):
        stack, layer = find_disk(host, found, word)
    assert (stack.target, layer) == (target, index)


@pytest.mark.parametrize("word", ["vdc", "vda[0]", "vda[4]", "vda[x]", "", "/absent"])
def test_what_is_no_layer_is_not_found(lab, word):
    with lab.host() as host, lab.at_work() as (_, found):
        with pytest.raises(WrongUse) as caught:
            find_disk(host, found, word)
        assert caught.value.reason == f"invalid argument: disk '{word}' not found in domain"
        stack, _ = find_disk(host, found, "vda")
        assert find_layer(host, stack, "vdb[1]") is None
        with pytest.raises(WrongUse, match="could not find image 'x' beneath 'y' in chain for 'vda'"):
            refuse_unknown(stack, "x", beneath="y")
