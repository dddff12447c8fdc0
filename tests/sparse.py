"""Owns large sparse qcow2 images: a terabyte of disk, a million clusters that hold zeroes, a few megabytes on disk."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from cowtree.chain.view import Chain
from cowtree.execute.run import run
from cowtree.monitor import Silent
from cowtree.plan import convert as plan
from cowtree.plan.create import NewImage
from cowtree.qcow2.tables import COPIED, encode_words
from cowtree.storage.file import LocalFiles
from cowtree.units import TIB

CLUSTERS_AT_ONCE = 1 << 10
MEMORY_MIB_MAX = 256


def sparse_image(path: Path, cluster_count: int, seed: int, cluster_bits: int = 16) -> Path:
    """Make an image of 1 TiB in which so many clusters, scattered, have a host cluster of their own."""
    new = NewImage(str(path), "qcow2", TIB, cluster_bits)
    header, layout = plan.begin(new)
    choose = np.random.default_rng(seed)
    clusters = np.unique(choose.integers(0, TIB >> cluster_bits, cluster_count))
    l1 = np.zeros(header.l1_entry_count, np.uint64)
    file = LocalFiles().create(new.path, 0o644)
    for part in (*np.array_split(clusters, -(-len(clusters) // CLUSTERS_AT_ONCE)), None):
        if part is None:
            filled, layout = plan.close(layout)
        else:
            hosts, layout = plan.take(layout, len(part))
            filled, layout = plan.enter(layout, part, plan.data_words(header.geometry, hosts))
        first, count = filled.first_cluster, len(filled.l1_index)
        l1[filled.l1_index] = np.arange(first, first + count, dtype=np.uint64) << np.uint64(cluster_bits) | COPIED
        file.pwrite(first << cluster_bits, encode_words(filled.words))
    run(plan.finish(layout, header, l1, np.empty(0, np.int64)), file, Chain((), ()), Silent())
    file.close()
    return path


def peak_memory_mib(code: str, *arguments: str | Path) -> int:
    """Run Python code in a process of its own, and return the most memory that it had."""
    # Not what getrusage says: that begins with the memory of the process that starts it.
    tail = "\nprint(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    words = [sys.executable, "-c", code + tail, *map(str, arguments)]
    printed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return int(printed.splitlines()[-1]) * 1024 // (1 << 20)
