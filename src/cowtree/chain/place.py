"""Where a server listens and what is asked of it: the addresses that QEMU knows, and the texts they are.

    nbd://HOST[:PORT]/[EXPORT]            nbds:// the same over TLS
    nbd+unix:///[EXPORT]?socket=PATH      nbds+unix:// the same over TLS
    nbd:HOST:PORT[:exportname=EXPORT]     QEMU's old way; the name goes to the end
    nbd:unix:PATH[:exportname=EXPORT]

Behind a question mark may stand tls-certificates=FOLDER, tls-hostname=NAME and tls-creds=ID. Opens nothing.
Source: the NBD URI specification, and QEMU, block/nbd.c, `nbd_parse_uri`, `nbd_parse_filename`, `nbd_refresh_filename`.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from cowtree.chain.address import NBD_SCHEMES
from cowtree.errors import ChainError

PORT: Final = 10809
PORT_MAX: Final = 65535
_LEGACY_EXPORT: Final = ":exportname="
_TLS: Final = {"tls-certificates": "certificates", "tls-hostname": "tls_name", "tls-creds": "credentials"}
_HINT: Final = "nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH"


class Place(NamedTuple):
    """A unix socket, or a host and a port; the name of an export; and whether TLS is wanted, with the certificates of a
    folder or of an object, and what the server is called there.
    """

    export: str = ""
    host: str = ""
    port: int = PORT
    socket_path: str = ""
    is_secure: bool = False
    certificates: str = ""
    credentials: str = ""
    tls_name: str = ""

    @property
    def address(self) -> str:
        """The address for people, as QEMU writes it; the same for two spellings of one place."""
        scheme = "nbds" if self.is_secure else "nbd"
        if self.socket_path:
            slash = f"/{self.export}" if self.export else ""
            return f"{scheme}+unix://{slash}?socket={self.socket_path}"
        slash = f"/{self.export}" if self.export else ""
        return f"{scheme}://{self._host}:{self.port}{slash}"

    @property
    def location(self) -> str:
        """All of it as an address that `parse` understands, whatever is in the names."""
        options = {key: value for key, field in _TLS.items() if (value := str(getattr(self, field)))}
        if self.socket_path:
            options = {"socket": self.socket_path, **options}
        scheme = ("nbds" if self.is_secure else "nbd") + ("+unix" if self.socket_path else "")
        where = "" if self.socket_path else f"{self._host}:{self.port}"
        query = f"?{urlencode(options, quote_via=quote, errors='surrogateescape')}" if options else ""
        return f"{scheme}://{where}/{quote(self.export, errors='surrogateescape')}{query}"

    @property
    def _host(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def server(self) -> dict[str, str]:
        """The socket as the options of QEMU's driver."""
        if self.socket_path:
            return {"type": "unix", "path": self.socket_path}
        return {"type": "inet", "host": self.host, "port": str(self.port)}


def parse(address: str) -> Place:
    """What an address means. Raises: ChainError."""
    scheme, _, rest = address.partition(":")
    if scheme == "nbd" and not rest.startswith("//"):
        return _parse_legacy(address, rest)
    try:
        return _parse_uri(address)
    except ValueError as error:
        raise _wrong(address, f"No valid URL specified: {error}") from None


def from_options(name: str, given: Mapping[str, str]) -> Place:
    """What the options of QEMU's driver mean, which people know as `name`. Raises: ChainError."""
    if "filename" in given:
        place = parse(given["filename"])
        return _with_tls(place._replace(export=given.get("export", place.export)), given)
    path = given.get("server.path", given.get("path", ""))
    host = given.get("server.host", given.get("host", ""))
    if path and host:
        raise _wrong(name, "path and host may not be used at the same time")
    if not path and not host:
        raise _wrong(name, "NBD server address missing")
    port = given.get("server.port", given.get("port", str(PORT)))
    if not path and not _is_port(port):
        raise _wrong(name, f"'{port}' is no port")
    return _with_tls(Place(given.get("export", ""), host, PORT if path else int(port), path), given)


def _with_tls(place: Place, given: Mapping[str, str]) -> Place:
    """The same place, with what is said of TLS."""
    certificates, tls_name, credentials = (given.get(key, getattr(place, field)) for key, field in _TLS.items())
    is_secure = place.is_secure or bool(certificates or credentials)
    return place._replace(certificates=certificates, tls_name=tls_name, credentials=credentials, is_secure=is_secure)


def _parse_uri(address: str) -> Place:
    """Raises: ValueError."""
    parts = urlsplit(address)
    if parts.scheme not in NBD_SCHEMES:
        raise ValueError(f"it begins with none of {', '.join(f'{each}://' for each in NBD_SCHEMES)}")
    options = dict(parse_qsl(parts.query, keep_blank_values=True, errors="surrogateescape"))
    export = unquote(parts.path.lstrip("/"), errors="surrogateescape")
    place = _with_tls(Place(export, is_secure=parts.scheme.startswith("nbds")), options)
    options = {key: value for key, value in options.items() if key not in _TLS}
    if parts.scheme.endswith("+unix"):
        if parts.netloc:
            raise ValueError("a unix socket has no host: there are three slashes")
        if list(options) != ["socket"] or not options["socket"]:
            raise ValueError("the path of the unix socket is missing: ?socket=PATH")
        return place._replace(socket_path=options["socket"])
    if options:
        raise ValueError(f"'{next(iter(options))}' means nothing here")
    if not parts.hostname:
        raise ValueError("the host is missing")
    port = PORT if parts.port is None else parts.port
    if not port:
        raise ValueError("there is no port 0")
    return place._replace(host=unquote(parts.hostname), port=port)


def _parse_legacy(address: str, rest: str) -> Place:
    where, _, export = rest.partition(_LEGACY_EXPORT)
    if where.startswith("unix:"):
        path = where.removeprefix("unix:")
        if not path:
            raise _wrong(address, "the path of the unix socket is missing")
        return Place(export, socket_path=path)
    host, colon, port = where.rpartition(":")
    if not colon or not host or not _is_port(port):
        raise _wrong(address, f"error parsing address '{where}'")
    return Place(export, host=host.strip("[]"), port=int(port))


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdecimal() and 0 < int(text[:6]) <= PORT_MAX


def _wrong(address: str, reason: str) -> ChainError:
    return ChainError(path=address, reason=reason, hint=_HINT)
