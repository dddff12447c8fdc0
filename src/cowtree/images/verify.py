"""All overlays of a forest beside what they keep of their bases, and new records for them.

Nothing that is wrong with one overlay keeps the others from being looked at.
"""

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from cowtree.chain import gate
from cowtree.chain.forest import Forest, Node
from cowtree.errors import CowtreeError, Refused
from cowtree.images.lineage import CHANGED, TOUCHED, UNCHANGED, UNKNOWN, Finding, compare, record
from cowtree.storage.contract import Access, FileSystem

if TYPE_CHECKING:
    from cowtree.catalog.store import Catalog

# Two states more than a comparison finds: the base could not be looked at, and a new record was made.
UNREAD, RECORDED = "unread", "recorded"
# What is said of one overlay, but for those of which an error is made.
TOLD: Final = {
    TOUCHED: "base was copied or touched since, but what was looked at of it is as it was: {base}",
    UNREAD: "base could not be looked at: {base}: {note}",
    RECORDED: "recorded what its base is now: {base}",
}
_COUNTED: Final = {
    CHANGED: "with a changed base",
    TOUCHED: "with a touched base",
    UNCHANGED: "with an unchanged base",
    RECORDED: "recorded",
    UNKNOWN: "without a record",
    UNREAD: "that could not be compared",
}


def verify(files: FileSystem, forest: Forest, catalog: "Catalog | None" = None) -> list[Finding]:
    """Compare the base of each overlay with what was known of it, bases before what hangs on them."""
    pairs = ((node, forest.nodes[node.parent]) for node in forest.nodes if node.parent is not None and node.backing)
    return [_look(files, node, base, catalog) for node, base in pairs]


def _look(files: FileSystem, node: Node, base: Node, catalog: "Catalog | None") -> Finding:
    try:
        layer = gate.open_alone(files, node.path, gate.QCOW2, Access.SHARED)
        try:
            if layer.header is None:
                raise Refused(reason=f"{node.path} has no backing file")
            return compare(files, node.path, layer.header, catalog)._replace(base=base.path)
        finally:
            layer.close()
    except CowtreeError as error:
        return Finding(node.path, base.path, UNREAD, error.reason)


def record_anew(
    files: FileSystem, findings: Iterable[Finding], catalog: "Catalog | None" = None, *, accepts: bool = False
) -> tuple[list[Finding], list[CowtreeError]]:
    """Make records for overlays that have none, and with `accepts` for those whose base was changed or touched.
    Returns: what holds now, and what went wrong.
    """
    wanted = (UNKNOWN, CHANGED, TOUCHED) if accepts else (UNKNOWN,)
    now, errors, written = list[Finding](), list[CowtreeError](), set[str]()
    for each in findings:
        # A record is a write: what hangs on the overlay would find it touched.
        is_renewed = each.state == UNCHANGED and each.base in written
        if each.state in wanted or is_renewed:
            try:
                if record(files, each.overlay, gate.QCOW2, catalog=catalog):
                    written.add(each.overlay)
                    each = each if is_renewed else each._replace(state=RECORDED, note=None)  # noqa: PLW2901
                else:
                    each = each._replace(note="its header has no room for a record")  # noqa: PLW2901
            except CowtreeError as error:
                errors.append(error)
        now.append(each)
    return now, errors


def count_states(findings: Iterable[Finding]) -> list[tuple[int, str]]:
    """How many overlays there are of each state, in words; those that there are none of are left out."""
    counts = Counter(each.state for each in findings)
    return [(counts[state], text) for state, text in _COUNTED.items() if counts[state]]
