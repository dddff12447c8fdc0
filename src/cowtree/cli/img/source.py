"""Which image a name on the command line means, and how it is to be opened."""

from typing import Final, NamedTuple

from cowtree.chain.address import FILE, has_protocol, name_of, options_of, parse
from cowtree.chain.gate import NO_EXPORTS
from cowtree.chain.relaxed import Value
from cowtree.cli.img.command import Given
from cowtree.cli.img.pairs import parse_pairs
from cowtree.errors import ChainError, WrongUse
from cowtree.nbd.files import AddressFiles
from cowtree.storage.contract import Access, FileSystem
from cowtree.storage.file import LocalFiles

CACHE_MODES: Final = ("none", "off", "writeback", "writethrough", "directsync", "unsafe")


class Source(NamedTuple):
    """An image as the words name it, in a form that the gate understands; without a format its first bytes decide."""

    name: str
    format: str | None

    @property
    def path(self) -> str:
        """The path of its file. Raises: ChainError when it is no local file."""
        address = parse(self.name)
        if address.location:
            raise ChainError(path=address.path, name=self.name, reason=NO_EXPORTS, hint="a copy of it in a local file")
        return address.path


def local_path(name: str) -> str:
    """The path of a new file that a name means: `file:` in front is left out.
    Raises: WrongUse when something else stands before a colon, for that would be a protocol.
    """
    protocol = name.partition(":")[0]
    if has_protocol(name) and protocol != FILE:
        raise WrongUse(reason=f"Unknown protocol '{protocol}'", hint=f"./{name} for a file of this name")
    return str(options_of(name)["file.filename"])


def source_of(given: Given, name: str, format_option: str = "-f") -> Source:
    """The image that `name` means under `--image-opts` and the option that names its format.
    Raises: WrongUse.
    """
    image_format = given.last(format_option)
    if given.has("--image-opts"):
        if image_format is not None:
            raise WrongUse(reason="--image-opts and --format are mutually exclusive")
        return from_options(name)
    return Source(name, image_format)


def from_options(text: str) -> Source:
    """The image that a list of options describes."""
    options = dict[str, Value](parse_pairs(text, implied="file"))
    driver, path = options.get("driver"), options.get("file.filename")
    if isinstance(path, str) and path and not has_protocol(path) and options.keys() <= {"driver", "file.filename"}:
        return Source(path, None if driver is None else str(driver))
    return Source(name_of(options), None)


def spelled(given: Given, name: str) -> str:
    """How the words of the call spell a name that was made of them."""
    if given.has("--image-opts") or given.has("--target-image-opts"):
        # Among the words of `dd` it is the one that is read.
        texts = {from_options(text).name: text for text in (each.removeprefix("if=") for each in given.names)}
        return texts.get(name, name)
    return name


def files_of(given: Given) -> FileSystem:
    """The files of this machine, and what servers export. What images say of others is followed as far as QEMU does."""
    return AddressFiles(LocalFiles(given.secrets, follows_addresses=True), given.credentials)


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
