"""`cowtree img resize`: the disk of an image gets another size."""

from typing import Final

from cowtree.chain.view import open_chain
from cowtree.cli.img.command import FORMAT, IMAGE_OPTS, OBJECT, QUIET, BadWords, Command, Given, Option, want_names
from cowtree.cli.img.readers import refuse_readers
from cowtree.cli.img.source import files_of, source_of
from cowtree.errors import Refused, WrongUse
from cowtree.images.resize import resize
from cowtree.plan.create import OFF, PREALLOCATIONS
from cowtree.storage.contract import Access
from cowtree.units import parse_size

PREALLOCATION = Option(
    ("--preallocation",), "what is done for the new space: off, metadata, falloc or full", "PREALLOC"
)
SHRINK = Option(("--shrink",), "let the disk become smaller; what lies past its end is lost")
SIGNS: Final = {"+": 1, "-": -1}
WORD_BITS: Final = 64


def run(given: Given) -> int:
    """Resize, and say so. What an overlay reads is not cut off."""
    preallocation = given.last("--preallocation") or OFF
    if preallocation not in PREALLOCATIONS:
        raise WrongUse(reason=f"Invalid preallocation mode '{preallocation}'", hint=" or ".join(PREALLOCATIONS))
    if len(given.names) + len(given.ordered()) < 2:
        raise BadWords(reason="Not enough arguments")
    name, size = want_names(given, 2, "Expecting image file name and size")
    sign = SIGNS.get(size[:1], 0)
    number = _parse_size(size[1:] if sign else size)
    files = files_of(given)
    chain = open_chain(files, *source_of(given, name), Access.WRITE)
    try:
        old_bytes = chain.size_bytes
        new_bytes = _as_signed(old_bytes + sign * number if sign else number)
        _check(given, (old_bytes, new_bytes), preallocation)
        if new_bytes < old_bytes:
            refuse_readers(given, files, chain.top.path, past_bytes=new_bytes)
        resize(chain, new_bytes, preallocation)
    finally:
        chain.close()
    if not given.has("-q"):
        print("Image resized.")
    return 0


def _check(given: Given, sizes: tuple[int, int], preallocation: str) -> None:
    """Refuse a size that makes no sense, or loses what nobody said may be lost. Raises: Refused."""
    old_bytes, new_bytes = sizes
    if new_bytes <= 0:
        raise Refused(reason="New image size must be positive")
    if new_bytes <= old_bytes and preallocation != OFF:
        raise Refused(reason="Preallocation can only be used for growing images")
    if new_bytes < old_bytes and not given.has("--shrink"):
        what = "Shrinking an image will delete all data beyond the shrunken image's end."
        advice = "Before performing such an operation, make sure there is no important data there."
        raise Refused(
            reason=f"Use the --shrink option to perform a shrink operation.\n{given.program}: warning: {what} {advice}"
        )


def _parse_size(text: str) -> int:
    """The number of bytes that `text` means. Raises: WrongUse in QEMU's words."""
    try:
        return parse_size(text)
    except OverflowError:
        raise WrongUse(reason=f"Value '{text}' is out of range for parameter 'size'") from None
    except ValueError:
        raise WrongUse(reason="Parameter 'size' expects a non-negative number below 2^64") from None


def _as_signed(number: int) -> int:
    """A number as 64 bits with a sign hold it."""
    half = 1 << (WORD_BITS - 1)
    return (number + half) % (2 * half) - half


COMMAND = Command(
    "resize",
    "Give the disk of an image another size.",
    (FORMAT, PREALLOCATION, SHRINK, QUIET, IMAGE_OPTS, OBJECT),
    "FILENAME [+|-]SIZE",
    run,
    ends_plain=True,
)
