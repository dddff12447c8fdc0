"""What verbs that work on files have to do with guests: what they make of disks and snapshots is told, and noted.

A catalogue that knows no guest costs one look; one that cannot be written costs a sentence.
"""

from typing import TYPE_CHECKING

from cowtree.cli import tree
from cowtree.errors import CatalogError

if TYPE_CHECKING:
    from cowtree.images.wish import Planned
    from cowtree.operations.outside import Foreseen
    from cowtree.storage.contract import FileSystem


def foresee(catalog_path: str | None, files: "FileSystem", planned: "Planned") -> "tuple[Foreseen | None, list[str]]":
    """What a merge will make of guests' names, and what is to be said of it before."""
    from cowtree.catalog import domains  # noqa: PLC0415  help needs no database
    from cowtree.catalog.store import open_catalog  # noqa: PLC0415

    with open_catalog(catalog_path, creates=False) as catalog:
        if not planned.plan.acts or not domains.everyone(catalog):
            return None, []
        from cowtree.operations import outside, views  # noqa: PLC0415  most catalogues know no guest
        from cowtree.operations.host import Host  # noqa: PLC0415

        host = Host(files, catalog, tree.complain)
        foreseen = outside.foresee(host, planned, f"cowtree {planned.wish.verb}")
        return foreseen, [] if foreseen is None else list(views.warnings(host, foreseen.names))


def foresee_rest(catalog_path: str | None, journal_path: str) -> "Foreseen | None":
    """The same for a merge that was begun and is completed."""
    from cowtree.catalog import domains  # noqa: PLC0415  help needs no database
    from cowtree.catalog.store import open_catalog  # noqa: PLC0415

    with open_catalog(catalog_path, creates=False) as catalog:
        if not domains.everyone(catalog):
            return None
        from cowtree.images import halves  # noqa: PLC0415  most catalogues know no guest
        from cowtree.operations import outside  # noqa: PLC0415
        from cowtree.operations.host import Host  # noqa: PLC0415
        from cowtree.storage.file import LocalFiles  # noqa: PLC0415

        order, _ = halves.read(journal_path)
        return outside.foresee_rest(Host(LocalFiles(), catalog, tree.complain), order, f"cowtree {order.words[0]}")


def note(catalog_path: str | None, foreseen: "Foreseen") -> None:
    """Note it when the merge is done."""
    from cowtree.catalog.store import open_catalog  # noqa: PLC0415  help needs no database
    from cowtree.operations import outside  # noqa: PLC0415
    from cowtree.operations.host import Host  # noqa: PLC0415
    from cowtree.storage.file import LocalFiles  # noqa: PLC0415

    try:
        with open_catalog(catalog_path) as catalog:
            outside.note(Host(LocalFiles(), catalog, tree.complain), foreseen)
    except CatalogError as error:
        tree.complain(f"guests' disks and snapshots have other names now, which cannot be noted: {error}")
