"""Who reads an image that is about to show something else: looked for around its family, and in every pool."""

import shlex

from cowtree.cli import pool
from cowtree.cli.img.command import Given
from cowtree.cli.img.main import warn_further
from cowtree.errors import Refused
from cowtree.storage.contract import FileSystem, is_there


def refuse_readers(given: Given, files: FileSystem, path: str, *, past_bytes: int | None = None) -> None:
    """Refuse to change what an image shows while others lie on it; with `past_bytes` only what it shows from there on.
    Raises: Refused, with the names of all that read it.
    """
    readers = find_readers(given, files, path, past_bytes=past_bytes)
    if readers:
        verb = "read" if len(readers) > 1 else "reads"
        ways = "; ".join(f"cowtree img rebase -b '' {shlex.quote(each)}" for each in readers)
        hint = f"{ways}, which {'let each of them' if len(readers) > 1 else 'lets it'} stand alone; then the same again"
        raise Refused(reason=f"{path} would change, and {', '.join(readers)} {verb} it", hint=hint)


def find_readers(given: Given, files: FileSystem, path: str, *, past_bytes: int | None = None) -> list[str]:
    """The images that read one, or what it shows from `past_bytes` on; where that cannot be told there is a warning."""
    # Not at the top: whoever lists snapshots needs none of this.
    from cowtree.images.family import find  # noqa: PLC0415

    if not is_there(files, path):
        # What is named by an address has no folder to look into.
        return []
    pools, gone = pool.find_pools(None)
    kin = find(files, path, pools)
    doubtful = [*kin.forest.doubtful, *(error.facts["path"] for error in gone)]
    if doubtful:
        text = f"whether an image reads {path} that could not be read is not known: {', '.join(doubtful)}"
        warn_further(given, text)
    family, found = kin.family, set[int]()
    own = kin.find(files, path)
    for each in (*family.overlays(own), *family.beside(own)):
        member = family.members[each]
        # How large the disks of internal snapshots are is not known.
        if past_bytes is None or member.has_snapshots or member.size_bytes > past_bytes:
            found |= {each, *family.readers(each)}
    return list(family.paths(tuple(sorted(found))))
