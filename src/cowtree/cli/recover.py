"""`cowtree recover`: merges that were begun and not ended are listed, and completed."""

import argparse
import os

from cowtree.cli import pool
from cowtree.cli.progress import Bar
from cowtree.cli.stop import stopping
from cowtree.cli.tree import printable


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "recover",
        help="complete merges that were stopped half-way",
        description="Completes every merge that was begun below the given places and not ended, by a signal, a power "
        "cut or a full disk. It goes on where it was stopped. Until then every guest sees what it saw.",
        epilog="Exit status: 0 when nothing is left half-done.",
    )
    parser.add_argument(
        "places",
        nargs="*",
        metavar="PATH",
        help="a folder, an image, or what 'recover --list' names; all pools and . when not given",
    )
    parser.add_argument("--list", action="store_true", help="list what was left half-done, and change nothing")
    parser.add_argument("-p", "--progress", action="store_true", help="show a bar when standard error is a terminal")
    pool.add_catalog_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """List, or complete."""
    from cowtree.operations.wish import find_halves, resume  # noqa: PLC0415  help does without
    from cowtree.storage.file import LocalFiles  # noqa: PLC0415

    places = arguments.places or [".", *pool.find_pools(arguments.catalog)[0]]
    folders = [place if os.path.isdir(place) else os.path.dirname(place) or "." for place in places]
    halves = find_halves(LocalFiles(), folders)
    for half in halves:
        print(printable(f"{half.path}: cowtree {' '.join(half.order.words)}"), flush=True)
        if not arguments.list:
            with stopping(), Bar("recover", is_wanted=arguments.progress) as monitor:
                moved_bytes = resume(LocalFiles(), half.path, monitor)
            print(f"completed; moved {moved_bytes} bytes")
    if not halves:
        print("nothing was left half-done")
    return 0
