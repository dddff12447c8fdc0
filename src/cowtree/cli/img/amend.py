"""`cowtree img amend`: changes options of an image that exists."""

from typing import Final

from cowtree.chain import gate
from cowtree.chain.gate import FORMATS
from cowtree.cli.img.command import (
    CACHE,
    FORMAT,
    IMAGE_OPTS,
    OBJECT,
    PROGRESS,
    QUIET,
    BadWords,
    Command,
    Given,
    Option,
)
from cowtree.cli.img.options import NUMBER, TEXT, VERSIONS, Known, Settings, help_lines, known_options
from cowtree.cli.img.options import refcount_order_of as order_of
from cowtree.cli.img.pairs import join_lists, parse_pairs, wants_help
from cowtree.cli.img.progress import Progress
from cowtree.cli.img.source import Source, check_cache_modes, files_of, source_of
from cowtree.errors import WrongUse
from cowtree.operations.amend import amend
from cowtree.plan.amend import Asked
from cowtree.storage.contract import Access

OPTIONS = Option(("-o",), "what shall change: a list of options, or help", "OPTIONS")
FORCE = Option(("--force",), "allow what may make encrypted data unreadable")
_ENCRYPTION: Final = (
    Known("encrypt.state", TEXT, "Select new state of affected keyslots (active/inactive)"),
    Known("encrypt.keyslot", NUMBER, "Select a single keyslot to modify explicitly"),
    Known("encrypt.old-secret", TEXT, "Select all keyslots that match this password"),
    Known("encrypt.new-secret", TEXT, "New secret to set in the matching keyslots. Empty string to erase"),
    Known("encrypt.iter-time", NUMBER, "Time to spend in PBKDF in milliseconds"),
)
_PLAIN: Final = frozenset(
    ("size", "compat", "backing_file", "backing_fmt", "data_file", "data_file_raw", "lazy_refcounts", "refcount_bits")
)
_SECRETIVE: Final = frozenset(each.name for each in _ENCRYPTION)


def run(given: Given) -> int:
    """Amend, in silence."""
    texts = given.all("-o")
    text = join_lists(texts)
    if not texts:
        raise BadWords(reason="Must specify options (-o)")
    with Progress(given, step_percent=1.0) as progress:
        image_format = given.last("-f")
        if image_format is not None and wants_help(text):
            print(_help(image_format))
            return 0
        if len(given.names) != 1:
            raise WrongUse(reason="Expecting one image file name")
        check_cache_modes(given)
        files, source = files_of(given), source_of(given, given.names[0])
        layers = gate.open_chain(files, *source, Access.WRITE)
        gate.close_all(layers)
        if wants_help(text):
            print(_help(layers[0].format))
            return 0
        _check_format(layers[0].format)
        settings, names = _read(text)
        progress.show(0)
        try:
            asked = _asked(settings, names)
            amend(files, *Source(source.name, source.format), asked=asked)
        finally:
            progress.show(100)
    return 0


def _check_format(image_format: str) -> None:
    """Refuse a format of which nothing can be amended. Raises: WrongUse."""
    if image_format not in FORMATS and image_format != "luks":
        raise WrongUse(reason=f"Unknown file format '{image_format}'")
    if image_format != gate.QCOW2:
        raise WrongUse(reason=f"Format driver '{image_format}' does not support option amendment")


def _help(image_format: str) -> str:
    _check_format(image_format)
    known = [*_ENCRYPTION, *(each for each in known_options(image_format) if each.name in _PLAIN)]
    return "\n".join([f"Amend options for '{image_format}':", *help_lines(known)])


def _read(text: str) -> tuple[Settings, set[str]]:
    """The options of a list, and which of them are given. Raises: WrongUse."""
    pairs = parse_pairs(text)
    settings = Settings("qcow2")
    for name, value in pairs.items():
        if name not in _PLAIN | _SECRETIVE:
            raise WrongUse(reason=f"Invalid parameter '{name}'{_why_not(pairs)}", hint="-f qcow2 -o help")
        if name in _PLAIN:
            settings.set(name, value)
    return settings, set(pairs)


def _why_not(pairs: dict[str, str]) -> str:
    """Say so when these are options of a new image."""
    try:
        settings = Settings("qcow2")
        for name, value in pairs.items():
            if name not in _SECRETIVE:
                settings.set(name, value)
    except WrongUse:
        return ""
    return "\nThis option is only supported for image creation"


def _asked(settings: Settings, names: set[str]) -> Asked:
    """What the options ask for. Raises: WrongUse."""

    def is_on(name: str) -> bool | None:
        return settings.is_on(name) if name in names else None

    compat = settings.get("compat") if "compat" in names else None
    if compat is not None and compat not in VERSIONS:
        raise WrongUse(reason=f"Unknown compatibility level {compat}", hint=" or ".join(VERSIONS))
    return Asked(
        version=None if compat is None else VERSIONS[compat],
        refcount_order=order_of(settings) if "refcount_bits" in names else None,
        lazy_refcounts=is_on("lazy_refcounts"),
        backing_file=settings.get("backing_file"),
        backing_format=settings.get("backing_fmt"),
        data_file=settings.get("data_file"),
        is_data_file_raw=is_on("data_file_raw"),
        size_bytes=int(settings.get("size") or 0),
        changes_encryption=bool(names & _SECRETIVE),
    )


COMMAND = Command(
    "amend",
    "Change options of an image that exists.",
    (FORMAT, CACHE, OPTIONS, PROGRESS, QUIET, FORCE, IMAGE_OPTS, OBJECT),
    "FILENAME",
    run,
)
