"""`snapshot-delete`: what a snapshot holds is not needed any more."""

from typing import Final

from cowtree.cli.domain.host import CURRENT, SNAPSHOT, failing, find_snapshot, open_host
from cowtree.cli.domain.words import DOMAIN, Command, Given, Option
from cowtree.cli.stop import stopping
from cowtree.errors import WrongUse

STOPPED: Final = "stopped; every disk shows what it should, and the next command of the domain completes it"
# As the document numbers them, too.
METHODS: Final = {"commit": "commit", "1": "commit", "pull": "pull", "2": "pull"}


def delete(given: Given) -> int:
    """Delete, and say so."""
    from cowtree.operations import delete as verb  # noqa: PLC0415  help does without
    from cowtree.operations.work import at_work  # noqa: PLC0415

    given.refuse_both("children", "children-only")
    given.refuse_both("metadata", "method")
    method = _method(given)
    with open_host(given) as host, at_work(host, given.want("domain")) as subject:
        snapshot = find_snapshot(given, host, subject.domain)
        only_children = given.has("children-only")
        chosen = verb.chosen(host, subject, snapshot, with_children=given.has("children"), only_children=only_children)
        with failing(f"Failed to delete snapshot {snapshot.name}"), stopping(STOPPED):
            if given.has("metadata"):
                verb.forget(host, chosen)
            else:
                verb.delete(host, subject, chosen, method)
    print(f"Domain snapshot {snapshot.name} {'children ' * only_children}deleted\n")
    return 0


def _method(given: Given) -> str | None:
    text = given.get("method")
    if text is not None and text not in METHODS:
        raise WrongUse(reason=f"unknown method '{text}'", hint="--method commit, or --method pull")
    return None if text is None else METHODS[text]


COMMANDS = {
    "snapshot-delete": Command(
        "snapshot-delete",
        "delete a snapshot of a domain",
        (
            *(DOMAIN, SNAPSHOT, CURRENT),
            Option("children", "with all that hang on it"),
            Option("children-only", "all that hang on it, and not the snapshot itself"),
            Option("metadata", "forget it, and leave all files as they are"),
            Option(
                "method",
                "commit, or 1: what lies on its file is merged into that; pull, or 2: its file is merged into what "
                "lies on it; the cheapest legal way when not given",
                "method",
                has_place=False,
            ),
        ),
        delete,
        "Everything else shows what it showed. A file goes when nobody needs it and cowtree has made it; another "
        "keeps its name. After a stop the next command completes it.",
    )
}
