"""Owns the proof that a plan knows what is cloned: on file systems that let files share blocks it takes the way that
copies least, and what it says is what is done.
"""

import json
import random
import re
from pathlib import Path

import pytest

from cowtree.cli.main import main
from cowtree.errors import Refused
from cowtree.images import act as acts
from cowtree.images import order
from cowtree.images.family import find
from cowtree.images.price import pricer
from cowtree.images.tally import Tally
from cowtree.images.wish import Wish, make_plan
from cowtree.plan import clone, strategy
from cowtree.plan.family import Merge
from cowtree.storage.file import LocalFiles
from cowtree.storage.memory import PAGE_BYTES
from cowtree.units import KIB, MIB
from tests.mounts import KINDS, mounted, used_bytes
from tests.qemu import content, qemu_img, qemu_io
from tests.trees import STAMP, find_journal, grow, random_parents

LONG_BYTES, PACKED_COUNT = 8 * MIB, 32


@pytest.mark.soak
def test_at_least_as_much_is_cloned_as_was_promised(seed: int, monkeypatch: pytest.MonkeyPatch):
    choose = random.Random(seed)
    # So that small images, too, are long enough.
    monkeypatch.setattr(clone, "PIECE_BYTES_MIN", PAGE_BYTES)
    tree = grow(random_parents(choose.randint(2, 5), choose), seed, sizes=[41, 64, 128], mixed="clusters")
    leaf = choose.choice(tree.family.leaves)
    group = tree.family.line(leaf)
    target = choose.choice(group)
    wanted = Merge(group, target, leaf)
    is_atomic = choose.random() < 0.3
    try:
        cost = pricer(tree.files, tree.family, is_atomic=is_atomic)(wanted)
    except Refused:
        return
    tally, wish = Tally(None), order.Order(tree.family, (wanted,), order.RENAME, STAMP, is_atomic=is_atomic)
    acts.carry_out(tree.files, wish, find_journal(tree.files, wish), tally)
    assert tally.moved_bytes == cost.moved_bytes
    assert tally.cloned_bytes >= cost.cloned_bytes


def make(folder: Path) -> tuple[Path, Path]:
    """A base with a little that is compressed, and an overlay with much that is not: what is compressed is copied."""
    base, top = folder / "base.qcow2", folder / "top.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", base, "64M")
    qemu_io(base, *(f"write -c -P 1 {index * 64 * KIB} 64k" for index in range(PACKED_COUNT)))
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top, "64M")
    qemu_io(top, f"write -P 2 32M {LONG_BYTES}")
    return base, top


def test_where_nothing_can_be_cloned_the_large_one_stays(tmp_path: Path):
    base, top = make(tmp_path)
    file = LocalFiles().open(str(top), "write")
    can_share = file.clone_block_bytes(file) > 0
    file.close()
    planned = make_plan(LocalFiles(), Wish("commit", str(top)))
    # Folders for tests lie on any file system.
    assert planned.family.path(planned.plan.acts[0].target) == str(base if can_share else top)
    assert planned.plan.cost.cloned_bytes == LONG_BYTES * can_share


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_way_that_clones_is_preferred_and_what_is_printed_is_done(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with mounted(kind, tmp_path) as place:
        base, top = make(place)
        files = LocalFiles()
        planned = make_plan(files, Wish("commit", str(top)))
        family, cost = planned.family, planned.plan.cost
        assert family.path(planned.plan.acts[0].target) == str(base)
        price = pricer(files, family)
        kin = find(files, str(top))
        ways = list(strategy.commit(kin.family, kin.find(files, str(top))))
        assert cost.traffic_bytes == min(sum(price(each).traffic_bytes for each in way) for way in ways)
        assert cost.traffic_bytes == 0
        seen, before = content(top), used_bytes(place)
        catalog = f"--catalog={tmp_path}/catalog.db"
        assert main(["cowtree", "plan", "commit", str(top), "--output=json", catalog]) == 0
        said = json.loads(capsys.readouterr().out)
        assert said["to-clone"] == LONG_BYTES
        assert main(["cowtree", "commit", str(top), catalog]) == 0
        printed = capsys.readouterr().out
        assert re.findall(r"moves (\d+) bytes .*at least (\d+) of them", printed) == [(str(cost.moved_bytes),) * 2]
        assert re.findall(r"moved (\d+) bytes .*, (\d+) of them", printed) == [(str(cost.moved_bytes),) * 2]
        assert used_bytes(place) - before < MIB
        assert content(base) == seen
