"""`define`, `undefine`, `adopt` and `dumpxml`: how guests become known, are forgotten, and are printed."""

import os

from cowtree.cli.domain.host import open_host, warn
from cowtree.cli.domain.words import DOMAIN, Command, Given, Option
from cowtree.errors import BrokenXml, CowtreeError


def define(given: Given) -> int:
    """Define a domain, or redefine it."""
    from cowtree.operations import domains  # noqa: PLC0415  help does without

    path = given.want("file")
    text = read_text(path)
    with open_host(given, creates=True) as host:
        made = domains.define(host, text)
    print(f"Domain '{made.name}' defined from {path}\n")
    return 0


def read_text(path: str) -> bytes:
    """The XML in a file. Raises: CowtreeError."""
    from cowtree.domain.markup import TEXT_BYTES_MAX  # noqa: PLC0415

    try:
        with open(path, "rb") as file:
            text = file.read(TEXT_BYTES_MAX + 1)
    except OSError as error:
        raise CowtreeError(reason=f"Failed to open file '{path}': {os.strerror(error.errno or 0)}") from error
    if len(text) > TEXT_BYTES_MAX:
        raise BrokenXml(reason=f"{path} is longer than {TEXT_BYTES_MAX} bytes", hint="name the right file")
    return text


def undefine(given: Given) -> int:
    """Forget a domain."""
    from cowtree.operations import domains  # noqa: PLC0415

    with open_host(given) as host:
        name = domains.undefine(host, given.want("domain"), drops_metadata=given.has("snapshots-metadata"))
    print(f"Domain '{name}' has been undefined\n")
    return 0


def adopt(given: Given) -> int:
    """Define a domain of whom there are only images."""
    from cowtree.cli.domain.table import table  # noqa: PLC0415
    from cowtree.operations import domains  # noqa: PLC0415

    name = given.want("name")
    with open_host(given, creates=True) as host:
        disks = domains.adopt(host, name, given.all("disk"), given.get("format"))
    for disk in disks:
        if disk.is_guessed:
            warn(f"{disk.path} is taken for raw, for it begins like nothing else that is known: --format raw says so")
    print(f"Domain '{name}' adopted")
    print(table(("Target", "Format", "Source"), [(disk.target, disk.format, disk.path) for disk in disks]), end="")
    return 0


def dumpxml(given: Given) -> int:
    """Print a domain's definition."""
    from cowtree.operations.work import look_at  # noqa: PLC0415

    with open_host(given) as host:
        print(look_at(host, given.want("domain")).definition.text)
    return 0


COMMANDS = {
    each.name: each
    for each in (
        Command(
            "define",
            "define a domain from libvirt's XML, or redefine it",
            (
                Option("file", "the XML", "file", is_required=True),
                Option("validate", "accepted: what is read is always checked"),
            ),
            define,
            "What cowtree does not understand of it is kept, and named. A uuid is made when there is none. No image is "
            "changed.",
        ),
        Command(
            "undefine",
            "forget a domain",
            (DOMAIN, Option("snapshots-metadata", "forget its snapshots too; what they hold stays where it is")),
            undefine,
            "No image is changed or removed.",
        ),
        Command(
            "adopt",
            "define a domain from its images alone",
            (
                Option("name", "the name of the domain", "name", is_required=True),
                Option("disk", "its images: they become vda, vdb and so on", "disk", is_required=True)._replace(
                    is_repeatable=True
                ),
                Option("format", "the format of all of them; told from each image if not given", "format")._replace(
                    has_place=False
                ),
            ),
            adopt,
            "No image is changed.",
        ),
        Command(
            "dumpxml",
            "print the definition of a domain as XML",
            (DOMAIN, Option("inactive", "accepted: what is printed is what the domain starts with")),
            dumpxml,
        ),
    )
}
