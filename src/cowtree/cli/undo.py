"""`cowtree undo`: the last merge is taken back while its files are still there."""

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from cowtree.cli import options
from cowtree.cli.stop import stopping
from cowtree.cli.tree import printable

if TYPE_CHECKING:
    from cowtree.images.undo import Step


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "undo",
        help="take the last merge back while its files are still there",
        description="Puts back the chain as it was before the last merge that was done and not undone: the names of "
        "the images, and what they are linked to. What was merged into an image stays in it; nobody sees that, for the "
        "images over it hold it themselves. At every moment every leaf shows what it shows now.",
        epilog="Refused when a file is gone, when a guest has written since what would not be seen any more, or when "
        "other images lie by now on what would go. After a stop the same command goes on. Again, it takes back the "
        "merge before that one.",
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be done, and change nothing")
    options.add_catalog(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Say what is done, and do it."""
    import shlex  # noqa: PLC0415  help does without

    from cowtree.catalog.store import open_catalog  # noqa: PLC0415
    from cowtree.images.undo import find_last, plan_undo, undo  # noqa: PLC0415
    from cowtree.storage.file import LocalFiles  # noqa: PLC0415

    files = LocalFiles()
    with open_catalog(arguments.catalog, creates=False) as catalog:
        last = find_last(files, catalog)
        print(printable(f"undo: cowtree {shlex.join(last.order.words)}"), flush=True)
        for line in sentences(plan_undo(files, last)):
            print(printable(line), flush=True)
        if not arguments.dry_run:
            with stopping():
                undo(files, last)
                catalog.mark_undone(last.number)
            print("undone; every leaf shows what it showed")
    return 0


def sentences(steps: "Sequence[Step]") -> Iterator[str]:
    """What will be done, for people."""
    from cowtree.images.undo import Name, Relink  # noqa: PLC0415  help does without

    for step in steps:
        if isinstance(step, Relink):
            yield f"link {step.path} to {step.base}"
        elif isinstance(step, Name):
            yield f"give {step.source} its own name back: {step.path}"
        else:
            yield f"rename {step.source} to {step.path}"
    if not steps:
        yield "every image has its name and its base already"
