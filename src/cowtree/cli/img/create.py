"""`cowtree img create`: makes an empty image, or one that shows its backing file."""

import sys

from cowtree.chain import gate
from cowtree.chain.gate import Layer
from cowtree.cli.img.command import FORMAT, OBJECT, QUIET, BadWords, Command, Given, Option
from cowtree.cli.img.main import QEMU_IMG, say, sentence, trouble
from cowtree.cli.img.numbers import parse_number
from cowtree.cli.img.options import Settings, new_image, option_help
from cowtree.cli.img.pairs import join_lists, wants_help
from cowtree.cli.img.source import files_of, local_path
from cowtree.errors import ChainError, CowtreeError, ImageError, LoopInChain, MissingImage, WrongUse
from cowtree.images.create import create, kept_mode
from cowtree.images.lineage import noted
from cowtree.storage.contract import Access, FileSystem

BACKING = Option(("-b",), "the image that shows through where the new one holds nothing", "BACKING_FILE")
BACKING_FORMAT = Option(("-F",), "format of the backing file", "BACKING_FMT")
UNSAFE = Option(("-u",), "do not open the backing file; it may be missing")
OPTIONS = Option(("-o",), "options of the format: name=value,...; `-o help` lists them", "OPTIONS")


def run(given: Given) -> int:
    """Make the image, after saying how."""
    image_format, text = given.last("-f", gate.RAW), join_lists(given.all("-o"))
    if wants_help(text):
        print(option_help(image_format, has_name=bool(given.names)))
        return 0
    if not given.names:
        raise BadWords(reason="Expecting image file name")
    name, *sizes = given.names
    size_bytes = parse_number("image size", sizes[0]) if sizes else None
    if sizes[1:]:
        raise BadWords(reason=f"Unexpected argument: {sizes[1]}")
    try:
        _create(given, Settings(image_format, text), size_bytes)
    except CowtreeError as error:
        lines = [f"{name}: {_complaint(given, name, error)}", *filter(None, [error.facts.get("consequence")])]
        say(given, "\n".join(lines), error.advice)
        return 1
    return 0


def _complaint(given: Given, name: str, error: CowtreeError) -> str:
    """Why the image could not be made; a file behind it is named when it is there but no good, which qemu-img omits."""
    if given.program == QEMU_IMG and "consequence" in error.facts and "overlay" not in error.facts:
        return trouble(error)
    is_behind = isinstance(error, ImageError | ChainError) and error.facts["path"] != name
    if is_behind and ("overlay" in error.facts or not isinstance(error, MissingImage)):
        return sentence(error)
    return trouble(error)


def _create(given: Given, settings: Settings, size_bytes: int | None) -> None:
    name, files = given.names[0], files_of(given)
    path = local_path(name)
    if size_bytes is not None:
        if settings.get("size") is not None:
            raise WrongUse(reason="The image size must be specified only once")
        settings.set("size", str(size_bytes))
    _set_backing(given, settings)
    size = _backing_size(files, path, settings, given)
    if settings.get("size") is None:
        if size is None:
            raise WrongUse(reason="Image creation needs a size parameter", hint="the same with a size such as 10G")
        settings.set("size", str(size))
    if not given.has("-q"):
        print(f"Formatting '{name}', fmt={settings.format} {settings.describe()}", flush=True)
    new = new_image(path, settings)
    create(files, new if given.has("-u") else noted(files, new), kept_mode(path))


def _set_backing(given: Given, settings: Settings) -> None:
    """Take -b and -F as if they stood in the list of options. Raises: WrongUse."""
    settings.set_backing(given.last("-b"), given.last("-F"))
    backing = settings.get("backing_file")
    if backing == given.names[0]:
        raise WrongUse(reason="Error: Trying to create an image with the same filename as the backing file")
    if backing == "":
        raise WrongUse(reason="Expected backing file name, got empty string")


def _backing_size(files: FileSystem, path: str, settings: Settings, given: Given) -> int | None:
    """Look whether the backing file is fit to be one. Its format is found out if nobody has said it; as qemu-img only
    when nothing depends on that. Returns: its size, None when there is none or nobody may look.
    Raises: WrongUse without a format, LoopInChain when the new file would back itself, and what opening raises.
    """
    backing, image_format = settings.get("backing_file"), settings.get("backing_fmt")
    if backing is None:
        return None
    if given.has("-u"):
        if image_format is None:
            raise WrongUse(
                reason="Backing file specified without backing format", hint="the same with -F raw or -F qcow2"
            )
        return None
    layers = _open_backing(files, gate.locate(path, backing), image_format)
    gate.close_all(layers)
    if image_format is None and given.program != QEMU_IMG:
        settings.set("backing_fmt", layers[0].format)
        print(
            f"{given.program}: {backing} is {layers[0].format}, by what is in it: -F {layers[0].format}",
            file=sys.stderr,
        )
    elif image_format is None:
        detected = f"Detected format of {layers[0].format}."
        raise WrongUse(
            reason=f"Backing file specified without backing format\n{detected}",
            hint=f"the same with -F {layers[0].format}",
        )
    own = _identities(files, [path, *_data_paths(path, settings)])
    for layer in layers:
        if own & _identities(files, [layer.path, layer.data_file.path]):
            raise LoopInChain(path=path, backing=backing, hint="another name for the new image")
    return layers[0].size_bytes


def _open_backing(files: FileSystem, name: str, image_format: str | None) -> list[Layer]:
    """Open the backing file and what is below it, encrypted or not: nobody reads guest data.
    Raises: what `gate.walk` raises.
    """
    layers: list[Layer] = []
    try:
        layers.extend(gate.walk(files, name, image_format, Access.SHARED))
    except CowtreeError as error:
        gate.close_all(layers)
        error.facts["consequence"] = "Could not open backing image."
        raise
    return layers


def _data_paths(path: str, settings: Settings) -> list[str]:
    name = settings.get("data_file")
    return [] if name is None else [gate.data_file_path(path, name)]


def _identities(files: FileSystem, paths: list[str]) -> set[tuple[int, int]]:
    found = set()
    for path in paths:
        try:
            found.add(files.identity(path))
        except MissingImage:
            # What is not there yet is nobody's backing file.
            continue
    return found


COMMAND = Command(
    "create",
    "Make an empty image, or an overlay over a backing file.",
    (OBJECT, QUIET, FORMAT, BACKING, BACKING_FORMAT, UNSAFE, OPTIONS),
    "FILENAME [SIZE]",
    run,
)
