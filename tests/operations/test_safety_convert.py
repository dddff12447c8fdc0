"""Converting, stopped everywhere: a new image is there whole or not at all; one that is written over stays sound."""

from typing import NamedTuple

import pytest

from cowtree.operations.convert import Manner, convert, convert_into
from cowtree.plan.create import NewImage
from cowtree.storage.contract import FileSystem
from cowtree.storage.memory import MemoryFiles
from tests.crash import Trial, assert_sound, guest_view, snapshot_views, stop_everywhere, trial_of_new
from tests.operations.test_safety_merge import BASE_WRITES, TOP_WRITES, V2, V3, Disk, make
from tests.qemu import assert_clean, content

SOURCE = (
    Disk("base.qcow2", "64k", V3, None, BASE_WRITES),
    Disk("top.qcow2", "60k", V3, "base.qcow2", TOP_WRITES[:3]),
)
NEW = NewImage("new", "qcow2", 0, cluster_bits=9)
CONVERSIONS = {
    "to qcow2": (NEW, Manner()),
    "to large clusters": (NEW._replace(cluster_bits=16), Manner()),
    "to version 2": (NEW._replace(version=2), Manner()),
    "to compressed clusters": (NEW._replace(cluster_bits=12), Manner(is_compressed=True)),
    "to an overlay": (NEW._replace(backing_file="base.qcow2", backing_format="qcow2"), Manner()),
    "to allocated clusters": (NEW._replace(preallocation="metadata"), Manner()),
    "to a data file": (NEW._replace(data_file="data"), Manner()),
    "to raw": (NewImage("new", "raw", 0), Manner()),
    "to raw without holes": (NewImage("new", "raw", 0), Manner(sparse_bytes=0)),
}


@pytest.mark.slow
@pytest.mark.parametrize("found", [{}, {"new": b"old" * 5000, "data": b"old"}], ids=["nothing", "an old file"])
@pytest.mark.parametrize("name", CONVERSIONS)
def test_a_conversion_can_be_stopped_everywhere(tmp_path, monkeypatch, name, found):
    new, manner = CONVERSIONS[name]
    made = [new.path, *([new.data_file] if new.data_file else [])]
    initial = make(tmp_path, SOURCE) | {path: data for path, data in found.items() if path in made}

    def operate(files: FileSystem) -> None:
        convert(files, [("top.qcow2", "qcow2")], new, manner)

    trial = trial_of_new(initial, operate, made)
    stop_everywhere(trial)
    ended = trial.run()
    assert guest_view(ended.files, "new", new.format) == guest_view(MemoryFiles(initial), "top.qcow2")
    for path in made:
        (tmp_path / path).write_bytes(ended.files.content(path))
    monkeypatch.chdir(tmp_path)  # where QEMU looks for a data file
    if new.format == "qcow2":
        assert_clean(tmp_path / "new")
    assert content(tmp_path / "new", new.format) == content(tmp_path / "top.qcow2")


class Over(NamedTuple):
    """A target that is there, and what is written over it."""

    target: Disk
    manner: Manner = Manner()


TARGETS = {
    "small clusters": Over(Disk("there.qcow2", "80k", V3, None, ("write -P 17 0 30k", "write -P 18 58k 10k"))),
    "version 2": Over(Disk("there.qcow2", "80k", V2, None, ("write -P 17 0 30k", "write -P 18 58k 10k"))),
    "an overlay": Over(Disk("there.qcow2", "80k", V3, "other.raw", ("write -P 17 3k 5k",))),
    "a version 2 overlay": Over(Disk("there.qcow2", "80k", V2, "other.raw", ("write -P 17 3k 5k",))),
    "snapshots": Over(Disk("there.qcow2", "80k", V3, None, ("write -P 17 0 60k", "snapshot a", "write -P 18 9k 9k"))),
    "raw": Over(Disk("there.raw", "80k", "", None, ("write -P 17 0 80k",))),
    "without holes": Over(Disk("there.qcow2", "80k", V3, None, ("write -P 17 0 30k",)), Manner(sparse_bytes=0)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_an_image_that_is_written_over_stays_sound_and_shows_old_or_new_bytes(tmp_path, name):
    target, manner = TARGETS[name]
    other = Disk("other.raw", "80k", "", None, ("write -P 21 0 70k",))
    initial = make(tmp_path, [*SOURCE, other, target])
    start = MemoryFiles(initial)
    old, new = guest_view(start, target.name, target.format), guest_view(start, "top.qcow2")
    images = [target.name] if target.format == "qcow2" else []
    snapshots = {image: snapshot_views(start, image) for image in images}

    def operate(files: FileSystem) -> None:
        convert_into(files, [("top.qcow2", "qcow2")], (target.name, target.format), manner)

    def check(files: MemoryFiles, is_done: bool) -> None:
        assert {path: data for path, data in files.snapshot().items() if path != target.name} == others
        for image in images:
            assert_sound(files, image, is_done=is_done)
            assert snapshot_views(files, image) == snapshots[image]
        found = guest_view(files, target.name, target.format)
        assert found[len(new) :] == old[len(new) :]
        for offset in range(0, len(new), 512):
            sector = slice(offset, offset + 512)
            assert found[sector] in (new[sector], old[sector] if not is_done else new[sector])

    others = {path: data for path, data in initial.items() if path != target.name}
    stop_everywhere(Trial(initial, operate, check))
