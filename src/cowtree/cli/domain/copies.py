"""`blockcopy` and `blockresize`: a disk is copied into another file, or gets another size."""

import re
from typing import TYPE_CHECKING, Final

from cowtree.cli.domain.host import open_host
from cowtree.cli.domain.merge import PATH, watch
from cowtree.cli.domain.merge_watch import ASYNC, BANDWIDTH, BYTES, TIMEOUT, VERBOSE, WAIT
from cowtree.cli.domain.words import DOMAIN, Command, Given, Option
from cowtree.cli.stop import stopping
from cowtree.errors import WrongUse

if TYPE_CHECKING:
    from cowtree.monitor import Monitor
    from cowtree.operations.host import Host

FORMATS: Final = ("raw", "qcow2")
NOTHING: Final = "nothing is left of a new file; the same command begins anew"
STOPPED: Final = "stopped; the next command of the domain completes it"
SIZE: Final = re.compile(r"([0-9]{1,19})([A-Za-z]*)")


def copy(given: Given) -> int:
    """Copy a disk."""
    given.refuse_both("pivot", "finish")
    image_format = given.get("format")
    if image_format not in (None, *FORMATS):
        reason = f"unsupported configuration: copies are made as raw and qcow2, not as {image_format}"
        raise WrongUse(reason=reason, hint="--format qcow2")
    is_waiting = given.has("wait") or given.has("pivot") or given.has("finish")
    pivots = given.has("pivot")
    said = "\nSuccessfully pivoted" if pivots else "\nSuccessfully copied"

    def act(host: "Host", monitor: "Monitor") -> None:
        from cowtree.operations.copy import Copy, blockcopy  # noqa: PLC0415  help does without
        from cowtree.operations.work import at_work  # noqa: PLC0415

        wanted = Copy(
            *(given.want("path"), given.want("dest"), image_format),
            is_shallow=given.has("shallow"),
            reuses=given.has("reuse-external"),
            pivots=pivots,
        )
        with at_work(host, given.want("domain")) as subject:
            blockcopy(host, subject, wanted, monitor)

    return watch(given, "Block Copy", said if is_waiting else "Block Copy started", act, NOTHING)


def resize(given: Given) -> int:
    """Give a disk another size."""
    from cowtree.operations.resize import blockresize  # noqa: PLC0415  help does without
    from cowtree.operations.work import at_work  # noqa: PLC0415

    size_bytes = parse_size(given.want("size"))
    with open_host(given) as host, at_work(host, given.want("domain")) as subject, stopping(STOPPED):
        blockresize(host, subject, given.want("path"), size_bytes, shrinks=given.has("shrink"))
    print(f"Block device '{given.want('path')}' is resized")
    return 0


def parse_size(text: str) -> int:
    """A number of KiB, or with a suffix of something else, in bytes. Raises: WrongUse."""
    from cowtree.domain.definition import UNITS  # noqa: PLC0415  help does without

    found = SIZE.fullmatch(text)
    unit = found[2].lower() or "kib" if found else ""
    if found is None or unit not in UNITS or int(found[1]) * UNITS[unit] >= 1 << 63:
        reason = f"Scaled numeric value '{text[:40]}' for <--size> option is malformed or out of range"
        raise WrongUse(reason=reason, hint="a number of KiB, or one with a suffix such as 20G")
    return int(found[1]) * UNITS[unit]


COMMANDS = {
    each.name: each
    for each in (
        Command(
            "blockcopy",
            "copy what a disk shows into another file",
            (
                *(DOMAIN, PATH, Option("dest", "the file or block device that is written", "path", is_required=True)),
                BANDWIDTH,
                Option("shallow", "the copy lies on what the disk's own file lies on"),
                Option("reuse-external", "write over a file that is there already"),
                Option("blockdev", "accepted: what is a block device is seen by itself"),
                *(WAIT, VERBOSE, TIMEOUT),
                Option("pivot", "the domain goes on in the copy"),
                Option("finish", "accepted: a copy without --pivot is finished when it is made"),
                ASYNC,
                Option("format", "raw or qcow2; that of the disk when not given", "format"),
                Option("granularity", "accepted", "granularity", is_number=True),
                Option("buf-size", "accepted", "buf-size", is_number=True),
                BYTES,
                Option("transient-job", "accepted: a domain that is shut off needs it not"),
                Option("synchronous-writes", "accepted: a domain that is shut off does not write"),
            ),
            copy,
            "A new file is there when it is whole. Internal snapshots are not copied.",
        ),
        Command(
            "blockresize",
            "give a disk another size",
            (
                *(DOMAIN, PATH),
                Option("size", "in KiB; or with a suffix, such as B, M or G", "size", is_required=True),
                Option("shrink", "let it become smaller; what lies past its end is lost"),
            ),
            resize,
            "Refused when a snapshot or another image relies on the disk's own file as it is.",
        ),
    )
}
