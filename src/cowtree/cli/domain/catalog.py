"""`cowtree catalog`: how the catalogue differs from the disk, and a new one from what the images tell.

It is called as cowtree's own verbs are, not as virsh's: virsh has none like it.
"""

import argparse
import json
import sys
from typing import TYPE_CHECKING

from cowtree.cli import options
from cowtree.cli.tree import printable
from cowtree.errors import ChangedBehind, WrongUse

if TYPE_CHECKING:
    from cowtree.operations.check import Findings

CHECK, REBUILD = ACTIONS = ("check", "rebuild")


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "catalog",
        help="compare the catalogue with the disk, or make it anew from the images",
        description="check lists every difference between the catalogue and the disk, of all domains or of one, and "
        "changes nothing. rebuild looks into the images below the folders and in the pools, and notes down what they "
        "tell of domains and snapshots: overlays that cowtree made say what they were made for. What the catalogue "
        "knows and is true stays; a domain that was undefined or a snapshot that was forgotten comes back with its "
        "overlays. A catalogue that is damaged is moved aside. No image is changed.",
        epilog="Exit status of check: 0 when there is no difference, else 25. What is known to be lost is none.",
    )
    parser.add_argument("action", choices=ACTIONS, metavar="check|rebuild", help="what to do")
    parser.add_argument("names", nargs="*", metavar="DOMAIN|FOLDER", help="a domain to check, or folders to look into")
    parser.add_argument("-n", "--dry-run", action="store_true", help="rebuild: say what would be noted, note nothing")
    options.add_output(parser)
    options.add_catalog(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Check the catalogue, or rebuild it."""
    return _check(arguments) if arguments.action == CHECK else _rebuild(arguments)


def _check(arguments: argparse.Namespace) -> int:
    from cowtree.catalog.store import open_catalog  # noqa: PLC0415  help needs no database
    from cowtree.cli.domain.host import warn  # noqa: PLC0415
    from cowtree.operations.check import check  # noqa: PLC0415
    from cowtree.operations.host import Host  # noqa: PLC0415
    from cowtree.storage.file import LocalFiles  # noqa: PLC0415

    if len(arguments.names) > 1 or arguments.dry_run:
        reason = "check changes nothing, so it takes no --dry-run" if arguments.dry_run else "check takes one domain"
        raise WrongUse(reason=reason, hint="cowtree catalog --help")
    with open_catalog(arguments.catalog, creates=False) as catalog:
        findings = check(Host(LocalFiles(), catalog, warn), *arguments.names)
    if arguments.output == "json":
        print(json.dumps({name: [each._asdict() for each in getattr(findings, name)] for name in findings._fields}))
    else:
        _show(findings)
    return ChangedBehind.exit_status if findings.differences else 0


def _show(findings: "Findings") -> None:
    for each in findings.differences:
        whose = "" if each.domain is None else f"domain '{each.domain}': "
        print(printable(f"{whose}{each.sentence}"))
    for each in findings.lost:
        print(printable(f"known to be lost: domain '{each.domain}': {each.sentence}"))
    if not findings.differences:
        print("the catalogue and the disk agree")
        return
    sys.stdout.flush()
    print(f"cowtree: {len(findings.differences)} differences between the catalogue and the disk", file=sys.stderr)


def _rebuild(arguments: argparse.Namespace) -> int:
    from cowtree.cli.domain.host import warn  # noqa: PLC0415
    from cowtree.operations.host import Host  # noqa: PLC0415
    from cowtree.operations.rebuild import rebuild  # noqa: PLC0415
    from cowtree.operations.rescue import open_sound  # noqa: PLC0415
    from cowtree.storage.file import LocalFiles  # noqa: PLC0415

    is_json, told = arguments.output == "json", list[str]()
    opened, aside = open_sound(arguments.catalog, arguments.names, is_trial=arguments.dry_run)
    with opened as catalog:
        if aside is not None:
            warn(aside)
        for sentence in rebuild(Host(LocalFiles(), catalog, warn), arguments.names, is_trial=arguments.dry_run):
            told.append(sentence)
            if not is_json:
                print(printable(sentence))
    if is_json:
        print(json.dumps(told, indent=4))
    elif not told:
        print("the catalogue knows all that the images tell")
    return 0
