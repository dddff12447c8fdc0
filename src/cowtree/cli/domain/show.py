"""`list`, `dominfo`, `domstate`, `domblklist` and `domblkinfo`: what guests there are, and what disks they have."""

from typing import TYPE_CHECKING

from cowtree.cli.domain.host import open_host
from cowtree.cli.domain.table import fields, table
from cowtree.cli.domain.words import DOMAIN, Command, Given, Option
from cowtree.errors import WrongUse
from cowtree.units import GIB, KIB, MIB, TIB

if TYPE_CHECKING:
    from cowtree.operations.lists import Sizes

SHUT_OFF = "shut off"


def list_domains(given: Given) -> int:
    """Print the domains that run, or those that do not, or all."""
    from cowtree.catalog import domains  # noqa: PLC0415  help does without

    given.refuse_both("uuid", "name")
    with open_host(given) as host:
        # Nothing runs that cowtree knows of.
        found = domains.everyone(host.catalog) if given.has("all") or given.has("inactive") else []
    found.sort(key=lambda domain: (domain.name.lower(), domain.name))
    if given.has("uuid") or given.has("name"):
        lines = [domain.uuid if given.has("uuid") else domain.name for domain in found]
        print("".join(f"{line}\n" for line in lines))
    else:
        print(table(("Id", "Name", "State"), [("-", domain.name, SHUT_OFF) for domain in found]), end="")
    return 0


def dominfo(given: Given) -> int:
    """Print what a domain is."""
    from cowtree.operations.work import look_at  # noqa: PLC0415

    with open_host(given) as host:
        domain, definition, _ = look_at(host, given.want("domain"))
    pairs = (
        *(("Id", "-"), ("Name", domain.name), ("UUID", domain.uuid), ("OS Type", definition.os.type or "hvm")),
        *(("State", SHUT_OFF), ("CPU(s)", str(definition.vcpu)), ("Max memory", f"{definition.memory_kib} KiB")),
        *(("Used memory", f"{definition.current_memory_kib} KiB"), ("Persistent", "yes"), ("Autostart", "disable")),
        ("Managed save", "no"),
    )
    print(fields(pairs), end="")
    return 0


def domstate(given: Given) -> int:
    """Print whether a domain runs."""
    from cowtree.operations.work import look_at  # noqa: PLC0415

    with open_host(given) as host:
        look_at(host, given.want("domain"))
    print(f"{SHUT_OFF} (unknown)\n" if given.has("reason") else f"{SHUT_OFF}\n")
    return 0


def domblklist(given: Given) -> int:
    """Print a domain's disks."""
    from cowtree.operations.work import look_at  # noqa: PLC0415

    with open_host(given) as host:
        disks = look_at(host, given.want("domain")).definition.disks
    rows = [(disk.type, disk.device, disk.target, disk.source or "-") for disk in disks]
    headings = ("Type", "Device", "Target", "Source")
    first = 0 if given.has("details") else 2
    print(table(headings[first:], [row[first:] for row in rows]), end="")
    return 0


def domblkinfo(given: Given) -> int:
    """Print how large one disk is, or all are."""
    from cowtree.operations import lists  # noqa: PLC0415
    from cowtree.operations.work import look_at  # noqa: PLC0415

    given.refuse_both("all", "device")
    device = given.get("device")
    if device is None and not given.has("all"):
        hint = "cowtree domblkinfo DOMAIN --all"
        raise WrongUse(reason="command 'domblkinfo' requires <device> option", hint=hint)
    with open_host(given) as host:
        definition = look_at(host, given.want("domain")).definition
        if device is not None:
            found = _shown(lists.sizes(host, definition.disk(device)), given)
            print(fields(zip(("Capacity", "Allocation", "Physical"), found, strict=True)), end="")
            return 0
        rows = [
            (disk.target, *(("-",) * 3 if disk.source is None else _shown(lists.sizes(host, disk), given)))
            for disk in definition.disks
        ]
    print(table(("Target", "Capacity", "Allocation", "Physical"), rows), end="")
    return 0


def _shown(sizes: "Sizes", given: Given) -> tuple[str, ...]:
    return tuple(_human(size) if given.has("human") else str(size) for size in sizes)


def _human(size_bytes: int) -> str:
    """A size with the largest unit that keeps it above one, as libvirt writes it."""
    units = (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB))
    name, unit = next(((name, unit) for name, unit in units if size_bytes >= unit), ("B", 1))
    return f"{size_bytes / unit:.3f} {name}"


COMMANDS = {
    each.name: each
    for each in (
        Command(
            "list",
            "list the domains",
            (
                Option("inactive", "list those that do not run"),
                Option("all", "list those that run and those that do not"),
                Option("uuid", "list uuids only"),
                Option("name", "list names only"),
            ),
            list_domains,
        ),
        Command("dominfo", "print what a domain is", (DOMAIN,), dominfo),
        Command(
            "domstate", "print whether a domain runs", (DOMAIN, Option("reason", "also print why that is so")), domstate
        ),
        Command(
            "domblklist",
            "list the disks of a domain, and the active file of each",
            (
                DOMAIN,
                Option("inactive", "accepted: what is printed is what the domain starts with"),
                Option("details", "also print of what type and kind each is"),
            ),
            domblklist,
        ),
        Command(
            "domblkinfo",
            "print how large a disk is",
            (
                DOMAIN,
                Option("device", "its target, or the path of its active file", "device"),
                Option("human", "print sizes with their unit"),
                Option("all", "print that of all disks"),
            ),
            domblkinfo,
            "Capacity is what the guest sees, allocation what the file takes on disk, physical how long it is.",
        ),
    )
}
