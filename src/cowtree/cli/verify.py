"""`cowtree verify`: whether each overlay's base is still what it was when the overlay was made."""

import argparse
import json
import sys
from typing import TYPE_CHECKING

from cowtree.cli import options, pool, tree
from cowtree.cli.tree import printable
from cowtree.errors import CatalogError, CowtreeError, StaleBase

if TYPE_CHECKING:
    from cowtree.catalog.store import Catalog
    from cowtree.chain.forest import Forest
    from cowtree.images.lineage import Finding


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "verify",
        help="find overlays whose base was changed after they were made",
        description="Compares the base of each overlay with what the overlay keeps of it since it was made: its size, "
        "its times and a fingerprint of its content. The fingerprint is made of samples: it tells a base that was "
        "changed from one that was copied or touched, but a change of a few bytes can escape it. cowtree makes such a "
        "record whenever it makes or rebases an overlay; other tools make none, and keep those that are there.",
        epilog="Exit status: 0 when no base was changed, 20 when one was; else that of the first error.",
    )
    parser.add_argument(
        "places", nargs="*", metavar="PATH", help="a folder or an image; all pools when not given, or . without pools"
    )
    options.add_output(parser)
    parser.add_argument("--record", action="store_true", help="make a record for each overlay that has none")
    parser.add_argument(
        "--accept",
        action="store_true",
        help="make a new record, too, for each overlay whose base was changed or touched",
    )
    options.add_catalog(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Look at all overlays, and say what became of their bases."""
    from cowtree.chain.forest import survey  # noqa: PLC0415  other verbs and help do without
    from cowtree.images import verify  # noqa: PLC0415
    from cowtree.storage.file import LocalFiles  # noqa: PLC0415

    files, catalog = LocalFiles(), _open_catalog(arguments)
    places, errors = arguments.places, list[CowtreeError]()
    if not places:
        places, gone = pool.find_pools(arguments.catalog)
        errors += gone
    try:
        forest = survey(files, places or ([] if errors else ["."]))
        findings = verify.verify(files, forest, catalog)
        if arguments.record or arguments.accept:
            findings, failed = verify.record_anew(files, findings, catalog, accepts=arguments.accept)
            errors += failed
    finally:
        if catalog:
            catalog.close()
    if arguments.output == "json":
        print(json.dumps(describe(forest, findings), indent=4))
    else:
        _show(forest, findings)
    return _conclude(forest, findings, errors)


def _open_catalog(arguments: argparse.Namespace) -> "Catalog | None":
    """The catalogue; without it only a few overlays, whose header has no room for a record, cannot be judged."""
    from cowtree.catalog.store import open_catalog  # noqa: PLC0415  help needs no database

    try:
        return open_catalog(arguments.catalog, creates=arguments.record or arguments.accept)
    except CatalogError as error:
        if not arguments.places:
            raise
        tree.complain(str(error))
        return None


def describe(forest: "Forest", findings: "list[Finding]") -> dict[str, object]:
    """What was found, in the words of JSON."""
    overlays = [
        {"overlay": each.overlay, "base": each.base, "state": each.state, "note": each.note} for each in findings
    ]
    return {"overlays": overlays, **tree.describe_reach(forest)}


def _show(forest: "Forest", findings: "list[Finding]") -> None:
    from cowtree.images.verify import TOLD, count_states  # noqa: PLC0415

    for each in findings:
        if text := TOLD.get(each.state):
            print(printable(f"{each.overlay}: {text.format(base=each.base, note=each.note)}"))
    counts = ", ".join(f"{count} {text}" for count, text in count_states(findings))
    overlays = f"{len(findings)} overlay{'' if len(findings) == 1 else 's'}{': ' if counts else ''}"
    print(printable(f"{overlays}{counts}. Looked in {tree.looked(forest)}."))


def _conclude(forest: "Forest", findings: "list[Finding]", errors: list[CowtreeError]) -> int:
    """Say what is wrong. Returns: the exit status."""
    from cowtree.images.lineage import CHANGED  # noqa: PLC0415

    sys.stdout.flush()
    stale = [StaleBase(path=each.overlay, base=each.base) for each in findings if each.state == CHANGED]
    for sentence in (*map(str, (*stale, *errors)), *tree.complaints(forest)):
        tree.complain(sentence)
    found = [*stale, *errors, *forest.problems]
    return found[0].exit_status if found else tree.status_of(forest)
