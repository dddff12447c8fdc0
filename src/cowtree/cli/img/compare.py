"""`cowtree img compare`: whether two images show the same.

Exit status: 0 they do, 1 they do not, 2 one of them cannot be opened, 3 its tables and 4 its data cannot be read.
"""

from contextlib import ExitStack

from cowtree.chain.view import Chain, open_chain
from cowtree.cli.img.command import (
    FORMAT,
    IMAGE_OPTS,
    OBJECT,
    PROGRESS,
    QUIET,
    SHARE,
    SOURCE_CACHE,
    Command,
    Given,
    Option,
    want_names,
)
from cowtree.cli.img.main import complain
from cowtree.cli.img.progress import Progress
from cowtree.cli.img.source import access_of, check_cache_modes, files_of, source_of
from cowtree.errors import BrokenCluster, CowtreeError, StorageFailed
from cowtree.images.compare import compare

CANNOT_OPEN, CANNOT_MAP, CANNOT_READ = 2, 3, 4

SECOND_FORMAT = Option(("-F",), "format of the second image", "FMT")
STRICT = Option(("-s",), "sizes and allocation must be the same too")


def run(given: Given) -> int:
    """Compare, and say what differs first."""
    want_names(given, 2, "Expecting two image file names")
    with Progress(given, step_percent=2.0) as progress, ExitStack() as stack:
        try:
            check_cache_modes(given)
            left, right = (_open(given, stack, *each) for each in zip(given.names, ("-f", "-F"), strict=True))
        except CowtreeError as error:
            return _fail(given, error, CANNOT_OPEN)
        progress.show(0)
        try:
            verdict = compare(left, right, is_strict=given.has("-s"), monitor=progress)
        except CowtreeError as error:
            is_data = isinstance(error, StorageFailed | BrokenCluster)
            return _fail(given, error, CANNOT_READ if is_data else CANNOT_MAP)
        if verdict.exit_status == 0:
            progress.show(100)
        if not given.has("-q"):
            print("\n".join(verdict.lines))
        return verdict.exit_status


def _open(given: Given, stack: ExitStack, name: str, format_option: str) -> Chain:
    chain = open_chain(files_of(given), *source_of(given, name, format_option), access_of(given))
    stack.callback(chain.close)
    return chain


def _fail(given: Given, error: CowtreeError, status: int) -> int:
    complain(given, error)
    return status


COMMAND = Command(
    "compare",
    "Tell whether two images show the same.",
    (FORMAT, SECOND_FORMAT, STRICT, SOURCE_CACHE, PROGRESS, QUIET, SHARE, IMAGE_OPTS, OBJECT),
    "FILENAME1 FILENAME2",
    run,
    object_status=CANNOT_OPEN,
)
