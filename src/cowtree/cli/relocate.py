"""`cowtree relocate`: whole families of images go into another folder, and their links with them."""

import argparse
import json
from typing import TYPE_CHECKING

from cowtree.cli import options
from cowtree.cli.progress import Bar
from cowtree.cli.tree import complain, find_pools, printable

if TYPE_CHECKING:
    from cowtree.images.relocation import Member, Relocation

STAYS, LINKED, COPIED, MOVED = "stays", "moved", "copied", "moved before"


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "relocate",
        help="move whole families of images to another folder, and their links with them",
        description="Moves the whole family of each image, with what backs it, what hangs on any of it and external "
        "data files, and rewrites the links between them. Each image is whole at its old place until it is whole at "
        "the new one. On another file system the files are copied and compared before the old ones go.",
        epilog="After a stop the same command completes the move. Nothing moves while somebody has one of the files "
        "open, while one of them has another name, or while an image elsewhere reads one of them.",
    )
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="an image of a family, or a folder: all families with an image in it"
    )
    parser.add_argument("--to", required=True, metavar="FOLDER", help="where to; made when it is not there")
    parser.add_argument(
        "--flat", action="store_true", help="all files side by side; else as they lie below their common folder"
    )
    parser.add_argument("--absolute", action="store_true", help="name bases by their full paths; else relative ones")
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="JOURNAL",
        help="complete what this says, which the catalogue does not know: you began it, and the catalogue was lost",
    )
    options.add_pools(parser, "read one of these")
    parser.add_argument("--dry-run", action="store_true", help="say what would move where, and change nothing")
    options.add_output(parser)
    options.add_progress(parser)
    options.add_catalog(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print what goes where, and move it."""
    from cowtree.images.history import Journals  # noqa: PLC0415
    from cowtree.images.relocate import Wanted, plan, relocate  # noqa: PLC0415  numpy is not needed to print help
    from cowtree.storage.file import LocalFiles  # noqa: PLC0415

    files = LocalFiles()
    pools = [*arguments.pool, *find_pools(arguments.catalog)]
    wanted = Wanted(arguments.paths, arguments.to, pools, arguments.flat, arguments.absolute, arguments.trust)
    notebook = Journals(arguments.catalog, lambda error: complain(f"this relocation is not noted down: {error}"))
    found = plan(files, wanted, notebook)
    rows = _rows(found)
    if arguments.output == "human":
        for member, how in rows:
            print(printable(f"{member.old} -> {member.new} ({how})"), flush=True)
    with Bar("relocate", is_wanted=arguments.progress) as monitor:
        relocate(files, found, monitor, is_dry=arguments.dry_run, notebook=notebook)
    if arguments.output == "json":
        said = [{"from": member.old, "to": member.new, "how": how} for member, how in rows]
        print(json.dumps({"files": said, "done": not arguments.dry_run}, indent=4))
    return 0


def _rows(found: "Relocation") -> list[tuple["Member", str]]:
    """The members, and how each gets to its place."""
    import os  # noqa: PLC0415

    from cowtree.images.relocate import copied  # noqa: PLC0415

    far = copied(found.target, found.members)

    def how(member: "Member") -> str:
        if member.old == member.new:
            return STAYS
        if not os.path.lexists(member.old):
            return MOVED
        return COPIED if member in far else LINKED

    return [(member, how(member)) for member in found.members]
