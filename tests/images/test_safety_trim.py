"""Trim, stopped everywhere: guest and snapshots see what they saw, and a second run ends it."""

from pathlib import Path

import pytest

from cowtree.chain.forest import Forest, Node
from cowtree.images.trim import Asked, trim_image
from cowtree.storage.contract import FileSystem
from tests.crash import cut_power_everywhere, kill_everywhere, stop_everywhere
from tests.images.test_safety_merge import V2, V3, Case, Disk, finish, make, trial_of


def trim(files: FileSystem) -> None:
    """Trim the top, and what it hides of its only base."""
    nodes = (Node("base.qcow2", format="qcow2"), Node("top.qcow2", format="qcow2", parent=0))
    forest = Forest(nodes, ((1,), ()), (), ())
    trim_image(files, "top.qcow2", Asked(None, lambda _: forest, hides=True), lambda _: None)


BASE = ("write -P 1 0 24k", "write -c -P 2 30k 512", "write -P 3 33k 9k")
TOP = ("write -P 1 0 5k", "write -P 0 8k 4k", "write -P 9 20k 15k", "write -P 0 50k 3k", "write -z 36k 2k")

CASES = {
    "small clusters": Case(
        [Disk("base.qcow2", "64k", V3, None, BASE), Disk("top.qcow2", "64k", V3, "base.qcow2", TOP)], trim
    ),
    "version 2": Case(
        [Disk("base.qcow2", "64k", V2, None, BASE), Disk("top.qcow2", "64k", V2, "base.qcow2", TOP[:-1])], trim
    ),
    "snapshots": Case(
        [
            Disk("base.qcow2", "64k", V3, None, (*BASE, "snapshot b")),
            Disk("top.qcow2", "64k", V3, "base.qcow2", (*TOP[:2], "snapshot a", *TOP[2:], "write -P 1 2k 1k")),
        ],
        trim,
    ),
    "subclusters": Case(
        [
            Disk("base.qcow2", "64k", "cluster_size=16k,extended_l2=on", None, BASE[:1] + BASE[2:]),
            Disk("top.qcow2", "64k", "cluster_size=16k,extended_l2=on", "base.qcow2", TOP),
        ],
        trim,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_no_stop_changes_what_is_seen(tmp_path: Path, name: str):
    case = CASES[name]
    changed = [disk.name for disk in case.disks]
    trial = trial_of(make(tmp_path, case.disks), case.operation, changed)
    if name == "small clusters":
        stop_everywhere(trial)
    else:
        kill_everywhere(trial)
        cut_power_everywhere(trial)
    finish(trial, tmp_path, changed)
