"""What `-o` may say of a new image: the options of each format, as QEMU lists, reads and prints them.

An option has its place in a table; the line `Formatting ...` follows the order of the table, help is sorted.
"""

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple, TypeVar

from cowtree.cli.img.encryption import read_encryption
from cowtree.cli.img.numbers import INTEGER_MAX, NUMBER_MAX, parse_integer
from cowtree.cli.img.pairs import parse_pairs, parse_switch
from cowtree.errors import WrongUse
from cowtree.luks.volume import AES, LUKS, Encryption
from cowtree.plan.create import METADATA, OFF, PREALLOCATIONS, NewImage
from cowtree.qcow2 import header as qcow2
from cowtree.qcow2.geometry import (
    CLUSTER_BITS_MAX,
    CLUSTER_BITS_MIN,
    REFCOUNT_ORDER_MAX,
    SUBCLUSTER_CLUSTER_BITS_MIN,
    round_up,
)
from cowtree.units import SECTOR_BYTES, SIZE_WANTED, parse_size

TEXT, SIZE, NUMBER, SWITCH = "str", "size", "num", "bool (on/off)"
_HINT_SIZE_MAX: Final = (1 << 32) - 1
# Help starts in this column, where the option leaves room for it.
_HELP_COLUMN: Final = 24


class Known(NamedTuple):
    """One option of a format: how its value is read, and what it is when it is not given."""

    name: str
    kind: str
    help: str
    default: str | None = None


_FILE: Final = (
    Known("size", SIZE, "Virtual disk size"),
    Known("nocow", SWITCH, "Turn off copy-on-write (valid only on btrfs)"),
    Known("preallocation", TEXT, "Preallocation mode (allowed values: off, falloc, full)"),
    Known("extent_size_hint", SIZE, "Extent size hint for the image file, 0 to disable"),
)
_QCOW2: Final = (
    Known("encryption", SWITCH, "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)"),
    Known("encrypt.format", TEXT, "Encrypt the image, format choices: 'aes', 'luks'"),
    Known("encrypt.key-secret", TEXT, "ID of secret providing qcow AES key or LUKS passphrase"),
    Known("encrypt.cipher-alg", TEXT, "Name of encryption cipher algorithm"),
    Known("encrypt.cipher-mode", TEXT, "Name of encryption cipher mode"),
    Known("encrypt.ivgen-alg", TEXT, "Name of IV generator algorithm"),
    Known("encrypt.ivgen-hash-alg", TEXT, "Name of IV generator hash algorithm"),
    Known("encrypt.hash-alg", TEXT, "Name of encryption hash algorithm"),
    Known("encrypt.iter-time", NUMBER, "Time to spend in PBKDF in milliseconds"),
    Known("cluster_size", SIZE, "qcow2 cluster size", "65536"),
    Known("extended_l2", SWITCH, "Extended L2 tables", "off"),
    Known("preallocation", TEXT, "Preallocation mode (allowed values: off, metadata, falloc, full)"),
    Known("compression_type", TEXT, "Compression method used for image cluster compression", "zlib"),
    Known("size", SIZE, "Virtual disk size"),
    Known("compat", TEXT, "Compatibility level (v2 [0.10] or v3 [1.1])"),
    Known("backing_file", TEXT, "File name of a base image"),
    Known("backing_fmt", TEXT, "Image format of the base image"),
    Known("data_file", TEXT, "File name of an external data file"),
    Known("data_file_raw", SWITCH, "The external data file must stay valid as a raw image"),
    Known("lazy_refcounts", SWITCH, "Postpone refcount updates", "off"),
    Known("refcount_bits", NUMBER, "Width of a reference count entry in bits", "16"),
)
_LUKS: Final = (
    _FILE[0],
    Known("key-secret", TEXT, "ID of the secret that provides the keyslot passphrase"),
    *(each._replace(name=each.name.partition(".")[2]) for each in _QCOW2[3:9]),
)
# Of the format alone, and together with those of the file that holds it.
_OF_FORMAT: Final = {"raw": _FILE[:1], "qcow2": _QCOW2, "luks": _LUKS}
_ALL: Final = {"raw": _FILE, "qcow2": (*_QCOW2, _FILE[1], _FILE[3]), "luks": (*_LUKS, *_FILE[1:])}

KNOWN_FORMATS: Final = tuple(_ALL)
VERSIONS: Final = {"0.10": 2, "v2": 2, "1.1": 3, "v3": 3}
_COMPRESSIONS: Final = {name: number for number, name in qcow2.COMPRESSION_NAMES.items()}
# What QEMU knows by name, whether or not it can back an image.
BACKING_FORMATS: Final = (
    *("raw", "qcow2", "vmdk", "vdi", "vhdx", "vpc", "qcow", "qed", "parallels", "dmg", "bochs", "cloop", "luks"),
    *("file", "host_device", "nbd", "http", "https", "ftp", "ftps", "rbd", "ssh", "iscsi", "nfs", "gluster", "nvme"),
    *("blkdebug", "blkverify", "blkreplay", "copy-on-read", "null-aio", "null-co", "quorum", "replication", "throttle"),
)


def check_format(image_format: str) -> None:
    """Refuse a format that nobody here can write. Raises: WrongUse."""
    if image_format not in _ALL:
        raise WrongUse(reason=f"Unknown file format '{image_format}'", hint="-f raw, -f qcow2 or -f luks")


def known_options(image_format: str) -> tuple[Known, ...]:
    """All options of a format and of the file that holds it."""
    check_format(image_format)
    return _ALL[image_format]


def help_lines(known: Iterable[Known]) -> list[str]:
    """One line for each option."""
    return sorted(f"  {each.name}=<{each.kind}>".ljust(_HELP_COLUMN) + f" - {each.help}" for each in known)


def option_help(image_format: str, *, has_name: bool) -> str:
    """The list of options that `-o help` shows; with a name those of the file are in it.
    Raises: WrongUse.
    """
    known = known_options(image_format)
    if not has_name:
        known = _OF_FORMAT[image_format]
    title = "Supported options:" if has_name else f"Supported {image_format} options:"
    lines = [title, *help_lines(known)]
    if not has_name:
        lines += ["", "The protocol level may support further options."]
        lines += ["Specify the target filename to include those options."]
    return "\n".join(lines)


class Settings:
    """The options that were given for one format, read and checked one by one."""

    def __init__(self, image_format: str, text: str = "") -> None:
        """Read a list of options. Raises: WrongUse."""
        check_format(image_format)
        self.format = image_format
        self._known = {each.name: each for each in _ALL[image_format]}
        self._given: dict[str, str] = {}
        for name, value in parse_pairs(text).items():
            self.set(name, value)

    def set(self, name: str, value: str) -> None:
        """Take one option. Raises: WrongUse when the format has no such option, or the value makes no sense."""
        known = self._known.get(name)
        if known is None:
            raise WrongUse(reason=f"Invalid parameter '{name}'", hint=f"-f {self.format} -o help")
        if known.kind == SWITCH:
            parse_switch(name, value)
        elif known.kind != TEXT:
            value = str(_parse_number(known, value))
        self._given[name] = value

    def set_backing(self, name: str | None, image_format: str | None) -> None:
        """Take what options of their own say of the backing file. Raises: WrongUse when the format can have none."""
        for key, what, value in (("backing_file", "file", name), ("backing_fmt", "file format", image_format)):
            if value is None:
                continue
            if key not in self._known:
                raise WrongUse(reason=f"Backing {what} not supported for file format '{self.format}'")
            self.set(key, value)

    def get(self, name: str) -> str | None:
        """The value that was given, else the default."""
        return self._given.get(name, self._known[name].default) if name in self._known else None

    def is_on(self, name: str) -> bool:
        """Whether a switch is on."""
        return parse_switch(name, self.get(name) or "off")

    def describe(self) -> str:
        """All that is set, in the order and the form of QEMU."""
        shown = [(name, self._shown(name)) for name in self._known]
        return " ".join(f"{name}={value.replace(',', ',,')}" for name, value in shown if value is not None)

    def _shown(self, name: str) -> str | None:
        """A value as QEMU prints it, which takes a number for one with a sign."""
        value = self.get(name)
        if value is None or self._known[name].kind != NUMBER or int(value) <= NUMBER_MAX:
            return value
        return str(int(value) - INTEGER_MAX - 1)

    @property
    def encryption(self) -> Encryption | None:
        """How the new image shall be encrypted, if it shall be. Raises: WrongUse."""
        if self.format == LUKS:
            return read_encryption({"format": LUKS, **self._given})
        prefix = "encrypt."
        given = {name.removeprefix(prefix): value for name, value in self._given.items() if name.startswith(prefix)}
        if "encryption" in self._given and "format" in given:
            raise WrongUse(reason="'encrypt.format' and its alias 'encryption' can't be used at the same time")
        if self.is_on("encryption"):
            given["format"] = AES
        return read_encryption(given, prefix) if given else None


def _parse_number(known: Known, value: str) -> int:
    try:
        return parse_size(value) if known.kind == SIZE else parse_integer(value)
    except OverflowError as error:
        how = "out of range" if known.kind == SIZE else "too large"
        raise WrongUse(reason=f"Value '{value}' is {how} for parameter '{known.name}'") from error
    except ValueError as error:
        wanted, hint = (SIZE_WANTED, "64k or 1.5G") if known.kind == SIZE else ("expects a number", "")
        raise WrongUse(reason=f"Parameter '{known.name}' {wanted}", hint=hint) from error


def new_image(path: str, settings: Settings) -> NewImage:
    """The image that the settings mean; the size is rounded up to whole sectors.
    Raises: WrongUse when they contradict each other, or ask for what nobody here can write.
    """
    size_bytes = round_up(int(settings.get("size") or 0), SECTOR_BYTES)
    preallocation = settings.get("preallocation") or OFF
    if int(settings.get("extent_size_hint") or 0) > _HINT_SIZE_MAX:
        raise WrongUse(reason="Extent size hint is too large")
    if settings.format != "qcow2":
        if preallocation not in PREALLOCATIONS:
            raise WrongUse(reason=f"invalid parameter value: {preallocation}", hint="preallocation=off, falloc or full")
        encryption = settings.encryption
        if preallocation == METADATA and encryption is None:
            raise WrongUse(reason="Unsupported preallocation mode: metadata", hint="preallocation=off, falloc or full")
        return NewImage(path, settings.format, size_bytes, preallocation=preallocation, encryption=encryption)
    encryption = settings.encryption
    new = NewImage(
        path,
        "qcow2",
        size_bytes,
        cluster_bits=cluster_bits_of(settings),
        version=_choose(VERSIONS, "version", settings.get("compat") or "v3"),
        refcount_order=refcount_order_of(settings),
        lazy_refcounts=settings.is_on("lazy_refcounts"),
        compression_type=_choose(_COMPRESSIONS, "compression-type", settings.get("compression_type") or "zlib"),
        backing_file=settings.get("backing_file"),
        backing_format=settings.get("backing_fmt"),
        preallocation=_choose({mode: mode for mode in PREALLOCATIONS}, "preallocation", preallocation),
        has_subclusters=settings.is_on("extended_l2"),
        data_file=settings.get("data_file"),
        is_data_file_raw=settings.is_on("data_file_raw"),
        encryption=encryption,
    )
    _check(new)
    # A raw data file can be read without the tables only if these map every cluster to itself.
    return new._replace(preallocation=METADATA) if new.is_data_file_raw and new.preallocation == OFF else new


Chosen = TypeVar("Chosen", int, str)


def _choose(known: Mapping[str, Chosen], name: str, value: str) -> Chosen:
    """The meaning of a word. Raises: WrongUse."""
    if value not in known:
        raise WrongUse(reason=f"Parameter '{name}' does not accept value '{value}'", hint=" or ".join(known))
    return known[value]


def cluster_bits_of(settings: Settings) -> int:
    """The cluster size, as a power of two. Raises: WrongUse."""
    size = int(settings.get("cluster_size") or 0)
    bits = size.bit_length() - 1
    if not CLUSTER_BITS_MIN <= bits <= CLUSTER_BITS_MAX or size != 1 << bits:
        raise WrongUse(reason="Cluster size must be a power of two between 512 and 2048k", hint="cluster_size=64k")
    return bits


def refcount_order_of(settings: Settings) -> int:
    """The width of a reference count, as a power of two. Raises: WrongUse."""
    width = int(settings.get("refcount_bits") or 0)
    order = width.bit_length() - 1
    if not 0 <= order <= REFCOUNT_ORDER_MAX or width != 1 << order:
        raise WrongUse(reason="Refcount width must be a power of two and may not exceed 64 bits")
    return order


def _check(new: NewImage) -> None:
    """Refuse what the format has no form for. Raises: WrongUse."""
    is_old, older = new.version < 3, "1.1 and above (use version=v3 or greater)"
    has_backing, allocates = new.backing_file is not None, new.preallocation != OFF
    only = f"only supported with compatibility level {older}"
    rules = (
        (is_old and new.has_subclusters, f"Extended L2 entries are {only}"),
        (
            new.has_subclusters and new.cluster_bits < SUBCLUSTER_CLUSTER_BITS_MIN,
            "Extended L2 entries are only supported with cluster sizes of "
            f"at least {1 << SUBCLUSTER_CLUSTER_BITS_MIN} bytes",
        ),
        (
            has_backing and allocates and not new.has_subclusters,
            "Backing file and preallocation can only be used at the same time if extended_l2 is on",
        ),
        (new.backing_format is not None and not has_backing, "Backing format cannot be used without backing file"),
        (is_old and new.lazy_refcounts, f"Lazy refcounts {only}"),
        (
            is_old and new.refcount_order != 4,
            f"Different refcount widths than 16 bits require compatibility level {older.replace('and', 'or', 1)}",
        ),
        (new.is_data_file_raw and new.data_file is None, "data-file-raw requires data-file"),
        (new.is_data_file_raw and has_backing, "Backing file and data-file-raw cannot be used at the same time"),
        (is_old and new.data_file is not None, f"External data files are {only}"),
        (is_old and new.compression_type != qcow2.ZLIB, f"Non-zlib compression type is {only}"),
        (
            new.backing_format not in (None, *BACKING_FORMATS),
            f"Parameter 'backing-fmt' does not accept value '{new.backing_format}'",
        ),
    )
    for is_broken, reason in rules:
        if is_broken:
            raise WrongUse(reason=reason)
