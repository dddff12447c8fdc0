"""A server that is killed while layers are added and merged under a client."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cowtree.chain.view import open_chain
from cowtree.live.commit import Commit, Wanted
from cowtree.storage.file import LocalFiles
from tests.crash import assert_sound
from tests.live.churn import overlay
from tests.live.writers import Client, Writer, open_disk
from tests.permits import permit_for
from tests.qemu import assert_clean, content, qemu_img, qemu_io


def newest(folder: Path) -> str:
    """The overlay that was made last; it may not be in use yet, and shows the same then."""
    return max((str(path) for path in folder.glob("overlay*")), key=lambda path: int(Path(path).stem[7:]))


@pytest.mark.slow
@pytest.mark.soak
def test_what_was_flushed_outlives_snapshots_and_merges_that_are_cut_short(tmp_path: Path, seed: int):
    choose, files = random.Random(seed), LocalFiles()
    options = choose.choice(("cluster_size=64k", "cluster_size=4k", "extended_l2=on"))
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, overlay(tmp_path, 0), "16M")
    qemu_io(Path(overlay(tmp_path, 0)), "write -P 1 4M 8M")
    place = str(tmp_path / "socket")
    words = [sys.executable, "-m", "tests.live.churn", place, str(tmp_path), str(seed)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        writer = Writer([Client(place, "0")], seed)
        time.sleep(choose.uniform(0.1, 1))
        assert server.poll() is None
        server.kill()
        writer.end()
    top = newest(tmp_path)
    chain = open_chain(files, top)
    chain.close()
    paths = [layer.path for layer in chain.layers]
    for path in paths:
        assert_sound(files, path, is_done=False)
    disk = open_disk(files, top)
    writer.check(bytes(disk.read(0, disk.size_bytes)), is_killed=True)
    # It is written to again, but shows the same.
    disk.write(0, memoryview(disk.read(0, 512)), is_durable=False)
    if len(paths) > 2:
        wanted = Wanted(paths[1], paths[-1], permit_for(files, paths[1]))
        assert Commit(files, disk, wanted).run() is not None
        assert_clean(Path(paths[-1]))
    disk.close()
    writer.check(content(Path(top)), is_killed=True)
    assert_clean(Path(top))
