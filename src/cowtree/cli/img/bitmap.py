"""`cowtree img bitmap`: persistent dirty bitmaps are made, removed, cleared, switched on and off, and merged."""

from typing import Final

from cowtree.cli.img.command import IMAGE_OPTS, OBJECT, Command, Given, Option, want_names
from cowtree.cli.img.numbers import parse_number
from cowtree.cli.img.source import Source, files_of, source_of
from cowtree.errors import WrongUse
from cowtree.images.bitmap import change
from cowtree.plan.bitmap import ADD, GRANULARITY_MAX, MERGE, Action

FORMAT = Option(("-f",), "format of the image; told from its first bytes when not given", "FMT")
SOURCE = Option(("-b", "--source-file"), "merge from a bitmap of this image", "SOURCE_FILE")
SOURCE_FORMAT = Option(("-F", "--source-format"), "format of the image that is merged from", "SOURCE_FMT")
GRANULARITY = Option(("-g", "--granularity"), "bytes that one bit stands for, a power of two; for --add", "GRANULARITY")
ACTIONS: Final = (
    Option(("--add",), "make the bitmap; it is empty, and records what the guest writes"),
    Option(("--remove",), "delete it"),
    Option(("--clear",), "let nothing be dirty"),
    Option(("--enable",), "let it record what the guest writes"),
    Option(("--disable",), "let it record nothing"),
    Option(("--merge",), "add what is dirty in this other bitmap", "SOURCE"),
)
_NAMES: Final = tuple(option.names[0] for option in ACTIONS)


def run(given: Given) -> int:
    """Do what the options say, in their order."""
    text = given.last("-g")
    granularity = None if text is None else parse_number("granularity", text)
    # QEMU keeps 32 bits of it.
    kept = granularity & GRANULARITY_MAX if granularity else None
    actions = [Action(option[2:], value, kept) for option, value in given.ordered() if option in _NAMES]
    verbs = {action.verb for action in actions}
    rules = (
        (not actions, "Need at least one of --add, --remove, --clear, --enable, --disable, or --merge"),
        (granularity and ADD not in verbs, "granularity only supported with --add"),
        (given.has("-F") and not given.has("-b"), "-F only supported with -b"),
        (given.has("-b") and MERGE not in verbs, "Merge bitmap source file only supported with --merge"),
    )
    for is_broken, reason in rules:
        if is_broken:
            raise WrongUse(reason=reason)
    image, name = want_names(given, 2, "Expecting filename and bitmap name")
    other = given.last("-b")
    source = None if other is None else Source(other, given.last("-F"))
    change(files_of(given), source_of(given, image), name, actions, source)
    return 0


COMMAND = Command(
    "bitmap",
    "Make and change persistent dirty bitmaps, which record what a guest writes.",
    (*ACTIONS, SOURCE, SOURCE_FORMAT, GRANULARITY, FORMAT, IMAGE_OPTS, OBJECT),
    "FILENAME BITMAP",
    run,
)
