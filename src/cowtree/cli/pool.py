"""`cowtree pool`: the folders that are searched when nobody names one; and what other verbs need to ask for them.

A pool that is not there for now stays one: a disk may not be mounted.
"""

import argparse
import json
import os
import sys

from cowtree.cli import options
from cowtree.errors import MissingImage, WrongUse

ADD, REMOVE, LIST = ACTIONS = ("add", "remove", "list")


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "pool",
        help="name the folders in which images are looked for",
        description="Adds folders to those whose images are looked for when no folder is named, takes folders away "
        "from them, or lists them. A merge looks there for all images that read a file before it changes that. "
        "Nothing in the folders is changed.",
        epilog="The catalogue, where they are kept, is the file $COWTREE_CATALOG, else /var/lib/cowtree/catalog.db for "
        "root, else ~/.local/state/cowtree/catalog.db.",
    )
    parser.add_argument("action", choices=ACTIONS, metavar="add|remove|list", help="what to do")
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help="folders to add or remove")
    options.add_output(parser)
    options.add_catalog(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Change the pools, or print them."""
    from cowtree.catalog.store import open_catalog  # noqa: PLC0415  help needs no database

    if (arguments.action == LIST) == bool(arguments.folders):
        reason = "list takes no folder" if arguments.folders else f"{arguments.action} needs a folder"
        raise WrongUse(reason=reason, hint="cowtree pool --help")
    if arguments.action == LIST:
        with open_catalog(arguments.catalog, creates=False) as catalog:
            _show(catalog.pools(), is_json=arguments.output == "json")
        return 0
    status = 0
    with open_catalog(arguments.catalog, creates=arguments.action == ADD) as catalog:
        for folder in arguments.folders:
            path = os.path.realpath(folder)
            if arguments.action == ADD and not os.path.isdir(path):
                status = _complain(MissingImage(path=folder, reason="it is not a folder"))
            elif arguments.action == ADD:
                catalog.add_pool(path)
            elif not (catalog.remove_pool(path) or catalog.remove_pool(os.path.abspath(folder))):
                status = _complain(MissingImage(path=folder, reason="it is not a pool", hint="cowtree pool list"))
    return status


def _complain(error: MissingImage) -> int:
    print(f"cowtree: {error}", file=sys.stderr)
    return error.exit_status


def _show(pools: list[str], *, is_json: bool) -> None:
    if is_json:
        print(json.dumps([{"folder": path, "there": os.path.isdir(path)} for path in pools], indent=4))
        return
    for path in pools:
        print(path if os.path.isdir(path) else f"{path} (not there)")


def find_pools(catalog_path: str | None) -> tuple[list[str], list[MissingImage]]:
    """The pools that are there, with the folders in which guests have images; and what to say of pools that are not
    there. Raises: CatalogError.
    """
    from cowtree.catalog.snapshots import paths  # noqa: PLC0415  whoever names folders needs no database
    from cowtree.catalog.store import open_catalog  # noqa: PLC0415  whoever names folders needs no database

    with open_catalog(catalog_path, creates=False) as catalog:
        pools, images = catalog.pools(), paths(catalog)
    gone = [path for path in pools if not os.path.isdir(path)]
    hint = "mount what it lies on, or: cowtree pool remove {path}"
    folders = [path for path in dict.fromkeys(map(os.path.dirname, images)) if os.path.isdir(path)]
    return [*dict.fromkeys([path for path in pools if path not in gone] + folders)], [
        MissingImage(path=path, reason="this pool is not there", hint=hint) for path in gone
    ]
