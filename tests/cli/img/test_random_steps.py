"""Owns the proof that both programs may work on the same images in turn: ten random steps each, done by either of them.

After each step both read the same bytes of every image and of every internal snapshot, these are the bytes that a plain
model expects, and both checks are clean. A step that one program refuses the other refuses too, and nothing changes.
"""

import random
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cli.img.differential import Result, run_cowtree, run_stock
from tests.qemu import SECTOR, qemu_io

STEP_COUNT = 10
SECTOR_COUNT_MAX = 3000
PROGRAMS = {"stock": run_stock, "own": run_cowtree}


class Image(NamedTuple):
    """One image of the chain and what a guest sees through it."""

    name: str
    format: str
    cluster_bytes: int
    content: bytes
    snapshots: dict[str, bytes]


class Life:
    """A chain of images in one folder, the base first, and the steps that it goes through."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.choose = random.Random(seed)
        self.chain: list[Image] = []
        self.log: list[tuple[str, ...]] = []
        self._count = 0
        self.create()

    @property
    def top(self) -> Image:
        """The image that the guest has."""
        return self.chain[-1]

    def step(self) -> None:
        """Do one random thing, and look at everything."""
        verbs = (
            *(self.write, self.write, self.bench, self.zero, self.discard, self.create, self.snapshot, self.snapshot),
            *(self.commit, self.rebase, self.convert, self.bitmap, self.bitmap, self.resize),
        )
        self.choose.choice(verbs)()
        self.verify()

    def act(self, *words: str) -> bool:
        """Do it with one of the programs. Returns: whether it was done; when it was not, the other will not do it."""
        program = self.choose.choice(["stock", "own"])
        self.log.append((program, *words))
        result = PROGRAMS[program](self.folder, *words)
        assert "Traceback" not in result.stderr, self.log
        if result.status:
            other = PROGRAMS["own" if program == "stock" else "stock"](self.folder, *words)
            assert other.status, (self.log, result, other)
        return result.status == 0

    def read(self, program: str, image: Image, snapshot: str | None = None) -> bytes:
        """What a program sees through an image."""
        words = ["convert", "-f", image.format, "-O", "raw", *(["-l", snapshot] if snapshot else []), image.name]
        self._do(program, *words, "plain")
        plain = self.folder / "plain"
        content = plain.read_bytes()
        plain.unlink()
        return content

    def _do(self, program: str, *words: str) -> Result:
        result = PROGRAMS[program](self.folder, *words)
        assert result.status == 0, (self.log, program, words, result)
        return result

    def verify(self) -> None:
        """Look at every image with both programs."""
        for image in self.chain:
            for program in PROGRAMS:
                assert self.read(program, image) == image.content, (self.log, program, image.name)
                for name, content in image.snapshots.items():
                    # QEMU shows a snapshot in the size that the disk has now, and past its end what the base has there.
                    size = len(image.content if program == "stock" else content)
                    seen = self.read(program, image, name)
                    assert seen[: len(content)] == content[:size], (self.log, program, image.name, name)
                    assert len(seen) == size, (self.log, program, name)
                if image.format == "qcow2":
                    self._do(program, "check", "-f", "qcow2", image.name)

    def _changed(self, content: bytes | None = None) -> None:
        """Note what the guest sees now; without content, what QEMU reads."""
        seen = self.read("stock", self.top) if content is None else content
        self.chain[-1] = self.top._replace(content=seen)

    def _refresh_snapshots(self) -> None:
        """What a snapshot shows of its backing file changes with that."""
        for index, image in enumerate(self.chain):
            seen = {name: self.read("own", image, name) for name in image.snapshots}
            self.chain[index] = image._replace(snapshots=seen)

    def _range(self, unit: int = SECTOR) -> tuple[int, int]:
        size = len(self.top.content)
        start = self.choose.randrange(size // unit) * unit if size >= unit else 0
        return start, min(unit * self.choose.randint(1, 200), size - start)

    def _options(self) -> tuple[str, int]:
        """Options of a new image, and its cluster size."""
        cluster = 1 << self.choose.randint(9, 17)
        if self.choose.random() < 0.2:
            return f"cluster_size={cluster},compat=0.10", cluster
        options = [f"cluster_size={cluster}", f"refcount_bits={1 << self.choose.randint(3, 6)}"]
        options += self.choose.choice([[], [], ["lazy_refcounts=on"], ["compression_type=zstd"]])
        if cluster >= 1 << 14 and self.choose.random() < 0.5:
            options.append("extended_l2=on")
        return ",".join(options), cluster

    def create(self) -> None:
        """Make the first image, or an overlay that may be shorter or longer than its base."""
        size = SECTOR * self.choose.randint(1, SECTOR_COUNT_MAX)
        if len(self.chain) > 3:
            return
        name, below = f"image{self._count}", self.chain[-1:]
        image_format = "raw" if not below and self.choose.random() < 0.2 else "qcow2"
        options, cluster = self._options()
        words = ["create", "-q", "-f", image_format, *(["-o", options] if image_format == "qcow2" else [])]
        content = bytes(size)
        if below:
            words += ["-b", below[0].name, "-F", below[0].format]
            size = self.choose.choice([size, len(below[0].content)])
            content = below[0].content[:size].ljust(size, b"\0")
        assert self.act(*words, name, str(size)), self.log
        self._count += 1
        self.chain.append(Image(name, image_format, cluster, content, {}))

    def write(self) -> None:
        """Let the guest write, with QEMU; now and then compressed."""
        start, length = self._range()
        byte = self.choose.randint(1, 255)
        self._io(f"write -P {byte} {start} {length}")
        self._changed(_patched(self.top.content, start, bytes([byte]) * length))

    def bench(self) -> None:
        """Let the guest write, with either program."""
        start, length = self._range()
        byte = self.choose.randint(1, 255)
        words = ("-w", "-c", "1", "-o", str(start), "-s", str(length), f"--pattern={byte}")
        assert self.act("bench", "-f", self.top.format, *words, self.top.name), self.log
        self._changed(_patched(self.top.content, start, bytes([byte]) * length))

    def zero(self) -> None:
        """Let the guest write zeroes."""
        start, length = self._range()
        self._io(f"write -z{self.choose.choice(['', 'u'])} {start} {length}")
        self._changed(_patched(self.top.content, start, bytes(length)))

    def discard(self) -> None:
        """Let the guest give back; what it sees there is QEMU's affair."""
        start, length = self._range()
        self._io(f"discard {start} {length}")
        before, stop = self.top.content, start + length
        self._changed()
        assert self.top.content[:start] + self.top.content[stop:] == before[:start] + before[stop:], self.log

    def _io(self, command: str) -> None:
        self.log.append(("qemu-io", command))
        qemu_io(self.folder / self.top.name, command, image_format=self.top.format)

    def snapshot(self) -> None:
        """Create, apply or delete an internal snapshot."""
        image = self.top
        verb = self.choose.choice("ccad") if image.snapshots else "c"
        name = f"s{len(self.log)}" if verb == "c" else self.choose.choice(list(image.snapshots))
        if not self.act("snapshot", f"-{verb}", name, image.name):
            return
        if verb == "c":
            image.snapshots[name] = image.content
        elif verb == "d":
            del image.snapshots[name]
        else:
            self._changed(image.snapshots[name])

    def commit(self) -> None:
        """Let the base take over; what lay between is of no use any more."""
        if len(self.chain) < 2:
            return
        depth = self.choose.randint(1, len(self.chain) - 1)
        base = self.chain[-1 - depth]
        words = ["-b", base.name] if depth > 1 or self.choose.random() < 0.3 else self.choose.choice([[], ["-d"]])
        if not self.act("commit", "-q", "-f", self.top.format, *words, self.top.name):
            return
        content = self.top.content + base.content[len(self.top.content) :]
        self.chain[-1 - depth] = base._replace(content=content)
        if depth > 1:
            self.act("rebase", "-u", "-b", base.name, "-F", base.format, self.top.name)
            self._drop(slice(-depth, -1))
        self._refresh_snapshots()

    def rebase(self) -> None:
        """Put the top on another base, or on none."""
        if self.top.format == "raw":
            return
        below = self.choose.randint(0, len(self.chain) - 1)
        base = self.chain[below - 1] if below else None
        words = ["-b", base.name, "-F", base.format] if base else ["-b", ""]
        if self.act("rebase", "-f", "qcow2", *words, self.top.name):
            self._drop(slice(below, -1))
            self._refresh_snapshots()

    def _drop(self, which: slice) -> None:
        """Remove images that the top does not need any more. Into a base that they read no commit of ours would go."""
        for image in self.chain[which]:
            (self.folder / image.name).unlink()
        del self.chain[which]

    def convert(self) -> None:
        """Go on with a copy that stands alone."""
        options, cluster = self._options()
        words = ["-c"] if self.choose.random() < 0.3 else []
        name = f"image{self._count}"
        self._count += 1
        words += ["-f", self.top.format, "-O", "qcow2", "-o", options]
        assert self.act("convert", *words, self.top.name, name), self.log
        self.chain = [Image(name, "qcow2", cluster, self.top.content, {})]

    def bitmap(self) -> None:
        """Do something to the dirty bitmaps of the top."""
        verb = self.choose.choice(["--add", "--add", "--remove", "--clear", "--enable", "--disable"])
        self.act("bitmap", "-f", self.top.format, verb, self.top.name, self.choose.choice(["one", "two"]))

    def resize(self) -> None:
        """Let the disk become larger or smaller."""
        image, size = self.top, SECTOR * self.choose.randint(1, SECTOR_COUNT_MAX)
        words = ["--shrink"] if size < len(image.content) else []
        if self.act("resize", "-q", "-f", image.format, *words, image.name, str(size)):
            self._changed(image.content[:size].ljust(size, b"\0"))


def _patched(content: bytes, start: int, data: bytes) -> bytes:
    return content[:start] + data + content[start + len(data) :]


@pytest.mark.soak
@pytest.mark.slow
def test_both_programs_do_random_steps_on_the_same_images(tmp_path: Path, seed: int):
    life = Life(tmp_path, seed)
    life.verify()
    for _ in range(STEP_COUNT):
        life.step()
