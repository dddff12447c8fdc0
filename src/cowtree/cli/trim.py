"""`cowtree trim`: an image, and the bases that nobody else reads, give back what they need not hold."""

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from cowtree.cli import options
from cowtree.cli.progress import Bar
from cowtree.cli.tree import find_pools, printable
from cowtree.errors import WrongUse
from cowtree.units import format_size

if TYPE_CHECKING:
    from cowtree.chain.forest import Forest
    from cowtree.images.trim import Part, Plan


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "trim",
        help="drop what an image need not hold, and give its space back",
        description="Drops the clusters of an image that show what its base shows as well, and those that are zero. "
        "Gives back their space, and what was free inside the file. Whoever reads the image sees the same. "
        "Nothing is allocated, so it works on a full disk. What internal snapshots hold stays.",
        epilog="Says how many bytes come free on disk, then frees them. After a stop the same command completes it.",
    )
    parser.add_argument("image", metavar="IMAGE", help="the image")
    parser.add_argument(
        "-f", "--format", choices=("raw", "qcow2"), help="the format; told from the image when not given"
    )
    parser.add_argument(
        "--object",
        action="append",
        default=[],
        metavar="OBJECT",
        help="a secret that opens encrypted images: secret,id=ID,file=PATH",
    )
    parser.add_argument(
        "--image-opts",
        action="store_true",
        help="IMAGE is a list of options, which names the secrets: encrypt.key-secret=ID,driver=qcow2,"
        "file.filename=PATH; for its base they begin with backing.",
    )
    parser.add_argument(
        "--hidden",
        action="store_true",
        help="in each base that one image only reads also drop what that image hides; opened alone such a base shows "
        "something else afterwards",
    )
    options.add_pools(parser, "read the bases")
    parser.add_argument("--dry-run", action="store_true", help="say what would be dropped, and change nothing")
    options.add_output(parser)
    options.add_progress(parser)
    options.add_catalog(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the plan, carry it out, and print what came free."""
    from cowtree.chain.forest import survey  # noqa: PLC0415  numpy is not needed to print help
    from cowtree.cli.img.objects import read_secrets  # noqa: PLC0415
    from cowtree.cli.img.source import Source, from_options  # noqa: PLC0415
    from cowtree.images.trim import Asked, trim_image  # noqa: PLC0415
    from cowtree.storage.file import LocalFiles  # noqa: PLC0415

    if arguments.image_opts and arguments.format:
        raise WrongUse(reason="--image-opts says the format itself", hint="the same without -f")
    given = from_options(arguments.image) if arguments.image_opts else Source(arguments.image, arguments.format)
    path = given.path if arguments.image_opts else given.name
    files, plans = LocalFiles(read_secrets(arguments.object)), list["Plan"]()
    is_human = arguments.output == "human"
    pools = find_pools(arguments.catalog)

    def look(folders: Sequence[str]) -> "Forest":
        return survey(files, [path, *folders, *arguments.pool, *pools])

    def tell(plan: "Plan") -> None:
        plans.append(plan)
        for line in sentences(plan) if is_human else ():
            print(printable(line), flush=True)

    asked = Asked(given.format, look, arguments.hidden, arguments.dry_run)
    with Bar("trim", is_wanted=arguments.progress) as monitor:
        freed_bytes = trim_image(files, given.name, asked, tell, monitor)
    if not is_human:
        print(json.dumps({**describe(plans[0]), "freed-bytes": None if asked.is_dry else freed_bytes}, indent=4))
    elif not asked.is_dry:
        print(f"freed {freed_bytes} bytes ({format_size(freed_bytes)})")
    return 0


def sentences(plan: "Plan") -> Iterator[str]:
    """The plan for people."""
    for part in plan.parts:
        yield f"{part.path}: {_what(part)}; frees {part.freed_bytes} bytes ({format_size(part.freed_bytes)}) on disk"
    for path, readers in plan.kept:
        yield f"{path}: stays as it is, for others read it: {', '.join(readers)}"
    for path in plan.altered:
        yield f"{path}: shows something else afterwards when it is opened alone"


def _what(part: "Part") -> str:
    same = "hidden by its only reader" if part.layer else "the same as its base"
    told = [(part.same_bytes, same), (part.zero_bytes, "zero")]
    drops = [f"{format_size(count)} {what}" for count, what in told if count]
    return f"drops {' and '.join(drops)}" if drops else "drops nothing"


def describe(plan: "Plan") -> dict[str, object]:
    """The plan in the words of JSON."""
    return {
        "images": [
            {
                "filename": part.path,
                "format": part.format,
                "base": part.layer > 0,
                "same": part.same_bytes,
                "zero": part.zero_bytes,
                "frees": part.freed_bytes,
            }
            for part in plan.parts
        ],
        "kept": [{"filename": path, "readers": list(readers)} for path, readers in plan.kept],
        "altered": list(plan.altered),
        "frees": plan.freed_bytes,
    }
