"""`blockcommit`, `blockpull` and `blockjob`: layers of a disk are merged, and what was cut short is looked at."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from cowtree.cli.domain.host import open_host, warn
from cowtree.cli.domain.merge_watch import (
    ABORTED_STATUS,
    ASYNC,
    BANDWIDTH,
    BYTES,
    TIMEOUT,
    VERBOSE,
    WAIT,
    TimeIsUp,
    watched,
)
from cowtree.cli.domain.words import DOMAIN, Command, Given, Option

if TYPE_CHECKING:
    from cowtree.monitor import Monitor
    from cowtree.operations.host import Host
    from cowtree.operations.jobs import State
    from cowtree.operations.merge import Commit, Pull

PATH = Option("path", "a disk: its target, as in vda, or its file", "path", is_required=True)
LAYER = Option(
    "path", "a disk: its target, as in vda; or one of its layers: vda[2], or a file", "path", is_required=True
)
BASE = Option("base", "the layer into which is merged: vda[3], or a file; the bottom when not given", "base")
TOP = Option("top", "the layer that is merged down: vda[2], or a file; the active one when not given", "top")
GOES_ON = "every disk shows what it should; the same command goes on"
KEEP_RELATIVE = Option("keep-relative", "refuse when images do not name each other by relative paths")


def commit(given: Given) -> int:
    """Merge layers down."""
    from cowtree.operations.merge import Commit  # noqa: PLC0415  help does without

    given.refuse_both("pivot", "keep-overlay")
    keeps = given.has("keep-overlay")
    is_active = given.has("active") or given.has("pivot") or keeps
    wanted = Commit(
        *(given.want("path"), given.get("base"), given.get("top")),
        is_shallow=given.has("shallow"),
        is_active=is_active,
        keeps_overlay=keeps,
        deletes=given.has("delete"),
        keeps_relative=given.has("keep-relative"),
    )
    is_waiting = given.has("wait") or given.has("pivot") or keeps
    if not is_waiting:
        said = f"{'Active ' * is_active}Block Commit started"
    elif keeps:
        said = "\nCommit complete, overlay image kept"
    else:
        said = "\nSuccessfully pivoted" if is_active else "\nCommit complete"
    return _merge(given, wanted, "Block commit", said)


def pull(given: Given) -> int:
    """Merge layers up."""
    from cowtree.operations.merge import Pull  # noqa: PLC0415  help does without

    wanted = Pull(given.want("path"), given.get("base"), given.has("keep-relative"))
    return _merge(given, wanted, "Block Pull", "\nPull complete" if given.has("wait") else "Block Pull started")


def _merge(given: Given, wanted: "Commit | Pull", title: str, said: str) -> int:
    from cowtree.operations.merge import merge  # noqa: PLC0415  help does without

    def act(host: "Host", monitor: "Monitor") -> None:
        merge(host, given.want("domain"), wanted, monitor)

    return watch(given, title, said, act)


def watch(given: Given, title: str, said: str, act: "Callable[[Host, Monitor], None]", stopped: str = GOES_ON) -> int:
    """Let something be done, and say what has become of it; `stopped` is how things stand when it was stopped.
    Returns: the exit status.
    """
    try:
        with open_host(given) as host, watched(given, title) as monitor:
            act(host, monitor)
    except (KeyboardInterrupt, TimeIsUp):
        print(f"\n{title.rpartition(' ')[2].capitalize()} aborted", flush=True)
        warn(stopped)
        return ABORTED_STATUS
    print(said)
    return 0


def job(given: Given) -> int:
    """Look at a merge that was cut short, or end it."""
    given.refuse_both("abort", "pivot", "info", "bandwidth")
    given.refuse_without("raw", "info")
    from cowtree.operations import merge  # noqa: PLC0415  help does without
    from cowtree.operations.jobs import state  # noqa: PLC0415
    from cowtree.operations.work import look_at  # noqa: PLC0415

    name, path = given.want("domain"), given.want("path")
    with open_host(given) as host:
        if given.has("abort"):
            merge.abort(host, name, path)
        elif given.has("pivot"):
            merge.pivot(host, name, path)
        else:
            stack, intent = merge.begun(host, look_at(host, name), path)
            if given.has("bandwidth"):
                merge.refuse_no_job(stack)
            if intent is None:
                print(f"No current block job for {stack.target}")
                return 0
            _show(given, state(intent))
    print()
    return 0


def _show(given: Given, state: "State") -> None:
    """Show how far a merge is, as stock does."""
    from cowtree.operations.jobs import percent  # noqa: PLC0415  help does without

    if given.has("raw"):
        print(f" type={state.type}\n bandwidth=0\n cur={state.done_bytes}\n end={state.total_bytes}")
    else:
        print(f"\r{state.type}: [{percent(state):3} %]", end="", file=sys.stderr, flush=True)


COMMANDS = {
    each.name: each
    for each in (
        Command(
            "blockcommit",
            "merge layers of a disk into one below them",
            (
                *(DOMAIN, PATH, BANDWIDTH, BASE),
                Option("shallow", "the base is the layer right below the top"),
                TOP,
                Option("active", "the top is the active layer; a domain that is shut off goes on in the base at once"),
                Option("delete", "remove files that are not needed any more, when it is proven that all is right"),
                *(WAIT, VERBOSE, TIMEOUT),
                Option("pivot", "the same as --active --wait"),
                Option("keep-overlay", "the active layer stays what it is; the base shows the same then"),
                *(ASYNC, KEEP_RELATIVE, BYTES),
            ),
            commit,
            "Refused when anybody else reads what would change. Files that are not needed any more are renamed to "
            "NAME.invalid-TIME. Snapshots that lie between are told to be lost, and are. After a stop the same command "
            "goes on.",
        ),
        Command(
            "blockpull",
            "merge what lies below a layer of a disk into it",
            (
                *(
                    DOMAIN,
                    LAYER,
                    BANDWIDTH,
                    Option("base", "the layer on which it lies then; none when not given", "base"),
                ),
                *(WAIT, VERBOSE, TIMEOUT, ASYNC, KEEP_RELATIVE, BYTES),
            ),
            pull,
            "All layers below stay as they are, and so do all snapshots. After a stop the same command goes on.",
        ),
        Command(
            "blockjob",
            "look at a merge that was cut short, or end it",
            (
                *(DOMAIN, PATH),
                Option("abort", "give a pull up; a commit has changed its base, and can only be completed"),
                ASYNC,
                Option("pivot", "complete the commit of an active layer"),
                Option("info", "show how far it is, which is what is done anyway"),
                Option("raw", "with --info: show it for programs"),
                *(BYTES, BANDWIDTH),
            ),
            job,
            "Nothing is being done with a domain that is shut off but for what was cut short.",
        ),
    )
}
