"""`cowtree img measure`: how large the file of a new image would be."""

from typing import Final

from cowtree.chain.gate import LUKS, QCOW2, RAW
from cowtree.chain.view import Chain, open_chain, through_snapshot
from cowtree.cli.img import qobject
from cowtree.cli.img.command import FORMAT, IMAGE_OPTS, OBJECT, OUTPUT, SHARE, Command, Given, Option, want_json
from cowtree.cli.img.convert import SNAPSHOT, snapshots_named
from cowtree.cli.img.numbers import parse_number
from cowtree.cli.img.options import Settings, cluster_bits_of, refcount_order_of
from cowtree.cli.img.pairs import join_lists
from cowtree.cli.img.source import access_of, files_of, source_of
from cowtree.errors import WrongUse
from cowtree.images.encryption import secret_named
from cowtree.images.measure import used_bytes
from cowtree.plan.create import FALLOC, FULL, OFF, PREALLOCATIONS
from cowtree.plan.measure import Sizes, measure_bitmaps, measure_qcow2, measure_raw, refuse_too_large
from cowtree.qcow2.geometry import SUBCLUSTER_CLUSTER_BITS_MIN, Geometry, round_up
from cowtree.storage.contract import FileSystem
from cowtree.units import SECTOR_BYTES

TARGET_FORMAT = Option(("-O",), "format of the new image; raw when not given", "OUTPUT_FMT")
OPTIONS = Option(("-o",), "options of the new image's format, as `create` takes them", "OPTIONS")
SIZE = Option(("--size",), "size of the new disk, in place of a file that would be converted", "SIZE")
_VERSIONS: Final = {"0.10": 2, "1.1": 3}


def run(given: Given) -> int:
    """Measure, and say so."""
    is_json, size_bytes = want_json(given), None
    if (text := given.last("--size")) is not None:
        size_bytes = parse_number("image size", text)
    options = join_lists(given.all("-o"))
    snapshot = snapshots_named(text) if (text := given.last("-l")) is not None else ()
    _check_together(given)
    files = files_of(given)
    if not given.names:
        sizes = _measure(files, _settings(given, options, size_bytes), None)
    else:
        chain = open_chain(files, *source_of(given, given.names[0]), access_of(given))
        try:
            seen = through_snapshot(chain, snapshot) if snapshot else chain
            sizes = _measure(files, _settings(given, options, size_bytes), seen)
        finally:
            chain.close()
    print(qobject.dumps(to_object(sizes)) if is_json else to_text(sizes))
    return 0


def _check_together(given: Given) -> None:
    has_size, has_file = given.has("--size"), bool(given.names)
    rules = (
        (len(given.names) > 1, "At most one filename argument is allowed."),
        (
            not has_file and any(given.has(each) for each in ("--image-opts", "-f", "-l")),
            "--image-opts, -f, and -l require a filename argument.",
        ),
        (has_file and has_size, "--size N cannot be used together with a filename."),
        (not has_file and not has_size, "Either --size N or one filename must be specified."),
    )
    for is_broken, reason in rules:
        if is_broken:
            raise WrongUse(reason=reason)


def _settings(given: Given, options: str, size_bytes: int | None) -> Settings:
    settings = Settings(given.last("-O", RAW), options)
    if size_bytes is not None:
        settings.set("size", str(size_bytes))
    return settings


def _measure(files: FileSystem, settings: Settings, source: Chain | None) -> Sizes:
    """Measure a copy of the source, or an empty image. Raises: WrongUse."""
    size_bytes = int(settings.get("size") or 0)
    if settings.format == RAW:
        return measure_raw(round_up(size_bytes, SECTOR_BYTES) if source is None else source.size_bytes)
    header_bytes = _encryption_bytes(files, settings)
    if settings.format == LUKS:
        return measure_raw(header_bytes + (size_bytes if source is None else source.size_bytes))
    geometry, preallocation = geometry_of(settings), settings.get("preallocation") or OFF
    if preallocation not in PREALLOCATIONS:
        raise WrongUse(reason=f"invalid parameter value: {preallocation}", hint=f"one of {', '.join(PREALLOCATIONS)}")
    refuse_too_large(geometry, size_bytes)
    size = geometry.cluster_size_bytes
    data_bytes = 0
    if source is not None:
        size_bytes = source.size_bytes
        data_bytes = used_bytes(source, size) if settings.get("backing_file") is None else round_up(size_bytes, size)
    if preallocation in (FALLOC, FULL):
        data_bytes = round_up(size_bytes, size)
    sizes = measure_qcow2(geometry, size_bytes, data_bytes, header_bytes=header_bytes)
    return sizes._replace(bitmaps=_bitmap_bytes(source, geometry)) if source is not None else sizes


def _encryption_bytes(files: FileSystem, settings: Settings) -> int:
    """How long the header of the encryption would be. Raises: WrongUse when there is no such secret."""
    if settings.format != LUKS and settings.get("encrypt.format") != LUKS:
        return 0
    encryption = settings.encryption
    if encryption is None:
        return 0
    secret_named(files, encryption.key_secret)
    return encryption.header_bytes


def _bitmap_bytes(source: Chain, geometry: Geometry) -> int | None:
    """What bitmaps of the source would take; None where one of both has none."""
    image = source.images[0]
    if image is None or image.header.version < 3 or geometry.version < 3:
        return None
    return measure_bitmaps(image.bitmaps, image.header.size_bytes, geometry.cluster_size_bytes)


def geometry_of(settings: Settings) -> Geometry:
    """The arithmetic of the image that the settings mean, as far as its size depends on it. Raises: WrongUse."""
    has_subclusters, bits = settings.is_on("extended_l2"), cluster_bits_of(settings)
    if has_subclusters and bits < SUBCLUSTER_CLUSTER_BITS_MIN:
        least = 1 << SUBCLUSTER_CLUSTER_BITS_MIN
        raise WrongUse(reason=f"Extended L2 entries are only supported with cluster sizes of at least {least} bytes")
    compat = settings.get("compat") or "1.1"
    if compat not in _VERSIONS:
        raise WrongUse(reason=f"Invalid compatibility level: '{compat}'", hint="compat=0.10 or compat=1.1")
    version, order = _VERSIONS[compat], refcount_order_of(settings)
    if version < 3 and order != 4:
        reason = "Different refcount widths than 16 bits require compatibility level 1.1 or above"
        raise WrongUse(reason=f"{reason} (use compat=1.1 or greater)")
    return Geometry(version, bits, order, has_subclusters)


def to_text(sizes: Sizes) -> str:
    """The sizes for people."""
    lines = [f"required size: {sizes.required}", f"fully allocated size: {sizes.fully_allocated}"]
    return "\n".join(lines + ([f"bitmaps size: {sizes.bitmaps}"] if sizes.bitmaps is not None else []))


def to_object(sizes: Sizes) -> qobject.Value:
    """The sizes for programs."""
    found: dict[str, qobject.Value] = {"required": sizes.required, "fully-allocated": sizes.fully_allocated}
    return found if sizes.bitmaps is None else {"bitmaps": sizes.bitmaps, **found}


COMMAND = Command(
    "measure",
    f"Say how large the file of a new image would be; {QCOW2} or {RAW}.",
    (FORMAT, TARGET_FORMAT, OPTIONS, SNAPSHOT, SIZE, OUTPUT, OBJECT, IMAGE_OPTS, SHARE),
    "[--size N | FILENAME]",
    run,
)
