"""`cowtree commit`, `pull`, `flatten`, `delete`, `shorten`, and `plan`, which says what they would do.

What is printed is what is run: the plan is made once, shown, and then carried out as it is.
"""

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Final

from cowtree.cli import guests, options, tree
from cowtree.cli.progress import Bar
from cowtree.cli.stop import UNCHANGED, stopping
from cowtree.cli.tree import printable
from cowtree.errors import CowtreeError, WrongUse
from cowtree.units import format_size

if TYPE_CHECKING:
    from cowtree.images.halves import Half
    from cowtree.images.speed import Estimate
    from cowtree.images.wish import Manner, Planned, Wish
    from cowtree.monitor import Monitor
    from cowtree.operations.outside import Foreseen
    from cowtree.plan.family import Family, Merge
    from cowtree.storage.contract import FileSystem

HELP: Final = {
    "commit": (
        "merge an image, and what lies between, into a base",
        "Lets a base show what TOP shows. TOP and the images between are not needed any more; whatever lies on TOP "
        "lies on the base then. Without --base it is TOP's own.",
    ),
    "pull": (
        "merge what lies below an image into it",
        "Lets LAYER hold itself what the images between it and a base hold; then it lies on that base. Without --base "
        "it takes over everything, and stands alone.",
    ),
    "flatten": ("make an image stand alone", "Lets LEAF hold itself all that backs it."),
    "delete": (
        "do without an image on which others lie",
        "Merges IMAGE into those that lie on it, or into its base, whichever is cheapest. No leaf changes.",
    ),
    "shorten": (
        "let an image have fewer layers",
        "Merges layers of the chain of LEAF until it has at most so many, by the cheapest merges that do it.",
    ),
}
IMAGES: Final = {"commit": "TOP", "pull": "LAYER", "flatten": "LEAF", "delete": "IMAGE", "shorten": "LEAF"}
EPILOG: Final = (
    "All images that read a file which changes must be part of the merge; else it is refused, and they are named. They "
    "are looked for in the folders of all images of the family, in all pools, and where guests have images. Of the "
    "ways that are left the cheapest is taken: down, up, or one file in the place of another. After a stop the same "
    "command goes on, and so does cowtree recover; cowtree undo takes the last merge back."
)
VERIFY: Final = "--verify"
ACTS: Final = {
    (False, True): "commit {names} into {target}",
    (True, False): "pull {names} into {target}",
    (False, False): "merge {names} into {target}",
}


class Verb:
    """One of the verbs; `is_dry` for `plan`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def add_parser(self, verbs: "argparse._SubParsersAction[argparse.ArgumentParser]", *, is_dry: bool = False) -> None:
        """Declare the verb."""
        text, description = HELP[self.name]
        parser = verbs.add_parser(self.name, help=text, description=description, epilog=EPILOG)
        parser.add_argument("image", metavar=IMAGES[self.name], help="the image")
        if self.name in ("commit", "pull"):
            parser.add_argument("--base", metavar="IMAGE", help="the base, further down")
        if self.name == "shorten":
            parser.add_argument("--max-depth", type=_count, required=True, metavar="N", help="at most so many layers")
        _add_terms(parser)
        if not is_dry:
            _add_manner(parser)
        options.add_output(parser)
        options.add_catalog(parser)
        parser.set_defaults(run=run, act=self.name, is_planning=is_dry)


def _add_terms(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--with-dependants",
        action="store_true",
        help="first pull into each image outside the merge that reads what changes, as part of the same plan",
    )
    parser.add_argument(
        "--force",
        action="append",
        default=[],
        metavar="IMAGE",
        help="give up an image that would see something else; every one of them must be named",
    )
    parser.add_argument(
        "--atomic",
        action="store_true",
        help="write beside what is there and switch in one step, so that what is written to is whole at every moment, "
        "too; it takes more space, begins anew after a stop, and does not write to images with an external data file, "
        "or with bitmaps when the size changes",
    )


def _add_manner(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="print the plan, and change nothing")
    ending = parser.add_mutually_exclusive_group()
    ending.add_argument("--keep", action="store_true", help="leave images that are not needed any more where they are")
    ending.add_argument(
        "--delete", action="store_true", help="remove them; without either they are renamed to NAME.invalid-TIME"
    )
    parser.add_argument(
        VERIFY,
        nargs="?",
        choices=("changed", "full"),
        const="changed",
        help="digest what every leaf shows before and after, where that comes from another file then, or with =full "
        "all of it; nothing is removed before it is proven",
    )
    options.add_progress(parser)


def spell_out(words: list[str]) -> list[str]:
    """Let the word that may have a value not take the next word for it."""
    stop = words.index("--") if "--" in words else len(words)
    return [f"{VERIFY}=changed" if word == VERIFY else word for word in words[:stop]] + words[stop:]


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 1 << 31:
        raise argparse.ArgumentTypeError(f"'{text}' is no number of layers")
    return int(text)


class Planning:
    """`plan`."""

    def add_parser(self, verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
        """Declare the verb."""
        parser = verbs.add_parser(
            "plan",
            help="print what a merge would do, and what it would cost",
            description="Takes the words of a merge and prints what it would do: nothing is changed. The exit status "
            "is that which the merge would have.",
        )
        acts = parser.add_subparsers(title="merges", dest="planned", metavar="VERB", required=True)
        for name in HELP:
            Verb(name).add_parser(acts, is_dry=True)


def run(arguments: argparse.Namespace) -> int:
    """Plan, show the plan, and carry it out; or complete what the same words began."""
    from cowtree.images import halves  # noqa: PLC0415  help does without
    from cowtree.images.wish import make_plan  # noqa: PLC0415
    from cowtree.storage.file import LocalFiles  # noqa: PLC0415

    files, wish, words = LocalFiles(), _wish(arguments), words_of(arguments)
    named = [os.path.dirname(os.path.abspath(name)) for name in (wish.image, wish.base) if name]
    if half := halves.find_same(words, [*named, *wish.pools]):
        return _complete(arguments, half)
    with stopping(UNCHANGED):
        planned = make_plan(files, wish)
    tree.tell_doubt(planned.forest)
    folders = {os.path.dirname(member.path) for member in planned.family.members}
    if half := halves.find_same(words, sorted(folders)):
        return _complete(arguments, half)
    return _begin(arguments, files, planned)


def _begin(arguments: argparse.Namespace, files: "FileSystem", planned: "Planned") -> int:
    """Show a plan, and carry it out if that is wanted."""
    from cowtree.images import halves, speed  # noqa: PLC0415  help does without
    from cowtree.images.tally import Tally  # noqa: PLC0415
    from cowtree.images.wish import grant, stale_bases  # noqa: PLC0415

    if planned.plan.acts:
        halves.refuse_begun(planned.family)
    with stopping(UNCHANGED):
        for error in stale_bases(files, planned):
            tree.complain(str(error))
    is_dry = arguments.is_planning or arguments.dry_run
    with stopping(UNCHANGED):
        estimates = speed.estimate(planned, arguments.catalog)
    if arguments.output == "human":
        for line in sentences(planned, estimates):
            print(printable(line), flush=True)
    foreseen = _foresee(arguments, files, planned)
    moved_bytes, tally = None, Tally(None)
    if not is_dry:
        with stopping(), Bar(arguments.act, is_wanted=arguments.progress) as monitor:
            tally = Tally(monitor)
            # A proof takes its own time, which says nothing of the next merge.
            with nullcontext() if arguments.verify else speed.remembering(planned, arguments.catalog):
                moved_bytes = grant(files, planned, words_of(arguments), _manner(arguments, tally, foreseen))
    if arguments.output == "json":
        done = {"moved": moved_bytes, "cloned": None if is_dry else tally.cloned_bytes}
        print(json.dumps({**describe(planned, estimates), **done}, indent=4))
    elif not is_dry:
        proven = "; every leaf shows what it showed" if arguments.verify and planned.plan.acts else ""
        print(f"{moved(moved_bytes or 0, tally.cloned_bytes)}{proven}")
    return 0


def _foresee(arguments: argparse.Namespace, files: "FileSystem", planned: "Planned") -> "Foreseen | None":
    """What the merge makes of guests' disks and snapshots; what these lose is told."""
    foreseen, warnings = guests.foresee(arguments.catalog, files, planned)
    for warning in warnings:
        tree.complain(warning)
    return foreseen


def moved(moved_bytes: int, cloned_bytes: int) -> str:
    """What was done, in one sentence."""
    shared = f", {cloned_bytes} of them without copying" if cloned_bytes else ""
    return f"moved {moved_bytes} bytes ({format_size(moved_bytes)}){shared}"


def _manner(arguments: argparse.Namespace, monitor: "Monitor", foreseen: "Foreseen | None" = None) -> "Manner":
    from cowtree.images.history import History  # noqa: PLC0415  help does without
    from cowtree.images.wish import Manner  # noqa: PLC0415

    def note() -> None:
        if foreseen is not None:
            guests.note(arguments.catalog, foreseen)

    return Manner(arguments.verify, History(arguments.catalog, warn_of), monitor, note=note)


def warn_of(error: CowtreeError) -> None:
    """Say why a merge is not remembered."""
    tree.complain(f"this merge is not kept for cowtree undo: {error}")


def _complete(arguments: argparse.Namespace, half: "Half") -> int:
    """Complete what the same words began, or say that they would."""
    from cowtree.images.tally import Tally  # noqa: PLC0415
    from cowtree.images.wish import resume  # noqa: PLC0415  help does without
    from cowtree.storage.file import LocalFiles  # noqa: PLC0415

    is_dry, is_json = arguments.is_planning or arguments.dry_run, arguments.output == "json"
    if not is_json:
        print(f"this merge was begun and is not done: it {'would be' if is_dry else 'is'} completed", flush=True)
    moved_bytes, tally = None, Tally(None)
    if not is_dry:
        with stopping(), Bar(arguments.act, is_wanted=arguments.progress) as monitor:
            tally = Tally(monitor)
            foreseen = guests.foresee_rest(arguments.catalog, half.path)
            moved_bytes = resume(LocalFiles(), half.path, _manner(arguments, tally, foreseen))
    if is_json:
        done = {"moved": moved_bytes, "cloned": None if is_dry else tally.cloned_bytes}
        print(json.dumps({"verb": arguments.act, "begun": half.path, **done}, indent=4))
    elif not is_dry:
        print(moved(moved_bytes or 0, tally.cloned_bytes))
    return 0


def _wish(arguments: argparse.Namespace) -> "Wish":
    from cowtree.images import order  # noqa: PLC0415
    from cowtree.images.wish import Wish  # noqa: PLC0415

    pools = tree.find_pools(arguments.catalog)
    if arguments.force and arguments.with_dependants:
        raise WrongUse(reason="--with-dependants saves those whom --force would give up", hint="one of the two")
    ending = order.RENAME
    if not arguments.is_planning:
        ending = order.KEEP if arguments.keep else order.DELETE if arguments.delete else order.RENAME
    return Wish(
        arguments.act,
        arguments.image,
        getattr(arguments, "base", None),
        getattr(arguments, "max_depth", 0),
        tuple(arguments.force),
        arguments.with_dependants,
        tuple(pools),
        ending,
        arguments.atomic,
    )


def words_of(arguments: argparse.Namespace) -> list[str]:
    """The words that mean the same merge, whatever folder they are typed in."""
    words = [arguments.act, os.path.abspath(arguments.image)]
    if getattr(arguments, "base", None):
        words += ["--base", os.path.abspath(arguments.base)]
    if getattr(arguments, "max_depth", None):
        words += ["--max-depth", str(arguments.max_depth)]
    return words


def sentences(planned: "Planned", estimates: Sequence["Estimate | None"]) -> Iterator[str]:
    """The plan for people: a table, and what becomes of whom."""
    family, plan = planned.family, planned.plan
    if not plan.acts:
        yield "nothing needs to be done"
        return
    rows: list[tuple[str, ...]] = [("", "reads", "writes", "clones", "new space", "tables", "takes")]
    now = family
    for act, cost, estimate in zip(plan.acts, plan.costs, estimates, strict=True):
        sizes = [cost.read_bytes, cost.copied_bytes, cost.cloned_bytes, cost.new_bytes]
        rows.append((title(now, act), *map(format_size, sizes), str(cost.table_count), _about(estimate)))
        now = now.after(act)
    yield from _table(rows)
    yield from _consequences(planned)
    moved_bytes, cloned_bytes = plan.cost.moved_bytes, plan.cost.cloned_bytes
    shared = f", at least {cloned_bytes} of them without copying" if cloned_bytes else ""
    reach = tree.looked(planned.forest)
    yield f"moves {moved_bytes} bytes ({format_size(moved_bytes)}){shared}. Looked in {reach}."


def _about(estimate: "Estimate | None") -> str:
    """How long something takes, as exactly as that is known."""
    if estimate is None:
        return tree.UNKNOWN
    return f"about {estimate.seconds:.0f} s" if estimate.seconds >= 1 else "below 1 s"


def _table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        yield "  ".join(cells).rstrip()


def title(family: "Family", act: "Merge") -> str:
    """What an act does, in one line."""
    others = [family.path(each) for each in act.group if each != act.target]
    text = ACTS[act.target == act.top, act.target == act.group[-1]]
    text = text.format(names=" and ".join(others), target=family.path(act.target))
    return text if act.name == act.target else f"{text}, which then takes the place of {family.path(act.name)}"


def _consequences(planned: "Planned") -> Iterator[str]:
    gone, relinked, now = [], [], planned.family
    for act in planned.plan.acts:
        gone += [now.path(each) for each in now.left_over(act)]
        if act.name != act.target:
            gone.append(now.path(act.name) + " (its old file)")
        relinked += [now.path(each) for each in now.overlays(act.top) if act.name != act.top]
        now = now.after(act)
    if relinked:
        yield f"linked anew: {', '.join(relinked)}"
    if gone:
        yield f"not needed any more: {', '.join(gone)}"
    lost = sorted(planned.result.gone - planned.family.gone)
    if data := [path for each in lost if (path := planned.family.members[each].data_file)]:
        yield f"their data files, which --delete removes with them: {', '.join(data)}"


def describe(planned: "Planned", estimates: Sequence["Estimate | None"]) -> dict[str, object]:
    """The plan in the words of JSON."""
    from cowtree.images import speed  # noqa: PLC0415  help does without

    family, plan = planned.family, planned.plan
    acts, now, whole = [], family, speed.total(estimates)
    for act, cost, estimate in zip(plan.acts, plan.costs, estimates, strict=True):
        acts.append(
            {
                "group": list(now.paths(act.group)),
                "into": now.path(act.target),
                "name": now.path(act.name),
                "relinked": [now.path(each) for each in now.overlays(act.top) if act.name != act.top],
                "not-needed": list(now.paths(now.left_over(act))),
                "read": cost.read_bytes,
                "moved": cost.moved_bytes,
                "cloned": cost.cloned_bytes,
                "new-space": cost.new_bytes,
                "tables": cost.table_count,
                "seconds": estimate.seconds if estimate else None,
            }
        )
        now = now.after(act)
    return {
        "verb": planned.wish.verb,
        "acts": acts,
        "to-move": plan.cost.moved_bytes,
        "to-clone": plan.cost.cloned_bytes,
        "seconds": whole.seconds if whole else None,
        "seconds-from": whole.origin if whole else None,
        **tree.describe_reach(planned.forest),
    }
