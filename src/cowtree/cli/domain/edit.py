"""`snapshot-edit`: what is noted down of a snapshot, in the editor of whoever calls."""

import os
from typing import TYPE_CHECKING

from cowtree.cli.domain.define import read_text
from cowtree.cli.domain.host import CURRENT, SNAPSHOT, find_snapshot, open_host
from cowtree.cli.domain.words import DOMAIN, Command, Given, Option
from cowtree.errors import CowtreeError

if TYPE_CHECKING:
    from cowtree.domain.moment import Request
    from cowtree.operations.host import Host

EDITORS = ("VISUAL", "EDITOR")
EDITOR = "vi"


def edit(given: Given) -> int:
    """Let the XML of a snapshot be edited, and note down what was changed."""
    from cowtree.catalog import snapshots  # noqa: PLC0415  help does without
    from cowtree.domain import moment  # noqa: PLC0415
    from cowtree.operations.lists import described  # noqa: PLC0415
    from cowtree.operations.work import look_at  # noqa: PLC0415

    given.refuse_both("rename", "clone")
    with open_host(given) as host:
        domain = look_at(host, given.want("domain")).domain
        name = given.get("snapshotname") or find_snapshot(given, host, domain).name
        text = moment.dump(described(host, snapshots.find(host.catalog, domain, name)))
        path = _edited(text)
        try:
            new = read_text(path)
            if new == text.encode() and not _sets_current(given):
                os.unlink(path)
                print(f"Snapshot {name} XML configuration not changed.\n")
                return 0
            new_name = _note(given, host, name, moment.parse(new))
        except CowtreeError as error:
            error.facts["hint"] = f"what was written is kept in {path}"
            raise
    os.unlink(path)
    is_copy = given.has("clone") and new_name != name
    print(f"Snapshot {name} cloned to {new_name}.\n" if is_copy else f"Snapshot {new_name} edited.\n")
    return 0


def _sets_current(given: Given) -> bool:
    """Whether the named snapshot shall be the current one; alone, `--current` names it."""
    return given.has("current") and given.has("snapshotname")


def _note(given: Given, host: "Host", name: str, edited: "Request") -> str:
    """Note down what was edited. Nobody had to wait while that was done, so the snapshot is looked up again.
    Returns: its new name.
    """
    from cowtree.catalog import snapshots  # noqa: PLC0415
    from cowtree.operations import edit as verb  # noqa: PLC0415
    from cowtree.operations.work import at_work  # noqa: PLC0415

    manner = verb.Manner(renames=given.has("rename"), clones=given.has("clone"))
    with at_work(host, given.want("domain")) as subject, host.catalog.together():
        verb.change(host, subject, snapshots.find(host.catalog, subject.domain, name), edited, manner)
        new_name = edited.name or name
        if _sets_current(given):
            verb.make_current(host, subject, snapshots.find(host.catalog, subject.domain, new_name))
    return new_name


def _edited(text: str) -> str:
    """Let somebody edit a text. Returns: the path of the file in which it is then. Raises: CowtreeError."""
    import shlex  # noqa: PLC0415  only this one starts another program
    import subprocess  # noqa: PLC0415
    import tempfile  # noqa: PLC0415

    editor = next((os.environ[name] for name in EDITORS if os.environ.get(name)), EDITOR)
    try:
        words = shlex.split(editor)
    except ValueError as error:
        raise CowtreeError(reason=f"cannot run editor '{editor}': {error}", hint="EDITOR=nano") from error
    descriptor, path = tempfile.mkstemp(prefix="cowtree-", suffix=".xml")
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    try:
        status = subprocess.run([*words, path], check=False).returncode
    except OSError as error:
        os.unlink(path)
        reason = f"cannot run editor '{words[0]}': {os.strerror(error.errno or 0)}"
        raise CowtreeError(reason=reason, hint="EDITOR=nano") from error
    if status:
        raise CowtreeError(reason=f"the editor ended with status {status}", hint=f"what was written is kept in {path}")
    return path


COMMANDS = {
    "snapshot-edit": Command(
        "snapshot-edit",
        "change the description or the name of a snapshot, in an editor",
        (
            DOMAIN,
            SNAPSHOT,
            CURRENT._replace(help="the current one if none is named; else the disks lie on the named one"),
            Option("rename", "its name may be changed"),
            Option("clone", "if its name is changed, it is noted down under both"),
        ),
        edit,
        "The editor is $VISUAL, else $EDITOR, else vi. What was taken cannot be changed, only what is said of it.",
    )
}
