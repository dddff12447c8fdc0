"""The bytes of new images."""

from pathlib import Path

import numpy as np
import pytest

from cowtree.chain import gate
from cowtree.chain.view import Chain, open_chain, resolve
from cowtree.errors import WrongUse
from cowtree.execute.run import run
from cowtree.extents import ALLOCATED, DATA
from cowtree.images.check import check
from cowtree.monitor import Silent
from cowtree.plan.create import FALLOC, FULL, METADATA, PREALLOCATIONS, NewImage, create_steps, raw_steps
from cowtree.qcow2.header import ZSTD
from cowtree.steps import Allocate, Truncate, Write
from cowtree.storage.memory import MemoryFiles
from tests.qemu import qemu_img

MIB = 1 << 20


def made(new: NewImage, files: MemoryFiles | None = None) -> MemoryFiles:
    """The image, in memory."""
    files = files or MemoryFiles({})
    file = files.create(new.path, 0o644)
    run(create_steps(new), file, Chain((), ()), Silent())
    file.close()
    return files


def options(new: NewImage) -> str:
    """The same image in the words of qemu-img."""
    words = [f"cluster_size={1 << new.cluster_bits}", f"refcount_bits={1 << new.refcount_order}"]
    words += ["compat=0.10"] if new.version < 3 else [f"lazy_refcounts={'on' if new.lazy_refcounts else 'off'}"]
    words += ["compression_type=zstd"] if new.compression_type == ZSTD else []
    words += ["extended_l2=on"] if new.has_subclusters else []
    words += [f"backing_file={new.backing_file},backing_fmt={new.backing_format}"] if new.backing_file else []
    return ",".join(words)


EMPTY = (
    NewImage("new", "qcow2", 0),
    NewImage("new", "qcow2", 512),
    NewImage("new", "qcow2", 1 << 40),
    NewImage("new", "qcow2", MIB, cluster_bits=9),
    *(NewImage("new", "qcow2", 100 * MIB, cluster_bits=bits) for bits in (12, 13, 16, 21)),
    *(NewImage("new", "qcow2", MIB, refcount_order=order) for order in range(7)),
    NewImage("new", "qcow2", MIB, version=2),
    NewImage("new", "qcow2", MIB, lazy_refcounts=True, compression_type=ZSTD),
    NewImage("new", "qcow2", MIB, has_subclusters=True),
    NewImage("new", "qcow2", MIB, backing_file="ü/base", backing_format="raw"),
    NewImage("new", "qcow2", MIB, version=2, cluster_bits=9, backing_file="b" * 300, backing_format="qcow2"),
)


@pytest.mark.parametrize("new", EMPTY, ids=options)
def test_an_empty_image_is_what_qemu_makes(tmp_path: Path, new: NewImage):
    stock = tmp_path / "stock"
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-o", options(new), stock, str(new.size_bytes))
    assert made(new).content("new") == stock.read_bytes()


SHAPES = (
    NewImage("new", "qcow2", 5 * MIB, cluster_bits=9),
    NewImage("new", "qcow2", 5 * MIB + 512, cluster_bits=9, refcount_order=6),
    NewImage("new", "qcow2", 5 * MIB, cluster_bits=10, refcount_order=0),
    NewImage("new", "qcow2", 700 * MIB + 512),
    NewImage("new", "qcow2", 5 * MIB, cluster_bits=21, version=2),
    NewImage("new", "qcow2", 5 * MIB, cluster_bits=14, has_subclusters=True),
    NewImage("new", "qcow2", 0),
)


@pytest.mark.parametrize("shape", SHAPES, ids=options)
@pytest.mark.parametrize("preallocation", PREALLOCATIONS)
def test_every_cluster_of_a_preallocated_image_has_its_place(shape: NewImage, preallocation: str):
    if preallocation == FULL and shape.size_bytes > 100 * MIB:
        shape = shape._replace(size_bytes=7 * MIB)
    chain = open_chain(made(shape._replace(preallocation=preallocation)), "new")
    report = check(chain.layers[0])
    assert report is not None
    assert report.is_clean
    assert report.image_end_bytes >= chain.layers[0].file.size_bytes
    is_filled = preallocation != "off"
    assert report.allocated_cluster_count == (report.total_cluster_count if is_filled else 0)
    if not shape.has_subclusters:
        seen = resolve(chain, 0, shape.size_bytes)
        assert seen.total_bytes == (shape.size_bytes if is_filled else 0)
        assert np.isin(seen.kind, (DATA, ALLOCATED)).all()
        assert len(seen.start) <= 1
    chain.close()


def test_guest_data_of_an_external_file_lies_where_the_guest_sees_it():
    files = MemoryFiles({"data": bytes(MIB)})
    new = NewImage("new", "qcow2", MIB, data_file="data", is_data_file_raw=True, preallocation=METADATA)
    chain = open_chain(made(new, files), "new")
    seen = resolve(chain, 0, MIB)
    assert (seen.start.tolist(), seen.length.tolist(), seen.host_offset.tolist()) == ([0], [MIB], [0])
    assert chain.layers[0].file.size_bytes == 5 * 65536
    chain.close()


def test_a_backing_file_shows_through_preallocated_subclusters():
    files = MemoryFiles({"base": b"x" * MIB})
    new = NewImage("new", "qcow2", MIB, has_subclusters=True, preallocation=METADATA, backing_file="base")
    chain = open_chain(made(new._replace(backing_format="raw"), files), "new")
    assert resolve(chain, 0, MIB).layer.tolist() == [1]
    chain.close()


def test_a_raw_image_is_as_long_as_it_says():
    assert list(raw_steps(0, "off")) == [Truncate(0)]
    assert list(raw_steps(1024, "off")) == [Truncate(1024), Write(0, bytes(512))]
    assert list(raw_steps(MIB, "off")) == [Truncate(MIB), Write(0, bytes(4096))]
    assert list(raw_steps(1000, FALLOC)) == [Truncate(1000), Allocate(0, 1000)]
    assert list(raw_steps(0, FALLOC)) == [Truncate(0)]
    assert list(raw_steps(1000, FULL)) == [Truncate(1000), Write(0, bytes(1000))]
    written = [step for step in raw_steps(3 * MIB + 7, FULL) if isinstance(step, Write)]
    assert sum(len(step.data) for step in written) == 3 * MIB + 7
    assert written[-1].offset + len(written[-1].data) == 3 * MIB + 7


@pytest.mark.parametrize(
    ("new", "reason"),
    [
        (NewImage("new", "qcow2", 1 << 40, cluster_bits=9), "The image size is too large"),
        (NewImage("new", "qcow2", 1 << 60, cluster_bits=21, preallocation=METADATA), "The image size is too large"),
        (NewImage("new", "qcow2", MIB, backing_file="b" * 70000, backing_format="raw"), "does not fit"),
    ],
)
def test_what_no_file_could_hold_is_refused_before_the_first_step(new: NewImage, reason: str):
    with pytest.raises(WrongUse, match=reason):
        create_steps(new)


@pytest.mark.slow
def test_a_large_preallocated_image_takes_little_memory(tmp_path: Path):
    new = NewImage(str(tmp_path / "new"), "qcow2", 1 << 40, preallocation=METADATA)
    sizes = [len(step.data) for step in create_steps(new) if isinstance(step, Write)]
    assert sum(sizes) > 128 * MIB
    assert max(sizes) <= 16 * MIB


def test_the_gate_opens_what_was_made():
    for new in EMPTY:
        layer = gate.open_layer(made(new), "new")
        assert layer.size_bytes == new.size_bytes
        layer.close()
