"""What the name of an image means: which file it is, and how that is to be opened.

A name is a path, `file:PATH`, `json:{...}` or what an NBD server exports (`place.py`); as in QEMU it is an address when
a colon comes before the first slash.
Names stay strings until they are opened, and this module opens nothing. The standard library only.

    parse("disk.qcow2").path                                                    == "disk.qcow2"
    parse("json:{'driver':'raw', 'file.filename':'a', 'offset':512}").window    == Window(512, None)
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from cowtree.chain import relaxed
from cowtree.chain.drivers import DRIVERS, FILE_DRIVERS, NBD, PROTOCOLS, SWITCHES, check_options, to_text
from cowtree.chain.relaxed import Value
from cowtree.errors import ChainError
from cowtree.units import parse_size

if TYPE_CHECKING:
    from cowtree.chain.place import Place

JSON, FILE = "json", "file"
Options = dict[str, Value]
# What changes which bytes are seen, so that a path alone is not enough to say what is open.
_STRONG: Final = {"raw": ("offset", "size"), "qcow2": ("encrypt.key-secret",), "luks": ("key-secret",)}
_NBD_STRONG: Final = (
    *("host", "port", "path", "export", "tls-creds", "tls-hostname", "filename"),
    *("server.type", "server.host", "server.port", "server.path"),
)
_CHILDREN: Final = ("file", "backing", "data-file")
_EXAMPLE: Final = "json:{'driver':'qcow2','file.filename':'PATH'}"
NBD_SCHEMES: Final = ("nbd", "nbd+tcp", "nbd+unix", "nbds", "nbds+tcp", "nbds+unix")
_ELSEWHERE: Final = "a copy of it in a local file"


class Window(NamedTuple):
    """A part of a file that is taken for the whole; None is up to the end."""

    offset: int
    size_bytes: int | None


WHOLE: Final = Window(0, None)


class Address(NamedTuple):
    """Where an image is. `name` is how it was called, `options` all that was said of it, keys with dots between;
    `inner` are raw nodes between the image and its file, the innermost first. With a `location` it is what a server
    exports: `path` is how people see that, and the location what is opened.
    """

    name: str
    path: str
    options: Options
    inner: tuple[Window, ...] = ()
    location: str = ""

    @property
    def format(self) -> str | None:
        """The format that the name says, if any; a file without a format is raw."""
        driver = _driver(self.name, self.options)
        return "raw" if driver in FILE_DRIVERS else driver

    @property
    def window(self) -> Window:
        """The part that a raw image takes for the whole."""
        return WHOLE if self.options.get("driver") in FILE_DRIVERS else _window(self.options)

    @property
    def key_secret(self) -> str | None:
        """The secret that opens the image, if any."""
        found = self.options.get("encrypt.key-secret", self.options.get("key-secret"))
        return None if found is None else to_text(found)

    @property
    def is_read_only(self) -> bool:
        """Whether nobody may write through this name."""
        return any(_is_on(self.options.get(key)) for key in ("read-only", "file.read-only"))

    @property
    def is_shared(self) -> bool:
        """Whether it is opened whatever others do with it."""
        return _is_on(self.options.get("force-share")) or to_text(self.options.get("file.locking")) == "off"

    @property
    def has_backing(self) -> bool:
        """Whether it may have a backing file, whatever the image says."""
        return self.options.get("backing", "default") not in (None, "")

    @property
    def backing(self) -> Options:
        """What is said of the backing file, and counts more than what the image says."""
        return below(self.options, "backing")

    @property
    def data_file(self) -> Options:
        """What is said of the external data file, and counts more than what the image says."""
        return below(self.options, "data-file")

    def full_options(self, image_format: str) -> Options | None:
        """All that opens the same again, as objects in objects; None when its path alone does.
        Source: QEMU, block.c, `bdrv_refresh_filename`.
        """
        nodes, file = [self.options], below(self.options, "file")
        for _ in self.inner:
            nodes.append(file)
            file = below(file, "file")
        drivers = [image_format, *["raw"] * len(self.inner)]
        found: Options = {"driver": _driver(self.name, file) or FILE, "filename": self.path}
        if self.location:
            found = {"driver": NBD, **{key: value for key, value in file.items() if key in _NBD_STRONG}}
        is_plain = not self.inner
        for driver, node in reversed(list(zip(drivers, nodes, strict=True))):
            strong = {key: node[key] for key in _STRONG.get(driver, ()) if key in node}
            is_plain = is_plain and not strong
            found = {"driver": driver, **strong, "file": found}
        return None if is_plain else found

    def check(self, image_format: str) -> None:
        """Refuse what an image of this format has no meaning for. Raises: ChainError."""
        if self.options.get("driver") not in FILE_DRIVERS:
            _check_node(self.name, image_format, self.options)


def has_protocol(name: str) -> bool:
    """Whether something like `file:` or `nbd:` stands in front."""
    return ":" in name.partition("/")[0]


def is_export(name: str) -> bool:
    """Whether a name is the address of what a server exports."""
    return ":" in name and name.partition(":")[0] in NBD_SCHEMES


def is_json(name: str) -> bool:
    """Whether the name is a list of options."""
    return name.startswith(f"{JSON}:")


def plain_name(path: str) -> str:
    """A name that means this path, whatever is in it."""
    return f"{FILE}:{path}" if has_protocol(path) else path


def name_of(options: Mapping[str, Value]) -> str:
    """A name that says all of this."""
    return f"{JSON}:{json.dumps(options)}"


def parse(name: str) -> Address:
    """What a name means. Raises: ChainError when it is no file and no export, or when its options make no sense."""
    return from_options(name, options_of(name))


def options_of(name: str) -> Options:
    """All that a name says, keys with dots between. Raises: ChainError."""
    protocol, colon, path = name.partition(":")
    if not colon or "/" in protocol:
        return {"file.filename": name}
    if protocol == FILE:
        # What follows is a path, whatever it looks like; it is shown so that it stays one.
        return {"file.filename": f"./{path}" if has_protocol(path) else path}
    if protocol == JSON:
        return _read_json(name, path)
    if protocol in NBD_SCHEMES:
        return {"file.driver": NBD, "file.filename": name}
    hint = f"./{name} for a file of this name, or a copy in a local file"
    raise ChainError(path=name, reason=f"Unknown protocol '{protocol}'", hint=hint)


def _read_json(name: str, text: str) -> Options:
    try:
        found = relaxed.loads(text)
    except ValueError as error:
        raise ChainError(path=name, reason=f"Could not parse the JSON options: {error}", hint=_EXAMPLE) from None
    if not isinstance(found, dict):
        raise ChainError(path=name, reason="Invalid JSON object given", hint=_EXAMPLE)
    return flatten(found)


def flatten(value: Mapping[str, Value]) -> Options:
    """One object without objects and lists in it: their keys and places follow behind a dot."""
    found: Options = {}
    for key, each in value.items():
        inner = {str(place): item for place, item in enumerate(each)} if isinstance(each, list) else each
        if isinstance(inner, dict) and inner:
            found |= {f"{key}.{deeper}": item for deeper, item in flatten(inner).items()}
        else:
            found.setdefault(key, each)
    return found


def from_options(name: str, options: Options) -> Address:
    """The address that options mean, which people know as `name`. Raises: ChainError."""
    driver, file = _driver(name, options), options
    inner: list[Window] = []
    if driver not in FILE_DRIVERS:
        file = _child(name, options, driver)
        while (between := _driver(name, file)) not in (None, *FILE_DRIVERS):
            if between != "raw":
                hint = "the same for the inner image, into a raw file, first"
                raise ChainError(path=name, reason=f"'{between}' inside another format is not opened", hint=hint)
            _check_node(name, between, file)
            inner.insert(0, _window(file))
            file = _child(name, file, between)
    if _driver(name, file) == NBD:
        place = _place(name, file)
        return Address(name, place.address, options, tuple(inner), place.location)
    return Address(name, _path(name, file), options, tuple(inner))


def _child(name: str, options: Options, driver: str | None) -> Options:
    """What is said of the file of a node. Raises: ChainError when that is nothing."""
    file, node = below(options, "file"), options.get("file")
    if file:
        return file
    if isinstance(node, str):
        raise ChainError(path=name, reason=f"Cannot find device='{node}' nor node-name='{node}'", hint=_EXAMPLE)
    reason = 'A block device must be specified for "file"' if driver else "Must specify either driver or file"
    raise ChainError(path=name, reason=reason, hint=_EXAMPLE)


def _driver(name: str, options: Mapping[str, Value]) -> str | None:
    """The driver that is named, if any. Raises: ChainError for one that opens no local file, or that nobody knows."""
    driver = options.get("driver")
    if not isinstance(driver, str) or driver in DRIVERS:
        return driver if isinstance(driver, str) else None
    hint = _ELSEWHERE if driver in PROTOCOLS else "driver=raw or driver=qcow2"
    raise ChainError(path=name, reason=f"Unknown driver '{driver}'", hint=hint)


def _path(name: str, file: Options) -> str:
    """The path that a file node names. Raises: ChainError."""
    driver, path = _driver(name, file) or FILE, file.get("filename")
    if path is None and "driver" not in file:
        raise ChainError(path=name, reason="Must specify either driver or file", hint=_EXAMPLE)
    if path is None or not to_text(path):
        raise ChainError(path=name, reason=f"The '{driver}' block driver requires a file name", hint=_EXAMPLE)
    _check_node(name, driver, file)
    # What is opened by its name is a file, whatever it looks like.
    return f"./{to_text(path)}" if is_export(to_text(path)) else to_text(path)


def _place(name: str, file: Options) -> "Place":
    """What a server exports. Raises: ChainError."""
    from cowtree.chain import place  # noqa: PLC0415 # `img info` of a file does without

    _check_node(name, NBD, file)
    return place.from_options(name, {key: to_text(value) for key, value in file.items() if value is not None})


def _check_node(name: str, driver: str, options: Mapping[str, Value]) -> None:
    check_options(name, driver, {key: value for key, value in options.items() if key.split(".")[0] not in _CHILDREN})


def below(options: Mapping[str, Value], child: str) -> Options:
    """What is said of one child of a node."""
    return {key[len(child) + 1 :]: value for key, value in options.items() if key.startswith(f"{child}.")}


def _is_on(value: Value) -> bool:
    return SWITCHES.get(to_text(value), False)


def _window(options: Mapping[str, Value]) -> Window:
    offset, size = (
        None if (value := options.get(key)) is None else parse_size(to_text(value)) for key in ("offset", "size")
    )
    return Window(offset or 0, size)
