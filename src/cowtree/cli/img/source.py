"""Which image a name on the command line means, and how it is to be opened."""

from typing import Final, NamedTuple

from cowtree.cli.img.command import Given
from cowtree.cli.img.pairs import parse_pairs
from cowtree.errors import ChainError, WrongUse
from cowtree.storage.contract import Access

CACHE_MODES: Final = ("none", "off", "writeback", "writethrough", "directsync", "unsafe")
_EXAMPLE: Final = "--image-opts driver=qcow2,file.filename=PATH"


class Source(NamedTuple):
    """An image as the words name it; without a format its first bytes decide."""

    path: str
    format: str | None


def local_path(name: str) -> str:
    """The path that a name means: `file:` in front is left out.
    Raises: ChainError when something else stands before a colon, for that would be a protocol.
    """
    protocol, colon, path = name.partition(":")
    if not colon or "/" in protocol:
        return name
    if protocol == "file":
        return path
    raise ChainError(path=name, reason=f"Unknown protocol '{protocol}'", hint=f"./{name} for a file of this name")


def source_of(given: Given, name: str, format_option: str = "-f") -> Source:
    """The image that `name` means under `--image-opts` and the option that names its format.
    Raises: WrongUse, ChainError.
    """
    image_format = given.last(format_option)
    if given.has("--image-opts"):
        if image_format is not None:
            raise WrongUse(reason="--image-opts and --format are mutually exclusive")
        return from_options(name)
    return Source(local_path(name), image_format)


def from_options(text: str) -> Source:
    """The image that a list of options describes: a format over a file, or a file alone, which is raw."""
    options = parse_pairs(text)
    driver, protocol = options.pop("driver", None), options.pop("file.driver", "file")
    path = options.pop("file.filename", None)
    if path is None and driver == "file":
        path, driver = options.pop("filename", None), "raw"
    unknown = next(iter(options), None)
    if unknown is not None:
        raise ChainError(path=text, reason=f"the option '{unknown}' is unknown", hint=_EXAMPLE)
    if protocol != "file":
        raise ChainError(path=text, reason=f"Unknown driver '{protocol}'", hint=_EXAMPLE)
    if path is None:
        raise ChainError(path=text, reason="no file is named", hint=_EXAMPLE)
    return Source(path, driver)


def access_of(given: Given) -> str:
    """How an image is opened for reading."""
    return Access.SHARED if given.has("-U") else Access.READ


def check_cache_modes(given: Given) -> None:
    """Refuse a cache mode that does not exist; all that exist mean the same here: what is reported done is durable.
    Raises: WrongUse.
    """
    for option, what in (("-t", "cache"), ("-T", "source cache")):
        mode = given.last(option)
        if mode is not None and mode not in CACHE_MODES:
            raise WrongUse(reason=f"Invalid {what} option: {mode}")
