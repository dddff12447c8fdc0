"""Creating, stopped everywhere: under the final name is what was there before, or the whole new image."""

from collections.abc import Callable

import pytest

from cowtree.images.create import create, temporary_name
from cowtree.plan.create import NewImage
from tests.crash import stop_everywhere, trial_of_new

NEW = {
    "qcow2": NewImage("new", "qcow2", 1 << 20),
    "small clusters in version 2": NewImage("new", "qcow2", 100 << 20, cluster_bits=9, version=2),
    "an overlay": NewImage("new", "qcow2", 1 << 20, backing_file="base", backing_format="raw"),
    "raw": NewImage("new", "raw", 1 << 20),
    "raw with its space": NewImage("new", "raw", 1 << 20, preallocation="falloc"),
    "raw full of zeroes": NewImage("new", "raw", 1 << 20, preallocation="full"),
    "with its tables": NewImage("new", "qcow2", 1 << 20, cluster_bits=12, preallocation="metadata"),
    "with its space": NewImage("new", "qcow2", 1 << 20, cluster_bits=12, preallocation="falloc"),
    "with a data file": NewImage("new", "qcow2", 1 << 20, data_file="data"),
    "in a folder": NewImage("folder/new", "qcow2", 1 << 20),
}
FOUND: dict[str, Callable[[str], dict[str, bytes]]] = {
    "nothing": lambda path: {},
    "an old file": lambda path: {path: b"old" * 50000},
    "a leftover": lambda path: {temporary_name(path): b"half" * 50000},
}


@pytest.mark.slow
@pytest.mark.parametrize("found", FOUND)
@pytest.mark.parametrize("name", NEW)
def test_a_creation_can_be_stopped_everywhere(name, found):
    new = NEW[name]
    made = [new.path, *([new.data_file] if new.data_file else [])]
    initial = {"base": b"base" * 1000}
    for path in made:
        initial |= FOUND[found](path)
    stop_everywhere(trial_of_new(initial, lambda files: create(files, new), made))
