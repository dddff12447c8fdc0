"""A server that is killed while a client writes, as a process, with files on a disk."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cowtree.images import snapshot
from cowtree.storage.file import LocalFiles
from tests.crash import assert_sound, guest_view, snapshot_views
from tests.live.guests import FLUSH, WRITE, Act, Guest, random_acts, serving
from tests.qemu import qemu_img, qemu_io

SIZE_BYTES = 8 << 20
ACT_COUNT = 4000


def command(act: Act) -> str:
    """What qemu-io is told."""
    return "flush" if act.verb == FLUSH else f"write -P {act.byte} {act.offset} {act.length}"


def known(content: bytes, acts: list[Act], done_count: int) -> Guest:
    """What a guest knows whose writes came back so often."""
    guest = Guest(content)
    for act in acts:
        if act.verb == FLUSH:
            # It came back when a later write did.
            if done_count > 0:
                guest.end(act)
            continue
        guest.begin(act)
        if done_count == 0:
            break
        guest.end(act)
        done_count -= 1
    return guest


@pytest.mark.slow
@pytest.mark.soak
def test_what_was_flushed_outlives_the_server(tmp_path: Path, seed: int):
    choose, files = random.Random(seed), LocalFiles()
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", base, str(SIZE_BYTES))
    qemu_io(base, "write -P 1 0 3M", "write -P 2 4M 1M")
    options = choose.choice(("cluster_size=64k", "cluster_size=4k", "extended_l2=on", "compat=0.10"))
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, "-b", base, "-F", "qcow2", top)
    qemu_io(top, "write -P 3 1M 1M")
    if choose.random() < 0.5:
        snapshot.create(files, str(top), "qcow2", name="before")
    before, content = snapshot_views(files, str(top)), guest_view(files, str(top))
    acts = [act for act in random_acts(choose, SIZE_BYTES, ACT_COUNT) if act.verb in (WRITE, FLUSH)]
    acts = [act._replace(is_durable=False) for act in acts]
    words = [str(Path(sys.executable).with_name("cowtree")), "serve", "--socket", str(tmp_path / "s"), str(top)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        with subprocess.Popen(
            ["qemu-io", "-f", "raw", address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as client:
            assert client.stdin is not None
            client.stdin.write("\n".join(map(command, acts)) + "\n")
            client.stdin.close()
            time.sleep(choose.uniform(0.05, 0.4))
            server.kill()
            assert client.stdout is not None
            printed = client.stdout.read()
    guest = known(content, acts, printed.count("wrote "))
    guest.check(guest_view(files, str(top)), is_stopped=True)
    assert_sound(files, str(top), is_done=False)
    with serving(files, str(top)) as disk:
        disk.write(0, memoryview(b"x" * 70_000), is_durable=False)
    assert_sound(files, str(top), is_done=True)
    assert snapshot_views(files, str(top)) == before
