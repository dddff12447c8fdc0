"""Where images are looked for that lie on others: in the pools, and wherever the catalogue knows images of a guest.

What is in no such folder, and in none of the family's own, is found by nobody.
"""

import os
import stat

from cowtree.catalog import domains, snapshots
from cowtree.domain.definition import parse
from cowtree.operations.host import Host


def places(host: Host) -> tuple[str, ...]:
    """The pools that are there, and of each folder with images of guests one of them: around it all are looked at."""
    found = dict[str, str]()
    for domain in domains.everyone(host.catalog):
        for disk in parse(domain.xml).disks:
            if disk.source is not None:
                found.setdefault(os.path.dirname(disk.source), disk.source)
    for path in snapshots.paths(host.catalog):
        folder = os.path.dirname(path)
        if folder not in found or not _is_file(found[folder]):
            found[folder] = path
    return (*filter(os.path.isdir, host.catalog.pools()), *filter(_is_file, found.values()))


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False
