"""Merges of layers with subclusters and with external data files, stopped everywhere.

What a subcluster holds changes in one entry of 16 bytes, which no write that is torn at a sector tears; guest data in
another file is durable before the tables say so. A data file that is read as raw shows what the disk shows, always.
"""

from pathlib import Path

import pytest

from cowtree.images.merge import pull, rebase
from cowtree.storage.memory import MemoryFiles
from tests.crash import Trial, cut_power_everywhere, fail_everywhere, guest_view, kill_everywhere
from tests.images.test_safety_merge import Case, Disk, commit_case, finish, make, trial_of
from tests.permits import commit

# Subclusters of 512 bytes.
FINE = "cluster_size=16k,extended_l2=on"
BASE_WRITES = ("write -P 1 0 10k", "write -P 2 20k 3k", "write -z 28k 2k")
TOP_WRITES = ("write -P 3 5k 7k", "write -z 21k 1k", "write -P 4 29k 500")
BASE = Disk("base.qcow2", "32k", FINE, None, BASE_WRITES)
TOP = Disk("top.qcow2", "32k", FINE, "base.qcow2", TOP_WRITES)
PLAIN_BASE, PLAIN_TOP = (each._replace(options="cluster_size=4k") for each in (BASE, TOP))


def held_by(disk: Disk, more: str = "") -> Disk:
    """The same disk with its data in another file."""
    return disk._replace(options=f"{disk.options},data_file={disk.name.removesuffix('.qcow2')}.data{more}")


PACKED = ("write -c -P 9 0 16k", "write -c -P 8 16k 16k", *TOP_WRITES[1:])
SNAPSHOTS = (TOP_WRITES[0], "snapshot a", "write -P 3 6k 1k", "write -z 12k 2k")

CASES = {
    "commit subclusters": commit_case(BASE, TOP),
    "commit into snapshots of subclusters": commit_case(BASE._replace(commands=(*BASE_WRITES, "snapshot a")), TOP),
    "commit into compressed clusters with subclusters": commit_case(BASE._replace(commands=PACKED), TOP),
    "commit into subclusters that grow": commit_case(BASE._replace(size="30k"), TOP._replace(size="45k")),
    "pull into subclusters": Case([PLAIN_BASE, TOP], lambda files: pull(files, "top.qcow2")),
    "pull into snapshots of subclusters": Case(
        [BASE, TOP._replace(commands=SNAPSHOTS)], lambda files: pull(files, "top.qcow2")
    ),
    "pull into subclusters allocated beforehand": Case(
        [BASE, TOP._replace(options=f"{FINE},preallocation=metadata")], lambda files: pull(files, "top.qcow2")
    ),
    "rebase compressed clusters with subclusters": Case(
        [
            BASE,
            Disk("other.qcow2", "40k", "cluster_size=512", None, ("write -P 1 0 10k", "write -P 8 30k 5k")),
            TOP._replace(commands=PACKED),
        ],
        lambda files: rebase(files, "top.qcow2", backing=("other.qcow2", "qcow2")),
    ),
    "commit into lazy counts": commit_case(PLAIN_BASE._replace(options="cluster_size=512,lazy_refcounts=on"), TOP),
    "commit from a data file": Case(
        [BASE, held_by(PLAIN_TOP)],
        lambda files: commit(files, "top.qcow2"),
        ("base.qcow2", "top.qcow2", "top.data"),
    ),
    "commit into a data file": Case(
        [held_by(PLAIN_BASE._replace(size="30k")), TOP],
        lambda files: commit(files, "top.qcow2"),
        ("base.qcow2", "base.data", "top.qcow2"),
    ),
    "pull into a data file with subclusters": Case(
        [PLAIN_BASE, held_by(TOP)], lambda files: pull(files, "top.qcow2"), ("top.qcow2", "top.data")
    ),
}
# Errors take longest to try.
FAILING = ("commit subclusters", "commit from a data file", "pull into a data file with subclusters")


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_merge_of_any_layers_can_be_stopped_everywhere(tmp_path: Path, name: str):
    case = CASES[name]
    trial = trial_of(make(tmp_path, case.disks), case.operation, case.changed)
    kill_everywhere(trial)
    cut_power_everywhere(trial)
    if name in FAILING:
        fail_everywhere(trial)
    finish(trial, tmp_path, case.changed)


@pytest.mark.slow
def test_a_data_file_that_is_read_as_raw_always_shows_what_the_disk_shows(tmp_path: Path):
    # Where a flag of QEMU's says that a cluster is zero, two files change when it holds something again.
    disks = [held_by(PLAIN_BASE._replace(commands=BASE_WRITES[:2]), ",data_file_raw=on"), PLAIN_TOP]
    changed = ("base.qcow2", "base.data", "top.qcow2")
    trial = trial_of(make(tmp_path, disks), lambda files: commit(files, "top.qcow2"), changed)

    def check(files: MemoryFiles, is_done: bool) -> None:
        assert files.content("base.data") == guest_view(files, "base.qcow2")
        trial.check(files, is_done)
        assert files.content("base.data") == guest_view(files, "base.qcow2")

    strict = Trial(trial.initial, trial.operation, check)
    kill_everywhere(strict)
    cut_power_everywhere(strict)
    finish(strict, tmp_path, changed)
