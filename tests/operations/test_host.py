"""What every verb knows of one guest."""

import pytest

from cowtree.catalog import domains
from cowtree.operations.host import subject
from tests.lab import Lab


def test_a_guest_is_known_by_its_definition(tmp_path):
    lab = Lab(tmp_path / "lab", disk_count=2)
    with lab.host() as host:
        found = subject(host, domains.find(host.catalog, "guest"))
    assert found.source("vdb") == str(lab.folder / "disk1.qcow2")
    with pytest.raises(StopIteration):
        found.source("vdz")
