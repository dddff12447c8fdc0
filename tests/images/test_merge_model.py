"""Owns the proof by model: guests write, overlays are made and merged in random order, and a bytearray knows it all.

The model of an image is a bytearray of what its guest sees. Images are real files; half of the writes are qemu-io's.
"""

import os
import random
from pathlib import Path

import pytest

from cowtree import extents as ex
from cowtree.chain import gate
from cowtree.chain.load import load_image
from cowtree.chain.view import Chain, open_chain, resolve
from cowtree.errors import Refused
from cowtree.execute.writer import LayerWriter
from cowtree.images import merge
from cowtree.images.create import create
from cowtree.plan.create import NewImage
from cowtree.plan.put import Wish
from cowtree.qcow2.header import ZLIB, ZSTD
from cowtree.storage.contract import Access
from cowtree.storage.file import LocalFiles
from cowtree.storage.memory import MemoryFiles
from tests import permits
from tests.permits import Into
from tests.pictures import view
from tests.qemu import assert_clean, content, qemu_io

SECTOR = 512
STEP_COUNT = 25
FILES = LocalFiles()


class Tree:
    """Images on disk, which of them backs which, and what each guest sees."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.choose = random.Random(seed)
        self.parents: dict[str, str | None] = {}
        self.views: dict[str, bytearray] = {}
        self.formats: dict[str, str] = {}
        self.raw_data: set[str] = set()
        self.count = 0

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def add(self, parent: str | None) -> None:
        """Make a new image, with a backing file or without."""
        name, self.count = f"image-{self.count}", self.count + 1
        size = SECTOR * self.choose.randint(1, 1200)
        self.formats[name] = "raw" if parent is None and self.choose.random() < 0.4 else "qcow2"
        version = self.choose.choice([2, 3, 3])
        order = self.choose.randint(0, 6) if version == 3 else 4
        new = NewImage(self.path(name), self.formats[name], size, self.choose.randint(9, 16), version, order)
        if self.formats[name] == "qcow2" and version == 3:
            has_data_file = self.choose.random() < 0.25
            new = new._replace(
                has_subclusters=new.cluster_bits >= 14 and self.choose.random() < 0.6,
                data_file=self.path(f"{name}.data") if has_data_file else None,
                is_data_file_raw=has_data_file and parent is None and self.choose.random() < 0.5,
                compression_type=self.choose.choice([ZLIB, ZSTD]),
            )
            self.raw_data |= {name} if new.is_data_file_raw else set()
        backing = None if parent is None else self.formats[parent]
        create(FILES, new._replace(backing_file=parent, backing_format=backing))
        below = self.views[parent] if parent else bytearray()
        self.views[name] = (below[:size]).ljust(size, b"\0")
        self.parents[name] = parent

    def children(self, name: str) -> list[str]:
        return [child for child, parent in self.parents.items() if parent == name]

    def ancestors(self, name: str) -> list[str]:
        found = []
        parent = self.parents[name]
        while parent is not None:
            found.append(parent)
            parent = self.parents[parent]
        return found

    def any(self) -> str:
        return self.choose.choice(list(self.parents))

    def step(self) -> None:
        """Do one thing at random."""
        self.choose.choice(
            [self.write, self.write, self.overlay, self.commit, self.commit_below, self.pull, self.rebase]
        )()

    def write(self) -> None:
        """Let the guest of a leaf write data or zeroes."""
        leaf = self.choose.choice([name for name in self.parents if not self.children(name)])
        size = len(self.views[leaf])
        start = SECTOR * self.choose.randrange(size // SECTOR)
        stop = min(start + SECTOR * self.choose.randint(1, 200), size)
        byte = self.choose.choice([0, self.choose.randint(1, 255)])
        if self.choose.random() < 0.5 or self.formats[leaf] == "raw":
            words = self.choose.choice(["write -z", "write -z -u"]) if byte == 0 else f"write -P {byte}"
            qemu_io(Path(self.path(leaf)), f"{words} {start} {stop - start}", image_format=self.formats[leaf])
        else:
            put(self.path(leaf), (start, stop), byte)
        self.views[leaf][start:stop] = bytes([byte]) * (stop - start)

    def overlay(self) -> None:
        """Make an overlay of anything; whoever has one is written no more."""
        self.add(self.any() if self.choose.random() < 0.9 else None)

    def commit(self) -> None:
        """Commit a leaf into its own backing file, when that has no other overlay."""
        leaf = self.any()
        base = self.parents[leaf]
        if base is None or self.children(leaf) or len(self.children(base)) > 1:
            return
        permits.commit(FILES, self.path(leaf), into=Into(empties_top=self.choose.random() < 0.5))
        top, old = self.views[leaf], self.views[base]
        self.views[base] = top + old[len(top) :]

    def commit_below(self) -> None:
        """Commit what lies under some overlays into something further down; only their line may lie on it."""
        top = self.any()
        between = [top, *self.ancestors(top)]
        overlays = self.children(top)
        if len(between) < 2 or not overlays:
            return
        depth = self.choose.randint(1, len(between) - 1)
        base, merged = between[depth], between[:depth]
        if any(len(self.children(name)) > 1 for name in between[1 : depth + 1]):
            return
        outcome = permits.commit(
            FILES, self.path(top), into=Into(self.path(base), [self.path(each) for each in overlays])
        )
        assert outcome.invalid == tuple(self.path(name) for name in merged)
        self._take_over(top, base, overlays)
        for name in merged:
            os.unlink(self.path(name))
            del self.parents[name], self.views[name]

    def _take_over(self, top: str, base: str, overlays: list[str]) -> None:
        shown, old = self.views[top], self.views[base]
        hidden = min(max(len(self.views[each]) for each in overlays), len(old))
        tail = old[len(shown) :]
        zeroes = max(hidden - len(shown), 0)
        self.views[base] = shown + bytes(zeroes) + tail[zeroes:]
        for each in overlays:
            self.parents[each] = base

    def pull(self) -> None:
        """Pull into anything that is backed."""
        name = self.any()
        below = self.ancestors(name)
        if not below:
            return
        base = self.choose.choice([None, *below])
        merge.pull(FILES, self.path(name), base=None if base is None else self.path(base))
        self.parents[name] = base

    def rebase(self) -> None:
        """Rebase anything onto anything that does not lie on it."""
        name, base = self.any(), self.any()
        if self.formats[name] == "raw" or name == base or name in self.ancestors(base):
            return
        if name in self.raw_data:
            with pytest.raises(Refused, match="has a data file that is read as raw"):
                merge.rebase(FILES, self.path(name), backing=(base, self.formats[base]))
            return
        merge.rebase(FILES, self.path(name), backing=(base, self.formats[base]))
        self.parents[name] = base

    def verify(self) -> None:
        """Fail unless both programs see what the model says, and every image is clean."""
        for name, expected in self.views.items():
            kind = self.formats[name]
            assert view(FILES, self.path(name), kind) == expected, name
            assert content(self.folder / name, kind) == expected, name
            if kind == "qcow2":
                assert_clean(self.folder / name)
            if name in self.raw_data:
                assert (self.folder / f"{name}.data").read_bytes().startswith(expected)


def put(path: str, span: tuple[int, int], byte: int) -> None:
    """Write as cowtree does: the same byte all over the span."""
    start, stop = span
    chain = open_chain(FILES, path, "qcow2", Access.WRITE)
    ink = gate.open_layer(MemoryFiles({"ink": bytes([byte]) * (stop - start)}), "ink", "raw")
    both = Chain((*chain.layers, ink), (*chain.images, load_image(ink)))
    wanted = ex.single(start, stop, ex.ZERO if byte == 0 else ex.DATA, layer=len(chain.layers))
    shown = resolve(chain, 0, chain.size_bytes)
    writer = LayerWriter(both, 0)
    writer.put(Wish(wanted, shown, shown, has_backing_after=len(chain.layers) > 1), 0, chain.size_bytes)
    writer.finish()
    chain.close()


@pytest.mark.slow
@pytest.mark.soak
def test_a_tree_of_images_is_what_its_guests_think_it_is(seed, tmp_path):
    tree = Tree(tmp_path, seed)
    tree.add(None)
    tree.write()
    tree.overlay()
    for _ in range(STEP_COUNT):
        tree.step()
    tree.verify()
