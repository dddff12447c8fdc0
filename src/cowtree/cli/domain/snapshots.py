"""`snapshot-create-as`, `snapshot-create` and `snapshot-revert`: a domain's disks are kept as they are, or put back."""

from typing import TYPE_CHECKING

from cowtree.cli.domain.define import read_text
from cowtree.cli.domain.host import CURRENT, SNAPSHOT, failing, find_snapshot, open_host
from cowtree.cli.domain.words import DOMAIN, Command, Given, Option
from cowtree.errors import Refused

if TYPE_CHECKING:
    from cowtree.domain.moment import Request

PRINT_XML = Option("print-xml", "print the XML of what would be done, and do nothing")
MANNERS = (
    Option("no-metadata", "take it, but do not note it down"),
    Option("halt", "accepted: a domain that is shut off stays so"),
    Option("disk-only", "hold each disk in its file, and go on in a new one, where nothing else is said"),
    Option("reuse-external", "go on in files that are there already"),
    Option("quiesce", "let the guest come to rest first; none that is shut off can"),
    Option("atomic", "accepted: all disks get their snapshot, or none does"),
    Option("live", "while the guest runs; none that is shut off does"),
    Option("validate", "accepted: what is read is always checked"),
)


def create_as(given: Given) -> int:
    """Take a snapshot that the words describe."""
    from cowtree.domain import moment, specs  # noqa: PLC0415  help does without

    memory = given.get("memspec")
    request = moment.Request(
        *(given.get("name"), given.get("description")),
        memory=None if memory is None else specs.memory_spec(memory),
        disks=tuple(map(specs.disk_spec, given.all("diskspec"))),
    )
    return _create(given, moment.settled(request))


def create(given: Given) -> int:
    """Take a snapshot that an XML text describes; or note one down again that was described so."""
    from cowtree.domain import moment  # noqa: PLC0415

    path = given.get("xmlfile")
    given.refuse_without("redefine", "xmlfile")
    given.refuse_without("current", "redefine")
    given.refuse_both("redefine", "no-metadata")
    request = moment.Request(None) if path is None else moment.parse(read_text(path))
    if given.has("redefine"):
        return _redefine(given, request)
    return _create(given, request, "" if path is None else f" from '{path}'")


def _create(given: Given, request: "Request", origin: str = "") -> int:
    from cowtree.domain.moment import request_text  # noqa: PLC0415
    from cowtree.operations import create as verb  # noqa: PLC0415
    from cowtree.operations.work import at_work, look_at  # noqa: PLC0415

    with open_host(given) as host:
        if given.has("print-xml"):
            look_at(host, given.want("domain"))
            print(f"{request_text(request)}\n")
            return 0
        manner = verb.Manner(
            is_disk_only=given.has("disk-only"),
            reuses_external=given.has("reuse-external"),
            has_metadata=not given.has("no-metadata"),
        )
        with at_work(host, given.want("domain")) as subject:
            _refuse_running(given)
            name = verb.create(host, subject, request, manner)
    print(f"Domain snapshot {name} created{origin}")
    return 0


def _refuse_running(given: Given) -> None:
    """Raises: Refused when something is asked for that only a guest that runs can do."""
    if given.has("live"):
        reason = "live snapshot creation is supported only during full system snapshots"
        raise Refused(reason=f"unsupported configuration: {reason}", hint="the same without --live")
    if given.has("quiesce"):
        reason = "Requested operation is not valid: domain is not running"
        raise Refused(reason=reason, hint="without --quiesce; a guest that was shut down is at rest")


def _redefine(given: Given, request: "Request") -> int:
    from cowtree.operations import edit  # noqa: PLC0415
    from cowtree.operations.work import at_work  # noqa: PLC0415

    with open_host(given) as host, at_work(host, given.want("domain")) as subject:
        name = edit.redefine(host, subject, request, is_current=given.has("current"))
    print(f"Domain snapshot {name} created from '{given.want('xmlfile')}'")
    return 0


def revert(given: Given) -> int:
    """Revert a domain to a snapshot."""
    from cowtree.operations import revert as verb  # noqa: PLC0415
    from cowtree.operations.work import at_work  # noqa: PLC0415

    manner = verb.Manner(discards=given.has("discard"), is_forced=given.has("force"))
    with open_host(given) as host, at_work(host, given.want("domain")) as subject:
        snapshot = find_snapshot(given, host, subject.domain)
        with failing(f"Failed to revert snapshot {snapshot.name}"):
            verb.revert(host, subject, snapshot, manner)
    print(f"Domain snapshot {snapshot.name} reverted\n")
    return 0


COMMANDS = {
    each.name: each
    for each in (
        Command(
            "snapshot-create-as",
            "take a snapshot of a domain, as the words describe it",
            (
                DOMAIN,
                Option("name", "its name; the time in seconds when not given", "name"),
                Option("description", "what it is", "description"),
                PRINT_XML,
                *MANNERS,
                Option("memspec", "how memory is held: [file=]NAME[,snapshot=MODE]", "memspec", has_place=False),
                Option(
                    "diskspec",
                    "how one disk is held: DISK[,snapshot=MODE][,driver=FORMAT][,stype=TYPE][,file=NAME]; a MODE is "
                    "internal, external, manual or no. May be given for each disk",
                    "diskspec",
                    is_repeatable=True,
                ),
            ),
            create_as,
            "All disks get it, or none does.",
        ),
        Command(
            "snapshot-create",
            "take a snapshot of a domain, as XML describes it",
            (
                DOMAIN,
                Option("xmlfile", "the XML of the snapshot; all that is not said follows from the rest", "file"),
                Option("redefine", "take none, but note down one that was taken, as snapshot-dumpxml printed it"),
                Option("current", "with --redefine: the disks lie on it now"),
                *MANNERS,
                PRINT_XML,
            ),
            create,
            "All disks get it, or none does.",
        ),
        Command(
            "snapshot-revert",
            "let the disks of a domain be what they were when a snapshot was taken",
            (
                DOMAIN,
                SNAPSHOT,
                CURRENT,
                Option("force", "also when what the snapshot holds was changed by another tool"),
                Option(
                    "discard", "drop what is active now, unless somebody else needs it; else it stays as a snapshot"
                ),
            ),
            revert,
            "What an external snapshot holds stays as it is: the disks go on in new files that lie on it.",
        ),
    )
}
