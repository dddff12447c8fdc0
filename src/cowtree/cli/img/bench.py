"""`cowtree img bench`: how long many equal requests to an image take. With -w they write to it."""

import time
from typing import Final

from cowtree.chain.view import open_chain
from cowtree.cli.img.command import (
    CACHE,
    FORMAT,
    IMAGE_OPTS,
    QUIET,
    SHARE,
    Command,
    Given,
    Option,
    want_names,
)
from cowtree.cli.img.numbers import parse_count, parse_number
from cowtree.cli.img.source import CACHE_MODES, access_of, files_of, source_of
from cowtree.errors import ChainError, WrongUse
from cowtree.images.bench import Load, read, write
from cowtree.storage.contract import Access

LENGTH_BYTES_MAX: Final = (1 << 31) - 1
BYTE_MAX: Final = 0xFF
NATIVE: Final = "native"
AIO_MODES: Final = ("threads", NATIVE, "io_uring")
DIRECT_MODES: Final = ("none", "off", "directsync")

COUNT = Option(("-c",), "how many requests are sent", "COUNT")
DEPTH = Option(("-d",), "how many of them may be under way at a time", "DEPTH")
FLUSH_INTERVAL = Option(("--flush-interval",), "make what was written durable after so many requests", "FLUSH_INTERVAL")
AIO = Option(("-i",), "checked, and changes nothing: threads, native or io_uring", "AIO")
NATIVE_AIO = Option(("-n",), "the same as -i native")
NO_DRAIN = Option(("--no-drain",), "accepted; a flush always waits for what was sent before")
OFFSET = Option(("-o",), "where the first request begins", "OFFSET")
PATTERN = Option(("--pattern",), "the byte that is written; 0 when not given", "PATTERN")
LENGTH = Option(("-s",), "length of a request; 4k when not given", "BUFFER_SIZE")
STEP = Option(("-S",), "from the start of a request to that of the next; the length when not given", "STEP_SIZE")
WRITE = Option(("-w",), "write, and not read")


def run(given: Given) -> int:
    """Send the requests, and say how long it took."""
    is_write = given.has("-w")
    load = load_of(given)
    _check_modes(given)
    (name,) = want_names(given, 1, "Expecting one image file name")
    if load.flush_interval and not is_write:
        raise WrongUse(reason="--flush-interval is only available in write tests", hint="the same with -w")
    if load.flush_interval and load.flush_interval < load.depth:
        raise WrongUse(reason="Flush interval can't be smaller than depth", hint=f"-d {load.flush_interval}")
    _check_opening(given, name)
    chain = open_chain(files_of(given), *source_of(given, name), Access.WRITE if is_write else access_of(given))
    try:
        print(describe(load, is_write=is_write), flush=True)
        start_s = time.monotonic()
        (write if is_write else read)(chain, load)
        print(f"Run completed in {time.monotonic() - start_s:3.3f} seconds.")
    finally:
        chain.close()
    return 0


def load_of(given: Given) -> Load:
    """What the words want to be sent. Raises: WrongUse."""

    def count(option: str, what: str, high: int = LENGTH_BYTES_MAX) -> int | None:
        text = given.last(option)
        return None if text is None else parse_count(what, text, high=high)

    length_bytes = parse_number("buffer size", given.last("-s") or "4096", high=LENGTH_BYTES_MAX)
    step_bytes = parse_number("step_size", given.last("-S") or "0", high=LENGTH_BYTES_MAX)
    chosen = {
        "request_count": count("-c", "request count"),
        "depth": count("-d", "queue depth"),
        "length_bytes": length_bytes,
        "offset": parse_number("offset", given.last("-o") or "0"),
        "step_bytes": step_bytes or length_bytes,
        "pattern": count("--pattern", "pattern byte", BYTE_MAX),
        "flush_interval": count("--flush-interval", "flush interval"),
    }
    return Load()._replace(**{key: value for key, value in chosen.items() if value is not None})


def describe(load: Load, *, is_write: bool) -> str:
    """What will be sent, in words."""
    kind = "write" if is_write else "read"
    lines = [
        f"Sending {load.request_count} {kind} requests, {load.length_bytes} bytes each, {load.depth} in parallel "
        f"(starting at offset {load.offset}, step size {load.step_bytes})"
    ]
    if load.flush_interval:
        lines.append(f"Sending flush every {load.flush_interval} requests")
    return "\n".join(lines)


def _check_modes(given: Given) -> None:
    """Refuse modes that do not exist. Raises: WrongUse."""
    if given.last("-i") not in (None, *AIO_MODES):
        raise WrongUse(reason=f"Invalid aio option: {given.last('-i')}", hint=" or ".join(AIO_MODES))
    if given.last("-t") not in (None, *CACHE_MODES):
        raise WrongUse(reason="Invalid cache mode", hint=" or ".join(CACHE_MODES))


def _check_opening(given: Given, name: str) -> None:
    """Refuse what no file can be opened with. Raises: ChainError."""
    if given.has("-w") and given.has("-U"):
        raise ChainError(path=name, reason="force-share=on can only be used with read-only images", hint="leave out -U")
    if (given.has("-n") or given.last("-i") == NATIVE) and given.last("-t") not in DIRECT_MODES:
        reason = "aio=native was specified, but it requires cache.direct=on, which was not specified"
        raise ChainError(path=name, reason=reason, hint="the same with -t none")


COMMAND = Command(
    "bench",
    "Send many requests to an image, and tell how long that takes.",
    (
        *(COUNT, DEPTH, FORMAT, FLUSH_INTERVAL, AIO, NATIVE_AIO, NO_DRAIN, OFFSET, PATTERN, QUIET, LENGTH, STEP),
        *(CACHE, WRITE, SHARE, IMAGE_OPTS),
    ),
    "FILENAME",
    run,
)
