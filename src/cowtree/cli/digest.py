"""`cowtree digest`: what the guest sees, as one line.

An image that cannot be read is named on standard error, and the others are still digested; the exit status is that of
the first one that failed.
"""

import argparse
import sys

from cowtree.cli import options
from cowtree.cli.progress import Bar
from cowtree.errors import CowtreeError


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "digest",
        help="print a digest of what the guest sees",
        description="Prints a digest of what the guest sees, whatever its format, chain, clusters and holes.",
        epilog="An image that cannot be read is named, and the others are still digested.",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="an image, with all that backs it")
    parser.add_argument(
        "-f", "--format", choices=("raw", "qcow2"), help="the format; told from the image when not given"
    )
    options.add_progress(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print one line per image: the digest, two spaces, the name as given."""
    from cowtree.images.digest import digest  # noqa: PLC0415  numpy is not needed to print help
    from cowtree.storage.file import LocalFiles  # noqa: PLC0415

    files, status = LocalFiles(), 0
    for path in arguments.images:
        try:
            with Bar("digest", is_wanted=arguments.progress) as monitor:
                found = digest(files, path, arguments.format, monitor)
        except CowtreeError as error:
            print(f"cowtree: {error}", file=sys.stderr, flush=True)
            status = status or error.exit_status
        else:
            print(f"{found}  {path}", flush=True)
    return status
