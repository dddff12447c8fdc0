"""`cowtree img check`: looks whether an image is sound, and repairs it when told to.

Exit status: 0 sound, 1 the check itself failed, 2 damaged, 3 leaked clusters only, 63 the format has nothing to check.
"""

import sys

from cowtree.chain import gate
from cowtree.chain.gate import Layer
from cowtree.cli.img import qobject
from cowtree.cli.img.command import (
    FORMAT,
    IMAGE_OPTS,
    OBJECT,
    OUTPUT,
    QUIET,
    SHARE,
    SOURCE_CACHE,
    BadWords,
    Command,
    Given,
    Option,
    want_json,
    want_names,
)
from cowtree.cli.img.source import access_of, check_cache_modes, files_of, source_of
from cowtree.errors import ChainError
from cowtree.images.check import ALL, LEAKS, NOTHING, Report, check, check_bitmaps, open_to_check
from cowtree.qcow2 import header as qcow2
from cowtree.qcow2.findings import Finding
from cowtree.qcow2.header import Header
from cowtree.storage.contract import Access, FileSystem

REPAIR = Option(("-r", "--repair"), "repair `leaks` only, or `all` that is wrong", "WHAT")
FAILED_STATUS, DAMAGED_STATUS, LEAKS_STATUS, NO_CHECKS_STATUS = 1, 2, 3, 63


def run(given: Given) -> int:
    """Check, repair, check again, and say what is left."""
    repair = given.last("-r") or NOTHING
    if given.has("-r") and repair not in (LEAKS, ALL):
        raise BadWords(reason=f"Unknown option value for -r (expecting 'leaks' or 'all'): {repair}")
    (name,) = want_names(given, 1, "Expecting one image file name")
    is_json = want_json(given)
    check_cache_modes(given)
    files, source = files_of(given), source_of(given, name)
    if repair != NOTHING and given.has("-U"):
        raise ChainError(path=name, reason="force-share=on can only be used with read-only images", hint="without -U")
    layer = open_to_check(files, *source, access_of(given) if repair == NOTHING else Access.WRITE)
    try:
        gate.check_key(files, layer)
        if layer.header is not None:
            _open_others(files, layer, layer.header, access_of(given))
            check_bitmaps(layer, layer.header)
        return _check(given, layer, repair, is_json=is_json)
    finally:
        layer.close()


def _open_others(files: FileSystem, layer: Layer, header: Header, access: str) -> None:
    """Look whether all that the image needs is there, and let it go.
    Raises: what `gate.walk` raises.
    """

    def opener(files: FileSystem, path: str, image_format: str | None, access: str) -> Layer:
        return layer if path == layer.name else gate.open_readable(files, path, image_format, access)

    if header.data_file is not None:
        files.open(gate.data_file_path(layer.path, header.data_file), access).close()
    for each in gate.walk(files, layer.name, layer.format, access, opener):
        if each is not layer:
            each.close()


def _again(layer: Layer) -> Layer:
    """The layer with its header as it stands now."""
    data = layer.file.pread(0, qcow2.first_cluster_bytes(layer.file.pread(0, 24)))
    return layer._replace(header=qcow2.parse_fields(layer.path, data, layer.file.size_bytes))


def _check(given: Given, layer: Layer, repair: str, *, is_json: bool) -> int:
    report = check(layer, repair, _tell)
    if report is None:
        print(f"{given.program}: This image format does not support checks", file=sys.stderr)
        return NO_CHECKS_STATUS
    fixed = report
    if report.corruption_fixed_count or report.leak_fixed_count:
        if not is_json and not given.has("-q"):
            print(_repaired_text(report))
        report = check(_again(layer), NOTHING, _tell) or report
    if report.failure is None and not given.has("-q"):
        print(qobject.dumps(to_object(given.names[0], report, fixed)) if is_json else to_text(report))
    if report.failure is not None or report.internal_error_count:
        sys.stdout.flush()
        reason = "" if report.failure is None else f": {report.failure}"
        print(f"{given.program}: Check failed{reason}", file=sys.stderr)
        return FAILED_STATUS
    if report.corruption_count:
        return DAMAGED_STATUS
    return LEAKS_STATUS if report.leak_count else 0


def _tell(finding: Finding) -> None:
    """Say what is wrong, where it was found."""
    for sentence in finding.sentences():
        print(sentence, file=sys.stderr)


def _repaired_text(report: Report) -> str:
    return (
        "The following inconsistencies were found and repaired:\n\n"
        f"    {report.leak_fixed_count} leaked clusters\n"
        f"    {report.corruption_fixed_count} corruptions\n\n"
        "Double checking the fixed image now..."
    )


def to_text(report: Report) -> str:
    """A report for people, without the last line end."""
    lines = []
    for count, what, meaning in (
        (report.corruption_count, "errors were found on the image", _DAMAGE),
        (report.leak_count, "leaked clusters were found on the image", _LEAK),
        (report.internal_error_count, "internal errors have occurred during the check", None),
    ):
        if count:
            lines += ["", f"{count} {what}.", *([meaning] if meaning else [])]
    lines = lines or ["No errors were found on the image."]
    total, allocated = report.total_cluster_count, report.allocated_cluster_count
    if total and allocated:
        shares = (
            f"{allocated * 100 / total:.2f}% allocated",
            f"{report.fragmented_cluster_count * 100 / allocated:.2f}% fragmented",
            f"{report.compressed_cluster_count * 100 / allocated:.2f}% compressed clusters",
        )
        lines.append(f"{allocated}/{total} = {', '.join(shares)}")
    if report.image_end_bytes:
        lines.append(f"Image end offset: {report.image_end_bytes}")
    return "\n".join(lines)


_DAMAGE = "Data may be corrupted, or further writes to the image may corrupt it."
_LEAK = "This means waste of disk space, but no harm to data."


def to_object(name: str, report: Report, fixed: Report) -> qobject.Value:
    """A report for programs; what is 0 is left out, but for the errors of the check itself."""
    counts = {
        "image-end-offset": report.image_end_bytes,
        "corruptions": report.corruption_count,
        "leaks": report.leak_count,
        "corruptions-fixed": fixed.corruption_fixed_count,
        "leaks-fixed": fixed.leak_fixed_count,
        "total-clusters": report.total_cluster_count,
        "allocated-clusters": report.allocated_cluster_count,
        "fragmented-clusters": report.fragmented_cluster_count,
        "compressed-clusters": report.compressed_cluster_count,
    }
    found: dict[str, qobject.Value] = {
        "filename": name,
        "format": gate.QCOW2,
        "check-errors": report.internal_error_count,
    }
    return found | {name: count for name, count in counts.items() if count}


COMMAND = Command(
    "check",
    "Look whether an image is sound, and repair it.",
    (OBJECT, IMAGE_OPTS, QUIET, FORMAT, OUTPUT, REPAIR, SOURCE_CACHE, SHARE),
    "FILENAME",
    run,
)
