"""`snapshot-list`, `snapshot-info`, `snapshot-dumpxml`, `snapshot-parent` and `snapshot-current`: what snapshots there
are.
"""

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cowtree.cli.domain.host import CURRENT, SNAPSHOT, current_snapshot, find_snapshot, open_host
from cowtree.cli.domain.table import Branch, fields, table, tree
from cowtree.cli.domain.words import DOMAIN, Command, Given, Option
from cowtree.errors import CowtreeError, NoSuchSnapshot, WrongUse

if TYPE_CHECKING:
    from cowtree.catalog.snapshots import Row
    from cowtree.operations.host import Host, Subject
    from cowtree.operations.lists import Choice

NANOSECONDS = 1_000_000_000
# Which states each of these flags lists.
STATES = {"inactive": ("shutoff",), "active": ("running", "paused"), "disk-only": ("disk-snapshot",)}
# Flags of which stock takes one at a time.
RIVALS = (
    *(("tree", "name"), ("parent", "roots"), ("parent", "tree"), ("roots", "tree"), ("roots", "from")),
    *(("roots", "current"), ("leaves", "tree"), ("no-leaves", "tree"), ("from", "current")),
)


def list_snapshots(given: Given) -> int:
    """Print the snapshots of a domain."""
    from cowtree.catalog import snapshots  # noqa: PLC0415  help does without
    from cowtree.operations.lists import chosen  # noqa: PLC0415
    from cowtree.operations.work import look_at  # noqa: PLC0415

    for pair in RIVALS:
        given.refuse_both(*pair)
    if given.has("descendants") and not (given.has("from") or given.has("current")):
        hint = "cowtree snapshot-list DOMAIN --from NAME --descendants"
        raise WrongUse(reason="--descendants requires either --from or --current", hint=hint)
    with open_host(given) as host:
        subject = look_at(host, given.want("domain"))
        choice = _choice(given, host, subject)
        rows = snapshots.rows(host.catalog, subject.domain)
    # All snapshots of ours are noted down.
    found = chosen(rows, choice) if given.has("metadata") or not given.has("no-metadata") else []
    if given.has("tree"):
        # The one from which the tree begins is shown as its root.
        found += [row for row in rows if row.id == choice.below]
        sys.stdout.writelines(tree([Branch(row.id, row.parent, row.name) for row in found]))
    elif given.has("name"):
        print("".join(f"{row.name}\n" for row in found))
    else:
        _print_table(found, {row.id: row.name for row in rows}, has_parents=given.has("parent"))
    return 0


def _choice(given: Given, host: "Host", subject: "Subject") -> "Choice":
    """Which snapshots the words choose. Raises: NoSuchSnapshot."""
    from cowtree.catalog import snapshots  # noqa: PLC0415
    from cowtree.operations.lists import Choice  # noqa: PLC0415

    start = given.get("from")
    below = None
    if start is not None:
        below = snapshots.find(host.catalog, subject.domain, start).id
    elif given.has("current"):
        below = current_snapshot(host, subject.domain).id
    states = frozenset(state for flag, states in STATES.items() if given.has(flag) for state in states)
    places = frozenset(flag == "external" for flag in ("internal", "external") if given.has(flag))
    is_leaf = None if given.has("leaves") == given.has("no-leaves") else given.has("leaves")
    return Choice(
        is_root=True if given.has("roots") else None,
        is_leaf=is_leaf,
        states=states or None,
        is_external=places or None,
        below=below,
        is_deep=given.has("descendants") or given.has("tree"),
        is_topological=given.has("topological"),
    )


def _print_table(rows: Sequence["Row"], names: dict[int, str], *, has_parents: bool) -> None:
    headings = ("Name", "Creation Time", "State", "Parent")
    cells = [
        (row.name, _shown_time(row.created_ns), row.state, "" if row.parent is None else names[row.parent])
        for row in rows
    ]
    count = len(headings) if has_parents else len(headings) - 1
    print(table(headings[:count], [each[:count] for each in cells]), end="")


def _shown_time(time_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(time_ns // NANOSECONDS))


def info(given: Given) -> int:
    """Print what a snapshot is, and where it stands."""
    from cowtree.operations import lists  # noqa: PLC0415
    from cowtree.operations.work import look_at  # noqa: PLC0415

    with open_host(given) as host:
        subject = look_at(host, given.want("domain"))
        snapshot = find_snapshot(given, host, subject.domain)
        place, is_external = lists.place(host, subject, snapshot), lists.is_external(host, snapshot)
    pairs = (
        *(("Name", snapshot.name), ("Domain", subject.domain.name)),
        *(("Current", "yes" if snapshot.id == subject.domain.current else "no"), ("State", snapshot.state)),
        *(("Location", "external" if is_external else "internal"), ("Parent", place.parent or "-")),
        *(("Children", str(place.child_count)), ("Descendants", str(place.descendant_count)), ("Metadata", "yes")),
    )
    print(fields(pairs), end="")
    return 0


def dumpxml(given: Given) -> int:
    """Print a snapshot as XML."""
    from cowtree.domain.moment import dump  # noqa: PLC0415
    from cowtree.operations.lists import described  # noqa: PLC0415
    from cowtree.operations.work import look_at  # noqa: PLC0415

    with open_host(given) as host:
        subject = look_at(host, given.want("domain"))
        print(dump(described(host, find_snapshot(given, host, subject.domain))))
    return 0


def parent(given: Given) -> int:
    """Print on which snapshot another one lies."""
    from cowtree.catalog import snapshots  # noqa: PLC0415
    from cowtree.operations.work import look_at  # noqa: PLC0415

    with open_host(given) as host:
        subject = look_at(host, given.want("domain"))
        snapshot = find_snapshot(given, host, subject.domain)
        if snapshot.parent is None:
            raise NoParent(name=snapshot.name)
        print(snapshots.get(host.catalog, snapshot.parent).name)
    return 0


class NoParent(NoSuchSnapshot):
    """A snapshot lies on no other one."""

    text = "snapshot '{name}' has no parent"
    hint = ""


def current(given: Given) -> int:
    """Print the snapshot on which the disks lie, or say which it is."""
    from cowtree.domain.moment import dump  # noqa: PLC0415
    from cowtree.operations.lists import described  # noqa: PLC0415
    from cowtree.operations.work import look_at  # noqa: PLC0415

    given.refuse_both("name", "snapshotname")
    if given.has("snapshotname"):
        return _set_current(given)
    with open_host(given) as host:
        subject = look_at(host, given.want("domain"))
        if subject.domain.current is None:
            raise NoCurrent(domain=subject.domain.name)
        snapshot = current_snapshot(host, subject.domain)
        print(snapshot.name if given.has("name") else dump(described(host, snapshot)))
    return 0


class NoCurrent(CowtreeError):
    """A domain's disks lie on no snapshot; stock says so in other words here."""

    exit_status = NoSuchSnapshot.exit_status
    text = "domain '{domain}' has no current snapshot"


def _set_current(given: Given) -> int:
    from cowtree.operations import edit  # noqa: PLC0415
    from cowtree.operations.work import at_work  # noqa: PLC0415

    with open_host(given) as host, at_work(host, given.want("domain")) as subject:
        snapshot = find_snapshot(given, host, subject.domain)
        edit.make_current(host, subject, snapshot)
    print(f"Snapshot {snapshot.name} set as current")
    return 0


LIST_OPTIONS = (
    DOMAIN,
    Option("parent", "add a column with the parent of each"),
    Option("roots", "only those that lie on no other one"),
    Option("leaves", "only those on which none lies"),
    Option("no-leaves", "only those on which another one lies"),
    Option("metadata", "only those that are noted down: all are"),
    Option("no-metadata", "only those that are not noted down: none is"),
    Option("inactive", "only those of the domain shut off"),
    Option("active", "only those of the domain running or paused"),
    Option("disk-only", "only those of the disks of a running domain"),
    Option("internal", "only those that lie in the files of the disks"),
    Option("external", "only those that are held in a file of their own"),
    Option("tree", "draw them as a tree"),
    Option("from", "only the children of this one; with --tree it too, and all that hangs on it", "snapshotname"),
    Option("current", "only the children of the current one"),
    Option("descendants", "with --from or --current: all that hangs on it"),
    Option("name", "print names only"),
    Option("topological", "each behind its parent, not by name"),
)

COMMANDS = {
    each.name: each
    for each in (
        Command("snapshot-list", "list the snapshots of a domain", LIST_OPTIONS, list_snapshots),
        Command("snapshot-info", "print what a snapshot is, and where it stands", (DOMAIN, SNAPSHOT, CURRENT), info),
        Command(
            "snapshot-dumpxml",
            "print a snapshot as XML",
            (DOMAIN, SNAPSHOT._replace(is_required=True)),
            dumpxml,
        ),
        Command("snapshot-parent", "print on which snapshot another one lies", (DOMAIN, SNAPSHOT, CURRENT), parent),
        Command(
            "snapshot-current",
            "print the snapshot on which the disks of a domain lie",
            (
                DOMAIN,
                Option("name", "print its name only"),
                SNAPSHOT._replace(help="do not print it, but say that it is this one"),
            ),
            current,
        ),
    )
}
