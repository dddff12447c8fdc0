"""`cowtree img convert`: what one image shows, or several one behind the other, goes into an image of any format.

With `-B` only what the source's top layer itself holds is copied: its own backing file and that of the target should
show the same. Options that only steer how QEMU works (-C, -m, -W, -t, -T) are checked and change nothing here.
"""

import os
import stat
from functools import partial
from typing import Final

from cowtree.chain import gate
from cowtree.chain.gate import QCOW2, RAW
from cowtree.chain.lists import read_bitmaps
from cowtree.cli.img.command import (
    CACHE,
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
)
from cowtree.cli.img.main import trouble, warn, warn_further
from cowtree.cli.img.numbers import parse_number
from cowtree.cli.img.options import Settings, new_image, option_help
from cowtree.cli.img.pairs import join_lists, parse_pairs, wants_help
from cowtree.cli.img.progress import RATE, Progress, limited
from cowtree.cli.img.source import Source, access_of, check_cache_modes, files_of, from_options, local_path, source_of
from cowtree.errors import CowtreeError, Refused, StorageFailed, WrongUse
from cowtree.images.convert import Manner, check_sources, convert, convert_into
from cowtree.images.create import kept_mode
from cowtree.images.encryption import furnish
from cowtree.images.lineage import noted
from cowtree.monitor import Monitor
from cowtree.plan.create import OFF
from cowtree.units import SECTOR_BYTES

SPARSE_BYTES: Final = 4096
SPARSE_BYTES_MAX: Final = 16 << 20
COROUTINE_COUNT_MAX: Final = 16
SNAPSHOT_KEYS: Final = ("snapshot.id", "snapshot.name")

TARGET_FORMAT = Option(("-O",), "format of the target; raw when not given", "OUTPUT_FMT")
BACKING = Option(("-B",), "the target's backing file: what backs the source, or shows the same", "BACKING_FILE")
BACKING_FORMAT = Option(("-F",), "format of the target's backing file", "BACKING_FMT")
OPTIONS = Option(("-o",), "options of the target's format: name=value,...; `-o help` lists them", "OPTIONS")
COMPRESS = Option(("-c",), "compress the target's clusters")
KEEP = Option(("-n",), "do not make the target; write over the one that is there")
SNAPSHOT = Option(("-l",), "convert this internal snapshot: its name or ID, or snapshot.name=NAME", "SNAPSHOT_PARAM")
SPARSE = Option(("-S",), "leave holes for zeroes of this length; 0 writes all of them out", "SPARSE_SIZE")
OFFLOAD = Option(("-C",), "let the storage copy, where it can")
COROUTINES = Option(("-m",), "how much is done side by side, 1 to 16", "NUM_COROUTINES")
OUT_OF_ORDER = Option(("-W",), "allow writes out of order")
SALVAGE = Option(("--salvage",), "take what cannot be read for zeroes, say so, and go on")
TARGET_OPTS = Option(("--target-image-opts",), "the target's name is a list of options; needs -n")
TARGET_IS_ZERO = Option(("--target-is-zero",), "the target holds zeroes only; needs -n")
BITMAPS = Option(("--bitmaps",), "copy persistent bitmaps")
SKIP_BROKEN = Option(("--skip-broken-bitmaps",), "leave out bitmaps that are in use; needs --bitmaps")


def run(given: Given) -> int:
    """Convert, in silence."""
    options, manner, names = join_lists(given.all("-o")), manner_of(given), given.names
    _check_together(given)
    if wants_help(options):
        print(option_help(given.last("-O", RAW), has_name=len(names) > 1))
        return 0
    if len(names) < 2:
        raise WrongUse(reason="Must specify image file name")
    progress = Progress(given, step_percent=1.0)
    monitor = limited(given, progress)
    with progress:
        progress.show(0)
        check_cache_modes(given)
        sources = [source_of(given, name) for name in names[:-1]]
        if manner.skips_broken_bitmaps and len(sources) == 1:
            _warn_of_broken(given, sources[0])
        if given.has("-n"):
            convert_into(files_of(given), sources, _existing_target(given), manner, monitor)
        else:
            _convert_anew(given, sources, manner, monitor)
        progress.show(100)
    return 0


def manner_of(given: Given) -> Manner:
    """How the words want it done. Raises: WrongUse."""
    sparse_bytes = SPARSE_BYTES
    if (text := given.last("-S")) is not None:
        sparse_bytes = parse_number("buffer size for sparse output", text)
        if sparse_bytes % SECTOR_BYTES or sparse_bytes > SPARSE_BYTES_MAX:
            raise WrongUse(
                reason="Invalid buffer size for sparse output specified. "
                f"Valid sizes are multiples of {SECTOR_BYTES} up to {SPARSE_BYTES_MAX}. "
                "Select 0 to disable sparse detection (fully allocates output)."
            )
    snapshot = snapshots_named(text) if (text := given.last("-l")) is not None else ()
    return Manner(
        given.has("-c"),
        sparse_bytes,
        access_of(given),
        snapshot,
        copies_bitmaps=given.has("--bitmaps"),
        skips_broken_bitmaps=given.has("--skip-broken-bitmaps"),
        is_target_zero=given.has("--target-is-zero"),
        top_only=given.has("-B"),
        salvage=partial(_warn_loudly, given) if given.has("--salvage") else None,
        warn=partial(warn_further, given),
    )


def _warn_loudly(given: Given, text: str) -> None:
    """Warn, unless `-q` says not to."""
    if not given.has("-q"):
        warn(given, text)


def snapshots_named(text: str) -> tuple[tuple[str | None, str | None], ...]:
    """The pairs of (ID, name) that may be meant, the likelier one first. Raises: WrongUse."""
    if not text.startswith("snapshot."):
        return (text, None), (None, text)
    pairs = parse_pairs(text)
    for key in pairs:
        if key not in SNAPSHOT_KEYS:
            hint, parameter = "snapshot.id=ID or snapshot.name=NAME", f"Failed in parsing snapshot param '{text}'"
            raise WrongUse(reason=f"Invalid parameter '{key}'", hint=hint, next_line=parameter)
    return ((pairs.get("snapshot.id"), pairs.get("snapshot.name")),)


def _check_together(given: Given) -> None:
    """Refuse options that exclude each other. Raises: WrongUse."""
    has = given.has
    rules = (
        (has("--skip-broken-bitmaps") and not has("--bitmaps"), "Use of --skip-broken-bitmaps requires --bitmaps"),
        (has("-c") and has("-C"), "Cannot enable copy offloading when -c is used"),
        (has("-S") and has("-C"), "Cannot enable copy offloading when -S is used"),
        (has("--salvage") and has("-C"), "Cannot use copy offloading in salvaging mode"),
        (has("--target-image-opts") and not has("-n"), "--target-image-opts requires use of -n flag"),
        (has("-n") and has("-o"), "-o has no effect when skipping image creation"),
        (has("--target-is-zero") and not has("-n"), "--target-is-zero requires use of -n flag"),
        (
            has("--target-is-zero") and has("-B"),
            "Cannot use --target-is-zero when the destination image has a backing file",
        ),
        (
            has("-l") and len(given.names) > 2,
            "No support for concatenating multiple snapshot",
        ),
        (
            not _is_count(given.last("-m")),
            f"Invalid number of coroutines. Allowed number of coroutines is between 1 and {COROUTINE_COUNT_MAX}",
        ),
    )
    for is_broken, reason in rules:
        if is_broken:
            raise WrongUse(reason=reason)


def _is_count(text: str | None) -> bool:
    try:
        return text is None or 1 <= int(text, 0) <= COROUTINE_COUNT_MAX
    except ValueError:
        return False


def _warn_of_broken(given: Given, source: Source) -> None:
    """Say which bitmaps are left out. Raises: what opening raises."""
    layer = gate.open_layer(files_of(given), *source, access_of(given))
    try:
        for each in read_bitmaps(layer, layer.header)[1] if layer.header else ():
            if each.is_in_use:
                warn(given, f"Skipping inconsistent bitmap '{each.name}'")
    finally:
        layer.close()


def _existing_target(given: Given) -> Source:
    """The image that is written over."""
    name = given.names[-1]
    if given.has("--target-image-opts"):
        if given.has("-O"):
            raise WrongUse(reason="--image-opts and --format are mutually exclusive")
        return from_options(name)
    return Source(name, given.last("-O", RAW))


def _convert_anew(given: Given, sources: list[Source], manner: Manner, monitor: Monitor) -> None:
    image_format, path = given.last("-O", RAW), local_path(given.names[-1])
    settings = Settings(image_format, join_lists(given.all("-o")))
    settings.set_backing(given.last("-B"), given.last("-F"))
    check_sources(sources, has_backing=settings.get("backing_file") is not None)
    if settings.get("backing_file") is not None and settings.get("backing_fmt") is None:
        hint = "the same with -F raw or -F qcow2"
        raise WrongUse(reason="Use of backing file requires explicit backing format", hint=hint)
    if image_format == RAW and _is_device(path):
        convert_into(files_of(given), sources, (path, RAW), manner, monitor)
        return
    if manner.is_compressed:
        _refuse_compression(settings)
    try:
        new = noted(files_of(given), furnish(files_of(given), new_image(path, settings)))
    except (WrongUse, Refused) as error:
        raise _not_made(given, error) from error
    try:
        convert(files_of(given), sources, new, manner._replace(mode=kept_mode(path)), monitor)
    except StorageFailed as error:
        raise _not_made(given, error) if error.facts["action"] == "create" else error from error


def _refuse_compression(settings: Settings) -> None:
    """Refuse what cannot be compressed. Raises: WrongUse."""
    if settings.format != QCOW2:
        raise WrongUse(reason="Compression not supported for this file format")
    if settings.is_on("encryption") or settings.get("encrypt.format") is not None:
        raise WrongUse(reason="Compression and encryption not supported at the same time")
    if (settings.get("preallocation") or OFF) != OFF:
        raise WrongUse(reason="Compression and preallocation not supported at the same time")


def _not_made(given: Given, error: CowtreeError) -> Refused:
    """What says that there is no new image."""
    reason = f"{given.names[-1]}: error while converting {given.last('-O') or RAW}: {trouble(error)}"
    return Refused(reason=reason, hint=error.advice)


def _is_device(path: str) -> bool:
    """Whether this is a block device, which is written over and never replaced."""
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        return False


COMMAND = Command(
    "convert",
    "Copy what one or several images show into an image of any format.",
    (
        *(FORMAT, TARGET_FORMAT, BACKING, BACKING_FORMAT, OPTIONS, COMPRESS, KEEP, SNAPSHOT, SPARSE),
        *(PROGRESS, QUIET, RATE, CACHE, SOURCE_CACHE, SHARE, IMAGE_OPTS, TARGET_OPTS, TARGET_IS_ZERO, OBJECT),
        *(BITMAPS, SKIP_BROKEN, SALVAGE, OFFLOAD, COROUTINES, OUT_OF_ORDER),
    ),
    "FILENAME [FILENAME2 ...] OUTPUT_FILENAME",
    run,
)
