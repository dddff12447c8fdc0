"""`cowtree img rebase`: gives an image another backing file, or none.

Where no format is named it is the one by which the image's chain knows the file. What must be refused is refused before
a byte is copied.
"""

from cowtree.chain import gate
from cowtree.chain.gate import FORMATS, Layer
from cowtree.cli.img.command import (
    CACHE,
    FORMAT,
    IMAGE_OPTS,
    OBJECT,
    PROGRESS,
    QUIET,
    SHARE,
    SOURCE_CACHE,
    BadWords,
    Command,
    Given,
    Option,
    want_names,
)
from cowtree.cli.img.main import QEMU_IMG, trouble, warn_further
from cowtree.cli.img.options import BACKING_FORMATS
from cowtree.cli.img.progress import Progress
from cowtree.cli.img.readers import find_readers
from cowtree.cli.img.source import Source, check_cache_modes, files_of, source_of
from cowtree.errors import ChainError, CowtreeError, Locked, MissingImage, Refused, WrongUse
from cowtree.images.lineage import record_quietly
from cowtree.images.merge import rebase, relink
from cowtree.storage.contract import Access, FileSystem, Storage
from cowtree.storage.file import LocalFiles

BASE = Option(("-b",), "the new backing file; an empty name for none", "BACKING_FILE")
BASE_FORMAT = Option(("-F",), "format of the new backing file", "BACKING_FMT")
UNSAFE = Option(("-u",), "change the name only, whatever the guest then sees")


class SharingFiles(LocalFiles):
    """Files that are read even when another process writes to them."""

    def open(self, path: str, access: str) -> Storage:
        """Open a file, without locks when it is only read."""
        return super().open(path, Access.SHARED if access == Access.READ else access)


def run(given: Given) -> int:
    """Rebase, in silence."""
    (name,) = want_names(given, 1, "Expecting one image file name")
    wanted, backing_format = given.last("-b"), given.last("-F")
    if wanted is None and not given.has("-u"):
        raise BadWords(reason="Must specify backing file (-b) or use unsafe mode (-u)")
    with Progress(given, step_percent=2.0) as progress:
        progress.show(0)
        check_cache_modes(given)
        if backing_format not in (None, *(BACKING_FORMATS if given.has("-u") else FORMATS)):
            raise WrongUse(reason=f"Invalid format name: '{backing_format}'", hint="-F raw or -F qcow2")
        source, link = source_of(given, name), (wanted or "", backing_format)
        if given.has("-u"):
            _change_link(given, source, link)
        else:
            _move(
                SharingFiles(given.secrets, follows_addresses=True) if given.has("-U") else files_of(given),
                source,
                link,
                progress,
            )
        progress.show(100)
    return 0


def _move(files: FileSystem, source: Source, link: tuple[str, str | None], progress: Progress) -> None:
    """Rebase so that the guest sees the same as before."""
    layers = gate.open_chain(files, *source, Access.WRITE)
    gate.close_all(layers)
    try:
        backing = complete_link(files, layers, link)
        if backing is not None:
            files.identity(gate.resolve_name(source.path, backing[0]))
    except MissingImage as error:
        reason = f"Could not open new backing file '{link[0]}': {trouble(error)}"
        raise Refused(reason=reason, hint=error.advice) from error
    try:
        rebase(files, *source, backing=backing, monitor=progress)
    except Locked as error:
        # The image itself was open before.
        reason = f"Could not open new backing file '{link[0]}': {error.reason}"
        raise Refused(reason=reason, hint=error.advice) from error
    record_quietly(files, *source)


def _change_link(given: Given, source: Source, link: tuple[str, str | None]) -> None:
    """Change the link only, and say when it leads nowhere, or others lie on the image."""
    files = files_of(given)
    layer = gate.open_readable(files, *source, Access.WRITE)
    layer.close()
    backing = complete_link(files, _known_layers(given, files, source, layer), link)
    if layer.header and layer.header.backing_file is not None and not _is_kept(files, layer, backing):
        readers = find_readers(given, files, layer.path)
        if readers:
            warn_further(given, f"{', '.join(readers)} will show what {layer.path} shows on its new base")
    relink(files, *source, backing=backing)
    record_quietly(files, *source)
    if backing is not None:
        _warn_of(given, files, layer.path, backing[0])


def _known_layers(given: Given, files: FileSystem, source: Source, layer: Layer) -> tuple[Layer, ...]:
    """The image and what backs it now, as far as it is there; qemu-img does not look."""
    if given.program == QEMU_IMG:
        return (layer,)
    try:
        layers = gate.open_chain(files, *source, Access.SHARED)
    except CowtreeError:
        return (layer,)
    gate.close_all(layers)
    return tuple(layers)


def _is_kept(files: FileSystem, layer: Layer, backing: tuple[str, str] | None) -> bool:
    """Whether an image that has a base keeps it, under whatever name."""
    if backing is None or layer.header is None or layer.header.backing_file is None:
        return False
    try:
        old, new = (gate.resolve_name(layer.path, name) for name in (layer.header.backing_file, backing[0]))
    except ChainError:
        return False
    return gate.is_same(files, old, new)


def complete_link(files: FileSystem, layers: tuple[Layer, ...], link: tuple[str, str | None]) -> tuple[str, str] | None:
    """The new backing file with its format, which the chain may know; None for no backing file.
    Raises: Refused when there cannot be one, or when nobody knows its format.
    """
    name, image_format = link
    failure = f"Could not change the backing file to '{name}'"
    kind = layers[0].format
    if layers[0].header is None:
        detail = f": {layers[0].path} is {kind}, and a {kind} image has no backing file"
        raise Refused(reason=f"{failure}: Operation not supported", detail=detail)
    if not name:
        return None
    if image_format is None:
        image_format = known_format(files, layers, name)
    if image_format is None:
        raise Refused(reason=f"{failure}: backing format must be specified", hint="the same with -F raw or -F qcow2")
    return name, image_format


def known_format(files: FileSystem, layers: tuple[Layer, ...], name: str) -> str | None:
    """The format by which a chain knows the file that its top would call by this name."""
    path = gate.resolve_name(layers[0].path, name)
    backing = {files.identity(layer.path): layer.format for layer in layers[1:]}
    return backing.get(files.identity(path)) if backing else None


def _warn_of(given: Given, files: FileSystem, path: str, name: str) -> None:
    try:
        if files.identity(gate.resolve_name(path, name)) == files.identity(path):
            warn_further(given, f"'{name}' is the image itself; it cannot be opened until it has another backing file")
    except ChainError as error:
        warn_further(given, f"'{name}': {error.reason}; {path} cannot be opened until it is there")


COMMAND = Command(
    "rebase",
    "Give an image another backing file, or none.",
    (FORMAT, CACHE, SOURCE_CACHE, BASE, BASE_FORMAT, UNSAFE, SHARE, PROGRESS, QUIET, IMAGE_OPTS, OBJECT),
    "FILENAME",
    run,
)
