"""`cowtree img snapshot`: lists, takes, applies and deletes internal snapshots."""

import errno
import os
from typing import Final

from cowtree.chain import gate
from cowtree.cli.img.command import IMAGE_OPTS, OBJECT, SHARE, BadWords, Command, Given, Option, want_names
from cowtree.cli.img.info import SNAPSHOT_HEAD, snapshot_line
from cowtree.cli.img.readers import refuse_readers
from cowtree.cli.img.source import Source, access_of, files_of, source_of
from cowtree.errors import ChainError, CowtreeError, Refused, StorageFailed
from cowtree.images.info import image_info
from cowtree.storage.contract import Access, FileSystem

LIST = Option(("-l",), "list all snapshots")
CREATE = Option(("-c",), "take a snapshot of this name", "NAME")
APPLY = Option(("-a",), "let the disk be as it was when this snapshot was taken; its ID or its name", "SNAPSHOT")
DELETE = Option(("-d",), "delete the snapshot of this name", "NAME")
QUIET = Option(("-q",), "accepted; nothing but errors is ever printed")
ACTIONS: Final = ("-l", "-a", "-c", "-d")


def run(given: Given) -> int:
    """Do the one thing that is asked for; without one the image is only opened."""
    asked = [name for name in ACTIONS for _ in given.all(name)]
    if len(asked) > 1:
        raise BadWords(reason="Cannot mix '-l', '-a', '-c', '-d'")
    (name,) = want_names(given, 1, "Expecting one image file name")
    files, source = files_of(given), source_of(given, name)
    is_read = asked == ["-l"]
    if given.has("-U") and not is_read:
        raise ChainError(path=name, reason="force-share=on can only be used with read-only images", hint="without -U")
    has_any = _look_for_all(files, source, access_of(given) if is_read else Access.WRITE)
    if is_read:
        show(files, source, access_of(given))
    elif asked:
        if asked == ["-a"] and has_any:
            # An overlay would become a mix of what it holds and of another disk.
            refuse_readers(given, files, source.path)
        change(files, source, asked[0], given.last(asked[0]) or "")
    return 0


def _look_for_all(files: FileSystem, source: Source, access: str) -> bool:
    """Look whether all that the image needs is there, and let it go. Returns: whether there may be snapshots in it.
    Raises: what `gate.walk` raises.
    """
    headers = []
    for layer in gate.walk(files, *source, access, gate.open_readable):
        layer.close()
        headers.append(layer.header)
    top = headers[0]
    return top is not None and top.snapshot_count > 0 and not top.geometry.has_data_file


def show(files: FileSystem, source: Source, access: str) -> None:
    """Print the list; nothing when there is none."""
    info = image_info(files, *source, access)
    if info.snapshots and info.header and not info.header.geometry.has_data_file:
        print("\n".join(["Snapshot list:", SNAPSHOT_HEAD, *map(snapshot_line, info.snapshots)]))


def change(files: FileSystem, source: Source, action: str, name: str) -> None:
    """Take, apply or delete a snapshot. Raises: Refused in the words of qemu-img, and what opening raises."""
    # Not at the top: whoever lists needs no numpy.
    from cowtree.images import snapshot  # noqa: PLC0415

    try:
        if action == "-c":
            snapshot.create(files, *source, name=name)
        elif action == "-a":
            snapshot.apply(files, *source, wanted=name)
        else:
            snapshot.delete(files, *source, name=name)
    except CowtreeError as error:
        code = code_of(error)
        if code is None:
            raise
        what = {"-c": "create", "-a": "apply", "-d": "delete"}[action]
        reason = f"Could not {what} snapshot '{name}': {complaint(action, error, code)}"
        detail = "" if error.reason in reason or code == errno.ENOENT else f": {error.reason}"
        raise Refused(reason=reason, detail=detail, hint=error.advice) from error


def code_of(error: CowtreeError) -> int | None:
    """The system's error that QEMU would have met; None when the image could not be opened."""
    if isinstance(error, StorageFailed):
        return int(error.facts["errno"])
    return getattr(errno, str(error.facts.get("cause")), None)


def complaint(action: str, error: CowtreeError, code: int) -> str:
    """What qemu-img says when the system's error `code` came of it."""
    said = os.strerror(code)
    if action == "-c":
        return f"{-code} ({said})"
    if action == "-a":
        if code == errno.EBUSY:
            return error.reason
        is_raw = error.facts.get("format", gate.QCOW2) != gate.QCOW2
        return "Block driver does not support snapshots" if is_raw else f"Failed to load snapshot: {said}"
    if code in (errno.ENOENT, errno.ENOTSUP):
        return "snapshot not found"
    failed = (
        "free the cluster and L1 table" if code in (errno.EINVAL, errno.EIO) else "remove snapshot from snapshot list"
    )
    return f"Failed to {failed}: {said}"


COMMAND = Command(
    "snapshot",
    "List, take, apply and delete the snapshots inside an image.",
    (LIST, CREATE, APPLY, DELETE, QUIET, SHARE, IMAGE_OPTS, OBJECT),
    "FILENAME",
    run,
)
