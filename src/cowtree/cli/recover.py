"""`cowtree recover`: merges that were begun and not ended are listed, and completed."""

import argparse
import os

from cowtree.cli import merge, options, pool, tree
from cowtree.cli.progress import Bar
from cowtree.cli.stop import stopping
from cowtree.cli.tree import printable
from cowtree.errors import CatalogError, CowtreeError, MissingImage


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "recover",
        help="complete merges that were stopped half-way",
        description="Completes every merge that was begun below the given places and not ended, by a signal, a power "
        "cut or a full disk. It goes on where it was stopped. Until then every guest sees what it saw. Only what you "
        "or root wrote down is followed.",
        epilog="Exit status: 0 when nothing is left half-done; else that of the first error.",
    )
    parser.add_argument(
        "places",
        nargs="*",
        metavar="PATH",
        help="a folder, an image, or what 'recover --list' names; all pools and . when not given",
    )
    parser.add_argument("--list", action="store_true", help="list what was left half-done, and change nothing")
    options.add_progress(parser)
    options.add_catalog(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """List, or complete."""
    from cowtree.operations import halves  # noqa: PLC0415  help does without

    errors = list[CowtreeError]()
    found, broken = halves.find(_places(arguments, errors), is_deep=True)
    for half in found:
        print(printable(f"{half.path}: {half.command}"), flush=True)
        if not arguments.list:
            try:
                print(f"completed; moved {_complete(arguments, half.path)} bytes", flush=True)
            except CowtreeError as error:
                errors.append(error)
    if not (found or broken):
        print("nothing was left half-done", flush=True)
    errors += broken
    for each in errors:
        tree.complain(str(each))
    return errors[0].exit_status if errors else 0


def _places(arguments: argparse.Namespace, errors: list[CowtreeError]) -> list[str]:
    """The folders and journals to look at; an image means what lies beside it."""
    from cowtree.operations import halves  # noqa: PLC0415  help does without

    if not arguments.places:
        try:
            pools, gone = pool.find_pools(arguments.catalog)
        except CatalogError as failure:
            errors.append(failure)
            return ["."]
        errors += gone
        return [".", *pools]
    places = []
    for place in arguments.places:
        if not os.path.lexists(place):
            # An image whose name a merge has taken already may still be meant.
            folder = os.path.dirname(place) or "."
            if not os.path.isdir(folder) or halves.is_journal(os.path.basename(place)):
                errors.append(MissingImage(path=place, reason="there is nothing of this name"))
                continue
            places.append(folder)
        elif os.path.isdir(place) or halves.is_journal(os.path.basename(place)):
            places.append(place)
        else:
            places.append(os.path.dirname(place) or ".")
    return places


def _complete(arguments: argparse.Namespace, path: str) -> int:
    from cowtree.operations.history import History  # noqa: PLC0415  help does without
    from cowtree.operations.wish import Manner, resume  # noqa: PLC0415
    from cowtree.storage.file import LocalFiles  # noqa: PLC0415

    with stopping(), Bar("recover", is_wanted=arguments.progress) as monitor:
        return resume(LocalFiles(), path, Manner(None, History(arguments.catalog, merge.warn_of), monitor))
