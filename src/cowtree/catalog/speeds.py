"""How fast merges were on a device: no image tells, and no image misses it."""

from cowtree.catalog.store import Catalog


def note(catalog: Catalog, device: int, bytes_per_s: int) -> None:
    """Keep how fast the last large merge was."""
    catalog.change("INSERT OR REPLACE INTO speed VALUES (?, ?)", str(device), bytes_per_s)


def recall(catalog: Catalog, device: int) -> int | None:
    """How fast it was; None when there was none."""
    found = catalog.read("SELECT bytes_per_s FROM speed WHERE device = ?", str(device))
    return int(found[0][0]) if found else None
