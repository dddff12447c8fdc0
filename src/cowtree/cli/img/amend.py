"""`cowtree img amend`: changes options of an image that exists."""

from collections.abc import Container
from typing import Final, NamedTuple

from cowtree.chain import gate
from cowtree.chain.gate import FORMATS, Layer
from cowtree.chain.view import Chain, open_chain
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
from cowtree.cli.img.main import warn_further
from cowtree.cli.img.numbers import INTEGER_MAX, NUMBER_MAX, parse_integer
from cowtree.cli.img.options import NUMBER, TEXT, VERSIONS, Known, Settings, help_lines, known_options
from cowtree.cli.img.options import refcount_order_of as order_of
from cowtree.cli.img.pairs import join_lists, parse_pairs, wants_help
from cowtree.cli.img.progress import Progress
from cowtree.cli.img.source import check_cache_modes, files_of, source_of
from cowtree.errors import WrongUse
from cowtree.images.amend import amend_chain
from cowtree.plan.amend import Asked, check_encryption
from cowtree.plan.keyslots import KeyChange
from cowtree.storage.contract import Access

OPTIONS = Option(("-o",), "what shall change: a list of options, or help", "OPTIONS")
FORCE = Option(("--force",), "allow what may make encrypted data unreadable")
_PREFIX: Final = {gate.QCOW2: "encrypt.", gate.LUKS: ""}
_KEYS: Final = (
    Known("state", TEXT, "Select new state of affected keyslots (active/inactive)"),
    Known("keyslot", NUMBER, "Select a single keyslot to modify explicitly"),
    Known("old-secret", TEXT, "Select all keyslots that match this password"),
    Known("new-secret", TEXT, "New secret to set in the matching keyslots. Empty string to erase"),
    Known("iter-time", NUMBER, "Time to spend in PBKDF in milliseconds"),
)
_PLAIN: Final = frozenset(
    ("size", "compat", "backing_file", "backing_fmt", "data_file", "data_file_raw", "lazy_refcounts", "refcount_bits")
)
_STATES: Final = ("active", "inactive")


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
        chain = open_chain(files, *source, Access.WRITE)
        try:
            if wants_help(text):
                print(_help(chain.top.format))
                return 0
            _check_format(chain.top.format)
            words = _read(chain.top.format, text)
            progress.show(0)
            try:
                asked = _asked(words, chain.top, is_forced=given.has("--force"))
                amend_chain(files, chain, asked, progress)
                _warn_of_bitmaps(given, chain, asked)
            finally:
                progress.show(100)
        finally:
            chain.close()
    return 0


def _warn_of_bitmaps(given: Given, chain: Chain, asked: Asked) -> None:
    """Say which bitmaps are gone."""
    image = chain.images[0]
    if image is not None and image.bitmaps and asked.version == 2:
        names = ", ".join(f"'{each.name}'" for each in image.bitmaps)
        warn_further(given, f"Persistent bitmaps are gone, for compat=0.10 knows none: {names}")


def _check_format(image_format: str) -> None:
    """Refuse a format of which nothing can be amended. Raises: WrongUse."""
    if image_format not in FORMATS:
        raise WrongUse(reason=f"Unknown file format '{image_format}'")
    if image_format not in _PREFIX:
        raise WrongUse(reason=f"Format driver '{image_format}' does not support option amendment")


def _key_options(image_format: str) -> list[Known]:
    return [each._replace(name=_PREFIX[image_format] + each.name) for each in _KEYS]


def _help(image_format: str) -> str:
    _check_format(image_format)
    plain = known_options(image_format) if image_format == gate.QCOW2 else ()
    known = [*_key_options(image_format), *(each for each in plain if each.name in _PLAIN)]
    return "\n".join([f"Amend options for '{image_format}':", *help_lines(known)])


class _Words(NamedTuple):
    """The options of a list: those that a new image could have, which of these are given, and those of key slots."""

    settings: Settings
    names: set[str]
    keys: dict[str, str]


def _read(image_format: str, text: str) -> _Words:
    """The options of a list. Raises: WrongUse."""
    pairs, prefix = parse_pairs(text), _PREFIX[image_format]
    keys = {each.name: each for each in _key_options(image_format)}
    plain = _PLAIN if image_format == gate.QCOW2 else frozenset[str]()
    settings = Settings(image_format)
    for name, value in pairs.items():
        if name in plain:
            settings.set(name, value)
        elif name not in keys:
            reason = f"Invalid parameter '{name}'{_why_not(image_format, pairs, keys)}"
            raise WrongUse(reason=reason, hint=f"-f {image_format} -o help")
        elif keys[name].kind == NUMBER:
            _parse_signed(name, value)
    secretive = {name.removeprefix(prefix): value for name, value in pairs.items() if name in keys}
    return _Words(settings, set(pairs), secretive)


def _why_not(image_format: str, pairs: dict[str, str], keys: Container[str]) -> str:
    """Say so when these are options of a new image."""
    try:
        settings = Settings(image_format)
        for name, value in pairs.items():
            if name not in keys:
                settings.set(name, value)
    except WrongUse:
        return ""
    return "\nThis option is only supported for image creation"


def _asked(words: _Words, layer: Layer, *, is_forced: bool) -> Asked:
    """What the options ask for. Raises: WrongUse, Refused."""
    settings, names, keys = words

    def is_on(name: str) -> bool | None:
        return settings.is_on(name) if name in names else None

    if keys and layer.header is not None:
        check_encryption(layer.header)
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
        keys=_key_change(keys, is_forced=is_forced) if keys else None,
    )


def _key_change(keys: dict[str, str], *, is_forced: bool) -> KeyChange:
    """What shall become of key slots. Raises: WrongUse."""
    if "state" not in keys:
        raise WrongUse(reason="Parameter 'state' is missing", hint="state=active or state=inactive")
    if keys["state"] not in _STATES:
        reason = f"Parameter 'state' does not accept value '{keys['state']}'"
        raise WrongUse(reason=reason, hint="state=active or state=inactive")
    numbers = {name: _parse_signed(name, keys[name]) for name in ("keyslot", "iter-time") if name in keys}
    for name, number in numbers.items():
        if not -NUMBER_MAX - 1 <= number <= NUMBER_MAX:
            raise WrongUse(reason=f"Parameter '{name}' expects integer")
    return KeyChange(
        is_active=keys["state"] == "active",
        new_secret=keys.get("new-secret"),
        old_secret=keys.get("old-secret"),
        keyslot=numbers.get("keyslot"),
        # QEMU keeps 64 bits of it, without a sign.
        iteration_time_ms=numbers["iter-time"] & INTEGER_MAX if "iter-time" in numbers else None,
        is_forced=is_forced,
    )


def _parse_signed(name: str, text: str) -> int:
    """A number that may have a sign. Raises: WrongUse."""
    try:
        return -parse_integer(text[1:]) if text[:1] == "-" else parse_integer(text)
    except OverflowError as error:
        raise WrongUse(reason=f"Value '{text}' is too large for parameter '{name}'") from error
    except ValueError as error:
        raise WrongUse(reason=f"Parameter '{name}' expects a number") from error


COMMAND = Command(
    "amend",
    "Change options of an image that exists.",
    (FORMAT, CACHE, OPTIONS, PROGRESS, QUIET, FORCE, IMAGE_OPTS, OBJECT),
    "FILENAME",
    run,
)
