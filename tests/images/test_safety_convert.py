"""Convert, stopped everywhere: under the target's name there is the old file or the whole new one, and a second run
ends it. What is written over in place stays sound, and shows nothing but old and new.
"""

from pathlib import Path

import pytest

from cowtree.errors import Refused
from cowtree.images.convert import Manner, convert, convert_into
from cowtree.plan.create import NewImage
from cowtree.qcow2.header import ZSTD
from cowtree.storage.contract import FileSystem
from cowtree.storage.memory import MemoryFiles
from tests.crash import Trial, assert_sound, guest_view, run_through, stop_everywhere
from tests.pictures import CLUSTER_BITS, CLUSTER_BYTES, Family, draw, family
from tests.qemu import assert_clean, content

OLD = b"what stood there before"
TARGETS = {
    "raw": NewImage("out", "raw", 0),
    "raw, full": NewImage("out", "raw", 0, preallocation="full"),
    "qcow2": NewImage("out", "qcow2", 0, CLUSTER_BITS),
    "version 2": NewImage("out", "qcow2", 0, CLUSTER_BITS, version=2),
    "preallocated": NewImage("out", "qcow2", 0, CLUSTER_BITS, preallocation="metadata"),
    "overlay": NewImage("out", "qcow2", 0, CLUSTER_BITS, backing_file="layer-1", backing_format="qcow2"),
    "preallocated overlay": NewImage(
        "out",
        "qcow2",
        0,
        14,
        backing_file="layer-1",
        backing_format="qcow2",
        preallocation="metadata",
        has_subclusters=True,
    ),
    "external data": NewImage("out", "qcow2", 0, CLUSTER_BITS, data_file="data"),
    "packed": NewImage("out", "qcow2", 0, CLUSTER_BITS),
    "packed, zstd": NewImage("out", "qcow2", 0, CLUSTER_BITS, compression_type=ZSTD),
}


def make_source() -> Family:
    return family("A-b0oC--" + "-" * 60 + "DE", "-FG-HH" + "-" * 60)


def trial_of(new: NewImage, manner: Manner, old: bytes | None) -> Trial:
    """A trial of one conversion; `old` is what stands under the target's name before."""
    made = make_source()
    expected = guest_view(made.files, made.top)
    initial = made.files.snapshot()
    if old is not None:
        initial["out"] = old

    def operation(files: FileSystem) -> None:
        convert(files, [(made.top, "qcow2")], new, manner)

    def check(files: MemoryFiles, is_done: bool) -> None:
        held = files.snapshot()
        for name in made.names:
            assert held[name] == initial[name], f"{name} was changed"
        if held.get("out") == old:
            assert not is_done
        else:
            assert guest_view(files, "out", new.format) == expected
            if new.format == "qcow2":
                assert_sound(files, "out", is_done=True)
        if is_done:
            assert held.keys() == {*initial, "out", *([new.data_file] if new.data_file else [])}

    return Trial(initial, operation, check)


@pytest.mark.slow
@pytest.mark.parametrize("old", [None, OLD], ids=["new name", "old file"])
@pytest.mark.parametrize("name", TARGETS)
def test_a_new_image_is_there_whole_or_not_at_all(name: str, old: bytes | None):
    stop_everywhere(trial_of(TARGETS[name], Manner(is_compressed=name.startswith("packed")), old))


def test_what_is_done_is_durable_and_sound_for_qemu(tmp_path: Path):
    for name, new in TARGETS.items():
        if new.data_file is not None:
            # QEMU looks for it in the folder that it runs in.
            continue
        ended = run_through(trial_of(new, Manner(is_compressed=name.startswith("packed")), None))
        for each, data in ended.files.snapshot().items():
            (tmp_path / each).write_bytes(data)
        assert content(tmp_path / "out", new.format) == guest_view(ended.files, "layer-0")
        if new.format == "qcow2":
            assert_clean(tmp_path / "out")


@pytest.mark.slow
def test_an_image_that_is_written_over_compressed_stays_sound():
    made = make_source()
    draw(made.files, NewImage("target", "qcow2", 80 * CLUSTER_BYTES, CLUSTER_BITS), "-" * 70 + "XX")
    initial, wanted = made.files.snapshot(), guest_view(made.files, made.top)
    before = guest_view(made.files, "target")
    after = wanted + before[len(wanted) :]

    def operation(files: FileSystem) -> None:
        # What is compressed already is not compressed over: a second run begins with an empty target.
        try:
            convert_into(files, [(made.top, "qcow2")], ("target", "qcow2"), Manner(is_compressed=True))
        except Refused:
            convert_into(files, [(made.top, "qcow2")], ("target", "qcow2"))

    def check(files: MemoryFiles, is_done: bool) -> None:
        assert_sound(files, "target", is_done=is_done)
        seen = guest_view(files, "target")
        assert seen[len(wanted) :] == before[len(wanted) :]
        assert not is_done or seen == after
        for start in range(0, len(wanted), CLUSTER_BYTES):
            cluster = slice(start, start + CLUSTER_BYTES)
            assert seen[cluster] in (before[cluster], after[cluster])

    stop_everywhere(Trial(initial, operation, check))


@pytest.mark.slow
@pytest.mark.parametrize("version", [2, 3])
def test_an_image_that_is_written_over_stays_sound(version: int):
    made = make_source()
    size = 80 * CLUSTER_BYTES
    base = NewImage("base", "qcow2", size, CLUSTER_BITS)
    draw(made.files, base, "Z" * 80)
    draw(
        made.files,
        NewImage("target", "qcow2", size, CLUSTER_BITS, version, backing_file="base", backing_format="qcow2"),
        "Y-y-XXXX" if version == 2 else "YoY0y-XX",
    )
    initial = made.files.snapshot()
    wanted, before = guest_view(made.files, made.top), guest_view(made.files, "target")
    after = wanted + before[len(wanted) :]

    def operation(files: FileSystem) -> None:
        convert_into(files, [(made.top, "qcow2")], ("target", "qcow2"))

    def check(files: MemoryFiles, is_done: bool) -> None:
        assert {name: data for name, data in files.snapshot().items() if name != "target"} == {
            name: data for name, data in initial.items() if name != "target"
        }
        assert_sound(files, "target", is_done=is_done)
        seen = guest_view(files, "target")
        assert seen[len(wanted) :] == before[len(wanted) :]
        if is_done:
            assert seen == after
        for start in range(0, len(wanted), 512):
            sector = slice(start, start + 512)
            assert seen[sector] in (before[sector], after[sector])

    stop_everywhere(Trial(initial, operation, check))
