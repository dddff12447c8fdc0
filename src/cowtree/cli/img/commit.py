"""`cowtree img commit`: what an image and those below it hold goes into one of the images that back it."""

import shlex
from itertools import pairwise

from cowtree.chain import gate
from cowtree.chain.gate import Layer
from cowtree.cli import pool
from cowtree.cli.img.command import (
    CACHE,
    FORMAT,
    IMAGE_OPTS,
    OBJECT,
    PROGRESS,
    QUIET,
    Command,
    Given,
    Option,
    want_names,
)
from cowtree.cli.img.main import warn_further
from cowtree.cli.img.progress import RATE, Progress, limited
from cowtree.cli.img.source import check_cache_modes, files_of, source_of
from cowtree.errors import ChainError, MarkedCorrupt, NotInChain, Refused
from cowtree.images.family import prove_commit
from cowtree.images.lineage import record_quietly
from cowtree.images.merge import Into, commit
from cowtree.plan.permit import Permit
from cowtree.storage.contract import Access, FileSystem

BASE = Option(("-b",), "commit into this image, further down; the top is then kept as it is", "BASE")
DROP = Option(("-d",), "keep the top as it is; otherwise it is emptied")


def run(given: Given) -> int:
    """Commit, and say so."""
    (name,) = want_names(given, 1, "Expecting one image file name")
    progress = Progress(given, step_percent=1.0)
    monitor = limited(given, progress)
    check_cache_modes(given)
    source, files = source_of(given, name), files_of(given)
    layers = gate.open_chain(files, *source, Access.WRITE)
    gate.close_all(layers)
    _refuse_exports(layers)
    if layers[0].header and layers[0].header.is_corrupt:
        # It is refused even when it is only read from, as it is opened for writing like any other.
        raise MarkedCorrupt(path=source.path)
    with progress:
        progress.show(0)
        base = find_base(files, name, layers, given.last("-b"))
        into = Into(prove(given, files, layers, base), base, empties_top=not (given.has("-d") or given.has("-b")))
        outcome = commit(files, *source, into=into, monitor=monitor)
        if into.empties_top:
            # The base has changed, but not what the top shows.
            record_quietly(files, *source)
        progress.show(100)
    for path in outcome.invalid:
        warn_further(given, f"{path} is of no use any more: what was above it has gone into {base}")
    if not given.has("-q"):
        print("Image committed.")
    return 0


def _refuse_exports(layers: tuple[Layer, ...]) -> None:
    """Refuse a chain that is not all here, for nobody can tell who else reads it. Raises: ChainError."""
    for layer in layers:
        if layer.address and layer.address.location:
            hint = f"a copy of {{path}} in a local file, and cowtree img rebase -u -b COPY -F FORMAT {layers[0].path}"
            raise ChainError(path=layer.path, reason="Nothing is committed over what a server exports", hint=hint)


def prove(given: Given, files: FileSystem, layers: tuple[Layer, ...], base: str) -> Permit:
    """Prove that no image in the folders of the chain, nor in any pool, reads what a commit into `base` changes.
    Raises: Refused, with the names of those that do.
    """
    pools, gone = pool.find_pools(None)
    index = next(number for number, layer in enumerate(layers) if layer.path == base)
    try:
        permit, forest = prove_commit(files, layers, index, pools)
    except Refused as error:
        top = layers[0].path
        hint = f"{shlex.join(['cowtree', 'commit', top, '--base', base, '--with-dependants'])}, which saves them first"
        raise Refused(reason=error.reason, hint=hint) from error
    doubtful = [*forest.doubtful, *(error.facts["path"] for error in gone)]
    if doubtful:
        warn_further(given, f"whether an image reads {base} that could not be read is not known: {', '.join(doubtful)}")
    return permit


def find_base(files: FileSystem, name: str, layers: tuple[Layer, ...], wanted: str | None) -> str:
    """The path of the layer to commit into: the one below the top, or the one that `wanted` names; `name` is the top's.
    A relative name is looked for beside the image that is backed, as the name in its header is.
    Raises: Refused, NotInChain.
    """
    if wanted is None:
        if len(layers) < 2:
            raise Refused(reason="Image does not have a backing file")
        return layers[1].path
    for overlay, backing in pairwise(layers):
        if _is_called(files, overlay, backing, wanted):
            return backing.path
    raise NotInChain(path=name, wanted=wanted)


def _is_called(files: FileSystem, overlay: Layer, backing: Layer, name: str) -> bool:
    try:
        return gate.is_same(files, gate.resolve_name(overlay.path, name), backing.path)
    except ChainError:
        # An address names no file, so none of this chain.
        return False


COMMAND = Command(
    "commit",
    "Merge an image into its backing file.",
    (FORMAT, CACHE, BASE, RATE, DROP, PROGRESS, QUIET, IMAGE_OPTS, OBJECT),
    "FILENAME",
    run,
)
