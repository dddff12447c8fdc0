"""`cowtree img dd`: some blocks of an image go into a new one."""

import sys
from collections.abc import Callable
from typing import Final

from cowtree.chain import gate
from cowtree.chain.gate import RAW
from cowtree.cli.img.command import FORMAT, IMAGE_OPTS, OBJECT, SHARE, Command, Given, Option
from cowtree.cli.img.main import trouble
from cowtree.cli.img.numbers import parse_number
from cowtree.cli.img.options import KNOWN_FORMATS, Settings, new_image
from cowtree.cli.img.source import Source, access_of, files_of, local_path, source_of
from cowtree.errors import Refused, StorageFailed, WrongUse
from cowtree.images.convert import Manner
from cowtree.images.create import kept_mode
from cowtree.images.dd import Blocks, dd

TARGET_FORMAT = Option(("-O",), "format of the target; raw when not given", "OUTPUT_FMT")
BLOCK_BYTES_MAX: Final = (1 << 31) - 1
OPERANDS: Final[dict[str, Callable[[str], int | str]]] = {
    "bs": lambda text: parse_number("bs", text, low=1, high=BLOCK_BYTES_MAX),
    "count": lambda text: parse_number("count", text),
    "if": str,
    "of": str,
    "skip": lambda text: parse_number("skip", text),
}


def run(given: Given) -> int:
    """Copy, in silence unless there is nothing to copy."""
    operands = parse_operands(given.names)
    if not {"if", "of"} <= operands.keys():
        raise WrongUse(reason="Must specify both input and output files", hint="if=SOURCE of=TARGET")
    name, target = str(operands["if"]), str(operands["of"])
    if not _copy(given, source_of(given, name), target, blocks_of(operands)):
        print(f"{given.program}: {name}: cannot skip to specified offset", file=sys.stderr)
    return 0


def parse_operands(words: list[str]) -> dict[str, int | str]:
    """What `name=value` words say; the last of two counts. Raises: WrongUse for the first one that is wrong."""
    found: dict[str, int | str] = {}
    for word in words:
        name, is_assigned, value = word.partition("=")
        if name not in OPERANDS or not is_assigned:
            hint = " ".join(f"{each}=..." for each in OPERANDS)
            raise WrongUse(reason=f"unrecognized operand {name}", hint=hint)
        found[name] = OPERANDS[name](value)
    return found


def blocks_of(operands: dict[str, int | str]) -> Blocks:
    """The blocks that the operands mean."""
    count = operands.get("count")
    numbers = (int(operands.get("bs", Blocks().block_bytes)), None if count is None else int(count))
    return Blocks(*numbers, int(operands.get("skip", 0)))


def _copy(given: Given, source: Source, target: str, blocks: Blocks) -> bool:
    files, image_format = files_of(given), given.last("-O", RAW)
    if image_format not in KNOWN_FORMATS:
        gate.close_all(gate.open_chain(files, *source, access_of(given)))
        raise WrongUse(reason="Unknown file format", hint="-O raw or -O qcow2")
    path = local_path(target)
    new, manner = new_image(path, Settings(image_format)), Manner(access=access_of(given), mode=kept_mode(path))
    try:
        return dd(files, source, new, blocks, (manner, None))
    except StorageFailed as error:
        if error.facts["action"] != "create":
            raise
        reason = f"{target}: error while creating output image: {trouble(error)}"
        raise Refused(reason=reason, hint=error.advice) from error


COMMAND = Command(
    "dd",
    "Copy blocks of an image into a new one.",
    (FORMAT, TARGET_FORMAT, SHARE, IMAGE_OPTS, OBJECT),
    "[bs=BLOCK_SIZE] [count=BLOCKS] [skip=BLOCKS] if=INPUT of=OUTPUT",
    run,
)
