"""`cowtree recover`: merges that were begun and not ended are listed, and completed."""

import argparse
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cowtree.cli import guests, merge, options, pool, tree
from cowtree.cli.progress import Bar
from cowtree.cli.stop import stopping
from cowtree.cli.tree import printable
from cowtree.errors import CatalogError, CowtreeError, MissingImage

if TYPE_CHECKING:
    from cowtree.images.order import Order


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "recover",
        help="complete merges that were stopped half-way",
        description="Completes every merge that was begun below the given places and not ended, by a signal, a power "
        "cut or a full disk. It goes on where it was stopped. Until then every guest sees what it saw. A journal is "
        "followed only when you or root wrote it and the catalogue knows the merge, for an archive may bring one "
        "along; if the catalogue was lost, --trust names those that you began yourself.",
        epilog="Exit status: 0 when nothing is left half-done; else that of the first error.",
    )
    parser.add_argument(
        "places",
        nargs="*",
        metavar="PATH",
        help="a folder, an image, or what 'recover --list' names; all pools and . when not given",
    )
    parser.add_argument("--list", action="store_true", help="list what was left half-done, and change nothing")
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="JOURNAL",
        help="complete this one, which the catalogue does not know: you began it, and want all that is printed of it",
    )
    options.add_progress(parser)
    options.add_catalog(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """List, or complete."""
    from cowtree.images import halves  # noqa: PLC0415  help does without
    from cowtree.images.history import History  # noqa: PLC0415

    errors = list[CowtreeError]()
    trusted = {os.path.abspath(path) for path in arguments.trust}
    found, broken = halves.find([*_places(arguments, errors), *arguments.trust], is_deep=True)
    found_paths = {half.path for half in found} | {error.facts["path"] for error in broken}
    errors += [MissingImage(path=path, reason="there is no such journal") for path in sorted(trusted - found_paths)]
    history = History(arguments.catalog, merge.warn_of)
    for half in found:
        print(printable(f"{half.path}: {half.command}"), flush=True)
        if not history.knows(half.order):
            print("\n".join(map(printable, _told(half.order))), flush=True)
        if not arguments.list:
            try:
                moved_bytes = _complete(arguments, half.path, is_trusted=half.path in trusted)
                print(f"completed; moved {moved_bytes} bytes", flush=True)
            except CowtreeError as error:
                errors.append(error)
    if not (found or broken):
        print("nothing was left half-done", flush=True)
    errors += broken
    for each in errors:
        tree.complain(str(each))
    return errors[0].exit_status if errors else 0


def _told(order: "Order") -> Iterator[str]:
    """What a merge would do that the catalogue does not know."""
    yield "  it is not in the catalogue; what it says is:"
    now = order.family
    for act in order.acts:
        after = now.after(act)
        yield f"  {merge.title(now, act)}"
        if linked := now.paths(now.overlays(act.top)):
            yield f"  link to {now.path(act.name)}: {', '.join(linked)}"
        if gone := now.paths(tuple(sorted(after.gone - now.gone))):
            yield f"  {order.ending} what is not needed then: {', '.join(gone)}"
        now = after


def _places(arguments: argparse.Namespace, errors: list[CowtreeError]) -> list[str]:
    """The folders and journals to look at; an image means what lies beside it."""
    from cowtree.images import halves  # noqa: PLC0415  help does without

    if not arguments.places:
        if arguments.trust:
            return []
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


def _complete(arguments: argparse.Namespace, path: str, *, is_trusted: bool) -> int:
    from cowtree.images.history import History  # noqa: PLC0415  help does without
    from cowtree.images.wish import Manner, resume  # noqa: PLC0415
    from cowtree.storage.file import LocalFiles  # noqa: PLC0415

    with stopping(), Bar("recover", is_wanted=arguments.progress) as monitor:
        foreseen = guests.foresee_rest(arguments.catalog, path)

        def note() -> None:
            if foreseen is not None:
                guests.note(arguments.catalog, foreseen)

        manner = Manner(None, History(arguments.catalog, merge.warn_of), monitor, note=note)
        return resume(LocalFiles(), path, manner, is_trusted=is_trusted)
