"""A catalogue of its own for each test."""

import pytest

from cowtree.catalog import domains
from cowtree.catalog.store import open_catalog


@pytest.fixture
def catalog(tmp_path):
    with open_catalog(str(tmp_path / "catalog.db"), clock=lambda: 7_000) as found:
        yield found


@pytest.fixture
def domain(catalog):
    return domains.add(catalog, "guest", "0-1", "<domain/>")
