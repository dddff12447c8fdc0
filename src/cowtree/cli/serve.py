"""`cowtree serve`: one image as a network block device, in the foreground, until it is stopped."""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from cowtree.errors import WrongUse

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from cowtree.chain.view import Chain
    from cowtree.nbd.export import Export

ADDRESS: Final = "127.0.0.1"
PORT: Final = 10809
PORT_MAX: Final = 65535
NAME_BYTES_MAX: Final = 4096


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "serve",
        help="serve an image as a network block device",
        description="Serves what the guest sees of an image to NBD clients on this machine, such as qemu, nbd-client "
        "and nbdcopy, until SIGTERM or Ctrl-C ends it. Its address is printed when clients may come. What a client has "
        "flushed is durable; when the server ends, everything is.",
        epilog="An image that was not closed well is mended before it is served for writing.",
    )
    parser.add_argument("image", metavar="IMAGE", help="an image, with all that backs it")
    parser.add_argument("-f", "--format", choices=("raw", "qcow2"), help="the format; told from the image if not given")
    parser.add_argument("--read-only", action="store_true", help="let nobody write")
    parser.add_argument("--snapshot", metavar="NAME", help="serve an internal snapshot, by its name or ID; read-only")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--socket", metavar="PATH", help="listen on a unix socket, which only the same user may use")
    place.add_argument(
        "--port", type=int, default=PORT, metavar="N", help=f"listen on a port of {ADDRESS}: {PORT}, or any free one: 0"
    )
    parser.add_argument(
        "--name", default="", metavar="NAME", help="the name by which clients ask for it; none is needed"
    )
    parser.set_defaults(run=run)


class Only:
    """One export, which is also what is served when nobody names anything."""

    def __init__(self, name: str, export: "Export") -> None:
        self._name = name
        self._export = export

    def names(self) -> "Sequence[str]":
        """Its name."""
        return [self._name]

    def find(self, name: str) -> "Export | None":
        """The export, if it is meant."""
        return self._export if name in ("", self._name) else None


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal comes."""
    from cowtree.live.disk import Disk  # noqa: PLC0415  numpy is not needed to print help
    from cowtree.nbd.server import Server  # noqa: PLC0415

    is_read_only = arguments.read_only or arguments.snapshot is not None
    _check(arguments)
    with _until_signalled() as stopped:
        chain = _open(arguments, is_read_only=is_read_only)
        try:
            disk = Disk(chain, is_read_only=is_read_only)
        except BaseException:
            chain.close()
            raise
        try:
            with _listening(arguments) as (listener, address):
                server = Server(Only(arguments.name, disk), tell=_tell)
                server.listen(listener)
                print(address, flush=True)
                stopped.wait()
                server.stop()
        finally:
            disk.close()
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Refuse words that mean nothing. Raises: WrongUse."""
    if not 0 <= arguments.port <= PORT_MAX:
        raise WrongUse(reason=f"there is no port {arguments.port}", hint=f"a number up to {PORT_MAX}")
    if arguments.socket == "":
        raise WrongUse(reason="a socket needs a path", hint="--socket PATH")
    if len(os.fsencode(arguments.name)) > NAME_BYTES_MAX:
        raise WrongUse(reason=f"no client can ask for a name of more than {NAME_BYTES_MAX} bytes", hint="--name NAME")


def _open(arguments: argparse.Namespace, *, is_read_only: bool) -> "Chain":
    """The chain, as it is served. Raises: what opening raises, Refused, WrongUse."""
    from cowtree.chain.view import open_chain, through_snapshot  # noqa: PLC0415
    from cowtree.images.check import trusted  # noqa: PLC0415
    from cowtree.storage.contract import Access  # noqa: PLC0415
    from cowtree.storage.file import LocalFiles  # noqa: PLC0415

    access = Access.READ if is_read_only else Access.WRITE
    chain = open_chain(LocalFiles(), arguments.image, arguments.format, access)
    try:
        if arguments.snapshot is not None:
            wanted = arguments.snapshot
            return _without_bitmaps(through_snapshot(chain, [(wanted, None), (None, wanted)]))
        if is_read_only:
            return chain
        if chain.top.was_probed and chain.top.header is None:
            # A guest could write the header of another format, and would be believed the next time.
            raise WrongUse(reason=f"{arguments.image} has no header that tells its format", hint="-f raw")
        return trusted(chain, 0)
    except BaseException:
        chain.close()
        raise


def _without_bitmaps(chain: "Chain") -> "Chain":
    """The same chain; its bitmaps speak of the disk as it is now."""
    image = chain.images[0]
    return chain if image is None else chain.with_image(0, image._replace(bitmaps=(), directory=None))


@contextmanager
def _listening(arguments: argparse.Namespace) -> "Iterator[tuple[socket.socket, str]]":
    """A socket that listens, and its address for clients; the name of a unix socket is taken away at the end."""
    from cowtree.sockets import listen_on_path, listen_on_port  # noqa: PLC0415

    name, path = quote(arguments.name), arguments.socket
    if path is None:
        listener = listen_on_port(ADDRESS, arguments.port)
        with listener:
            yield listener, f"nbd://{ADDRESS}:{listener.getsockname()[1]}/{name}"
        return
    listener = listen_on_path(path)
    try:
        yield listener, f"nbd+unix:///{name}?socket={quote(os.path.abspath(path))}"
    finally:
        listener.close()
        with suppress(OSError):
            os.unlink(path)


@contextmanager
def _until_signalled() -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set while the block runs."""
    stopped = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()

    before = {each: signal.signal(each, stop) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stopped
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _tell(text: str) -> None:
    print(f"cowtree: {text}", file=sys.stderr, flush=True)
