"""The same words through qemu-img and through cowtree, each in a copy of a folder; all that comes out is compared.

    chain = make_chain(tmp_path / "chain", Shape())
    run_both(chain, tmp_path, "commit", "-b", "l1", "l3").assert_same()

Compared are exit status, standard output, the names of all files, and every image: guest content by `qemu-img compare`,
its size, format, clusters and backing file by `qemu-img info`, and `qemu-img check`. Sizes on disk may differ, and
so may messages on standard error.
"""

import contextlib
import filecmp
import io
import json
import os
import random
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cowtree.cli.main import main
from tests.qemu import COARSE_CLOCK, SECTOR, TRIES, assert_clean, qemu_img, qemu_io, run

PROGRESS = re.compile(r" {4}\((\d+\.\d\d)/100%\)\r")
OWN_SIZE = re.compile(r'^(disk size: |[ ]*"actual-size": )[^,\n]*', re.MULTILINE)
SAME_KEYS = ("virtual-size", "format", "cluster-size", "backing-filename", "backing-filename-format", "format-specific")


class Result(NamedTuple):
    """What one program did."""

    status: int
    stdout: str
    stderr: str

    @property
    def steps(self) -> list[float]:
        """The percentages that were shown."""
        return [float(step) for step in PROGRESS.findall(self.stdout)]

    @property
    def text(self) -> str:
        """Standard output without the percentages in between, which depend on how the work is cut, and without sizes
        on disk.
        """
        return OWN_SIZE.sub(r"\1?", PROGRESS.sub("", self.stdout))


def run_cowtree(folder: Path, *words: str, start: Sequence[str] = ("qemu-img",)) -> Result:
    """Run the words in a folder as `qemu-img` does, or as what `start` calls, in this process."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        status = main([*start, *words])
    return Result(status, stdout.getvalue(), stderr.getvalue())


def run_stock(folder: Path, *words: str) -> Result:
    """Run the words in a folder through qemu-img; again when it only stumbled over the clock."""
    for _ in range(TRIES):
        found = subprocess.run(
            ["qemu-img", *words], cwd=folder, capture_output=True, check=False, stdin=subprocess.DEVNULL, timeout=120
        )
        stdout, stderr = (each.decode("utf-8", "surrogateescape") for each in (found.stdout, found.stderr))
        if COARSE_CLOCK not in stderr:
            break
    return Result(found.returncode, stdout, stderr)


class Both(NamedTuple):
    """One call, done twice."""

    words: tuple[str, ...]
    folder: Path
    stock_folder: Path
    own_folder: Path
    stock: Result
    own: Result

    def assert_same(self) -> None:
        """Fail unless everything that counts is the same."""
        self.assert_same_result()
        self.assert_same_images()

    def assert_same_result(self) -> None:
        """Compare exit status and standard output."""
        assert self.own.status == self.stock.status, (self.words, self.stock, self.own)
        assert self.own.text == self.stock.text, (self.words, self.stock, self.own)
        assert self.own.steps[:1] == self.stock.steps[:1], (self.words, self.stock.steps, self.own.steps)

    def assert_same_reading(self) -> None:
        """Compare a call that only reads; a failure was explained in one sentence."""
        self.assert_same_result()
        assert bool(self.own.stderr) == bool(self.stock.stderr), (self.words, self.stock, self.own)
        assert_one_sentence(self.own)

    def assert_same_failure(self) -> None:
        """Compare a call that fails: our message begins with the other's, advice may follow, and nothing changed."""
        self.assert_same_result()
        assert self.own.status != 0, self.words
        expected = next(line for line in self.stock.stderr.splitlines() if line.startswith("qemu-img: "))
        assert self.own.stderr.startswith(expected.removesuffix(".")), (self.words, self.stock.stderr, self.own.stderr)
        assert "Traceback" not in self.own.stderr
        self.assert_unchanged()

    def assert_unchanged(self) -> None:
        """Fail unless our call left every file as it was."""
        assert content_of(self.own_folder) == content_of(self.folder), self.words

    def assert_same_images(self) -> None:
        """Compare what is in the folder afterwards."""
        names = sorted(path.name for path in self.stock_folder.iterdir() if path.is_file())
        assert sorted(path.name for path in self.own_folder.iterdir() if path.is_file()) == names, self.words
        for name in names:
            assert_same_image(self.stock_folder / name, self.own_folder / name)


def run_both(folder: Path, place: Path, *words: str) -> Both:
    """Run the words in two copies of a folder, which are made below `place`."""
    copies = [place / kind for kind in ("stock", "own")]
    for copy in copies:
        subprocess.run(["cp", "-a", "--sparse=always", folder, copy], check=True)
    return Both(words, folder, copies[0], copies[1], run_stock(copies[0], *words), run_cowtree(copies[1], *words))


def read_both(folder: Path, *words: str) -> Both:
    """Run words that only read, both in the folder itself; fail when ours changed a byte of it."""
    stock, before = run_stock(folder, *words), stamps_of(folder)
    own = run_cowtree(folder, *words)
    assert stamps_of(folder) == before, words
    return Both(words, folder, folder, folder, stock, own)


def assert_one_sentence(result: Result) -> None:
    """Fail unless a call that failed, and only that, said why."""
    assert "Traceback" not in result.stderr, result
    if result.status:
        assert result.stderr.startswith("qemu-img: "), result


class Shape(NamedTuple):
    """A chain of images l0, l1, ...; the base first. `sector_counts` are their sizes."""

    base_format: str = "qcow2"
    cluster_bytes: int = 65536
    compat: str = "1.1"
    sector_counts: tuple[int, ...] = (2048, 2048, 2048, 2048)

    def __str__(self) -> str:
        sizes = "-".join(map(str, self.sector_counts))
        return f"{self.base_format}-{self.cluster_bytes}-{self.compat}-{sizes}"

    def format_of(self, index: int) -> str:
        """The format of one image."""
        return "qcow2" if index else self.base_format


def make_chain(folder: Path, shape: Shape) -> Path:
    """Make the images with qemu-img, and write to each of them in clusters and in parts of clusters."""
    folder.mkdir()
    choose = random.Random(repr(shape))
    for index, sector_count in enumerate(shape.sector_counts):
        image_format, path = shape.format_of(index), folder / f"l{index}"
        words = ["create", "-q", "-f", image_format]
        if image_format == "qcow2":
            words += ["-o", f"cluster_size={shape.cluster_bytes},compat={shape.compat}"]
        if index:
            words += ["-b", f"l{index - 1}", "-F", shape.format_of(index - 1)]
        qemu_img(*words, path, str(sector_count * SECTOR))
        qemu_io(path, *_commands(choose, index, sector_count), image_format=image_format)
    return folder


def _commands(choose: random.Random, index: int, sector_count: int) -> list[str]:
    """Writes all over the image, zeroes, and something at its end."""
    found = [f"write -P {100 + index} {(sector_count - 1) * SECTOR} {SECTOR}"]
    for number in range(6):
        start = choose.randrange(sector_count)
        count = min(choose.choice([1, 7, 128, 300]), sector_count - start)
        verb = "write -z" if number % 3 == 2 else f"write -P {1 + 8 * index + number}"
        found.append(f"{verb} {start * SECTOR} {count * SECTOR}")
    return found


def describe(path: Path) -> dict[str, Any]:
    """What `qemu-img info` says of an image and must be the same."""
    result = run("qemu-img", "info", "-U", "--output=json", path)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    return {key: found[key] for key in SAME_KEYS if key in found}


def assert_same_image(stock: Path, own: Path) -> None:
    """Fail unless two images show the same, are built the same way, and ours is clean."""
    if filecmp.cmp(stock, own, shallow=False):
        return
    facts = describe(stock)
    assert describe(own) == facts, own.name
    if run("qemu-img", "info", "--backing-chain", stock).returncode:
        # Neither can be read, for the backing file is missing on purpose.
        return
    if facts["format"] == "qcow2":
        assert_clean(own)
    compared = run("qemu-img", "compare", "-f", facts["format"], "-F", facts["format"], stock, own)
    assert compared.returncode == 0, f"{own.name}: {compared.stdout}{compared.stderr}"


def content_of(folder: Path) -> dict[str, bytes]:
    """All bytes of all files below a folder."""
    return {
        os.fspath(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def stamps_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of the last write of all files below a folder."""
    found = {os.fspath(path): path.stat() for path in folder.rglob("*") if path.is_file()}
    return {path: (each.st_size, each.st_mtime_ns) for path, each in found.items()}


@contextlib.contextmanager
def held(path: Path, *options: str) -> Iterator[None]:
    """Let another process have a qcow2 image open for writing, or as the options say."""
    words = ["qemu-io", *options, "-f", "qcow2", str(path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"read 0 512\n")
        process.stdin.flush()
        # What it answers says that it has the image.
        while b"read 512/512" not in process.stdout.readline():
            assert process.poll() is None
        try:
            yield
        finally:
            process.communicate(b"quit\n")
