"""Which drivers QEMU has, and which options each takes when an image is opened: as tables, and the checks of values.

Most options steer caches and threads and change nothing here; their values are checked, for a wrong one is a mistake.
Source: QEMU 7.2, the runtime options in block.c, block/file-posix.c, block/raw-format.c, block/qcow2.c, block/crypto.c.
"""

from collections.abc import Mapping
from typing import Final

from cowtree.chain.relaxed import Value
from cowtree.errors import ChainError
from cowtree.units import SIZE_WANTED, parse_size

TEXT, SWITCH, SIZE, NUMBER = "text", "switch", "size", "number"
Kind = str | tuple[str, ...]

FORMATS: Final = ("raw", "qcow2", "luks", "vmdk", "vhdx", "vpc", "vdi")
NBD: Final = "nbd"
FILE_DRIVERS: Final = ("file", "host_device", NBD)
PROTOCOLS: Final = (
    *("nbd+tcp", "nbd+unix", "http", "https", "ftp", "ftps", "ssh", "sftp", "iscsi", "iser", "nfs", "rbd"),
    *("gluster", "gluster+tcp", "gluster+unix", "gluster+rdma", "nvme", "vhost-user-blk", "host_cdrom"),
)
DRIVERS: Final = (*FORMATS, *FILE_DRIVERS)
SWITCHES: Final = {
    "on": True,
    "yes": True,
    "true": True,
    "y": True,
    "off": False,
    "no": False,
    "false": False,
    "n": False,
}

_COMMON: Final[dict[str, Kind]] = {
    "node-name": TEXT,
    "driver": TEXT,
    "cache.direct": SWITCH,
    "cache.no-flush": SWITCH,
    "read-only": SWITCH,
    "auto-read-only": SWITCH,
    "force-share": SWITCH,
    "detect-zeroes": ("off", "on", "unmap"),
    "discard": TEXT,
}
_FILE: Final[dict[str, Kind]] = {
    "filename": TEXT,
    "aio": ("threads", "native", "io_uring"),
    "aio-max-batch": NUMBER,
    "locking": ("on", "off", "auto"),
    "pr-manager": TEXT,
    "drop-cache": SWITCH,
    "x-check-cache-dropped": SWITCH,
}
_NBD: Final[dict[str, Kind]] = {
    **dict.fromkeys(("filename", "host", "port", "path", "export", "tls-creds", "tls-hostname"), TEXT),
    **dict.fromkeys(("server.host", "server.port", "server.path"), TEXT),
    "server.type": ("inet", "unix"),
    **dict.fromkeys(("reconnect-delay", "open-timeout"), NUMBER),
}
_QCOW2: Final[dict[str, Kind]] = {
    **dict.fromkeys(("lazy-refcounts", "pass-discard-request", "pass-discard-snapshot", "pass-discard-other"), SWITCH),
    **dict.fromkeys(("overlap-check", "overlap-check.template"), TEXT),
    **{
        f"overlap-check.{each}": SWITCH
        for each in (
            *("main-header", "active-l1", "active-l2", "refcount-table", "refcount-block", "snapshot-table"),
            *("inactive-l1", "inactive-l2", "bitmap-directory"),
        )
    },
    **dict.fromkeys(("cache-size", "l2-cache-size", "l2-cache-entry-size", "refcount-cache-size"), SIZE),
    "cache-clean-interval": NUMBER,
    "encrypt.format": TEXT,
    "encrypt.key-secret": TEXT,
}
_OPTIONS: Final[dict[str, dict[str, Kind]]] = {
    **{each: {**_COMMON, **_FILE} for each in FILE_DRIVERS},
    NBD: {**_COMMON, **_NBD},
    "raw": {**_COMMON, "offset": SIZE, "size": SIZE},
    "qcow2": {**_COMMON, **_QCOW2},
    "luks": {**_COMMON, "key-secret": TEXT},
}
_DISCARDS: Final = ("off", "ignore", "unmap", "on")
_TEMPLATES: Final = ("none", "constant", "cached", "all")


def to_text(value: Value) -> str:
    """An option's value as the command line would give it."""
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


def check_options(name: str, driver: str, options: Mapping[str, Value]) -> None:
    """Refuse options that the driver does not take, and values that make no sense. Raises: ChainError."""
    known = _OPTIONS.get(driver, _COMMON)
    for key, kind in known.items():
        value = options.get(key)
        if value is not None and not isinstance(value, dict | list):
            _check(name, key, kind, to_text(value))
    discard = to_text(options.get("discard", "off"))
    reason = None
    if discard not in _DISCARDS:
        reason = "Invalid discard option"
    elif options.get("detect-zeroes") == "unmap" and discard not in ("unmap", "on"):
        reason = "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap"
    for key in ("overlap-check", "overlap-check.template"):
        if key in options and options[key] not in _TEMPLATES:
            reason = (
                f"Unsupported value '{options[key]}' for qcow2 option 'overlap-check'. "
                f"Allowed are any of the following: {', '.join(_TEMPLATES)}"
            )
    if reason is not None:
        raise ChainError(path=name, reason=reason)
    for key in options:
        if key not in known:
            what, verb = ("protocol", "doesn't") if driver in FILE_DRIVERS else ("format", "does not")
            raise ChainError(path=name, reason=f"Block {what} '{driver}' {verb} support the option '{key}'")


def _check(name: str, key: str, kind: Kind, text: str) -> None:
    reason = None
    if kind == SWITCH and text not in SWITCHES:
        reason = f"Parameter '{key}' expects 'on' or 'off'"
    elif kind == NUMBER and not text.isdigit():
        reason = f"Parameter '{key}' expects a number"
    elif kind == SIZE and not _is_size(text):
        reason = f"Parameter '{key}' {SIZE_WANTED}"
    elif isinstance(kind, tuple) and text not in kind:
        reason = f"invalid parameter value: {text}"
    if reason is not None:
        raise ChainError(path=name, reason=reason)


def _is_size(text: str) -> bool:
    try:
        return parse_size(text) >= 0
    except (ValueError, OverflowError):
        return False
