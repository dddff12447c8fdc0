"""Making new files: written under a temporary name in the same folder, made durable, and only then given their name.

So there is never a partial image under the final name, and what stood there before is whole until it is replaced. A
temporary file that a killed run left is taken over by the next run. A file that another process has open is not
replaced, and what is no file at all is not either. A link is followed: the file that it leads to is replaced.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from cowtree.chain import gate
from cowtree.chain.aside import NAME_BYTES_MAX
from cowtree.chain.view import Chain
from cowtree.errors import MissingImage, Refused, StorageFailed
from cowtree.execute.run import run
from cowtree.images.encryption import furnish
from cowtree.monitor import Silent
from cowtree.plan.create import NewImage, create_steps, raw_steps
from cowtree.storage.contract import Access, FileSystem, Storage

NEW_MODE: Final = 0o644
OVERLAY_MODE: Final = 0o600
NEW_SUFFIX: Final = ".cowtree-new"


def create(files: FileSystem, new: NewImage, mode: int = NEW_MODE) -> None:
    """Make an empty image, in one step as seen from outside; an existing file is replaced.
    Raises: WrongUse, Refused, StorageFailed, ImageLocked when somebody has the file open or is making it too.
    """
    new = furnish(files, new)
    steps = create_steps(new)
    with new_file(files, new.path, mode) as file:
        run(steps, file, Chain((), ()), Silent())
        if new.data_file is not None:
            # The data file gets its name first, so that the image never names one that is not there.
            with new_file(files, gate.data_file_path(new.path, new.data_file), mode) as data:
                run(raw_steps(new.size_bytes, new.preallocation), data, Chain((), ()), Silent())


def write_new(file: Storage, new: NewImage) -> None:
    """Write an empty image to an empty file."""
    run(create_steps(new), file, Chain((), ()), Silent())


def temporary_name(path: str) -> str:
    """The name under which `path` is written until it is whole; always the same, so that a leftover is found again."""
    folder, name = os.path.split(path)
    # The longest name that a file system takes leaves no room for more.
    start = os.fsdecode(os.fsencode(name)[: NAME_BYTES_MAX - len(NEW_SUFFIX) - 1])
    return os.path.join(folder, f".{start}{NEW_SUFFIX}")


@contextmanager
def new_file(files: FileSystem, path: str, mode: int) -> Iterator[Storage]:
    """A file that gets the name `path` when the block ends well, durably, and goes away when it does not."""
    if os.path.islink(path):
        path = os.path.realpath(path)
    replaced = _hold(files, path)
    try:
        with renewed_file(files, path, mode) as file:
            yield file
    finally:
        if replaced is not None:
            replaced.close()


@contextmanager
def renewed_file(files: FileSystem, path: str, mode: int) -> Iterator[Storage]:
    """The same for whoever holds the file that is replaced, and calls it by its own name."""
    temporary = temporary_name(path)
    try:
        file = files.create(temporary, mode)
        try:
            yield file
            file.flush()
            files.rename(temporary, path)
            files.sync_folder(os.path.dirname(path) or ".")
        except (Exception, KeyboardInterrupt):
            _remove(files, temporary)
            raise
        finally:
            file.close()
    except StorageFailed as error:
        # People know the file by the name that they gave.
        if error.facts["path"] == temporary:
            error.facts["path"] = path
        raise


def _hold(files: FileSystem, path: str) -> Storage | None:
    """Open the file that shall be replaced, so that nobody else does; None when there is none.
    Raises: ImageLocked, MissingImage, Refused.
    """
    try:
        file = files.open(path, Access.WRITE)
    except MissingImage as error:
        if error.facts.get("errno") == errno.ENOENT:
            return None
        raise
    if os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
        file.close()
        raise Refused(reason=f"{path} is a device, which no new file can replace", hint="name a file in a folder")
    return file


def _remove(files: FileSystem, path: str) -> None:
    try:
        files.unlink(path)
    except StorageFailed:
        # The first failure is the one to report; the next run takes the leftover over.
        return


def kept_mode(path: str) -> int:
    """The permission bits for a file that replaces `path`: those it has, else what the process makes new files with."""
    try:
        return stat.S_IMODE(os.stat(path).st_mode)
    except OSError:
        mask = os.umask(0)
        os.umask(mask)
        return NEW_MODE & ~mask
