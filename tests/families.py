"""Owns families of many small images: real ones, stamped from two that qemu-img made, for it takes 10 ms for each."""

import os
from collections.abc import Sequence
from pathlib import Path

from tests.qemu import qemu_img

PAGE = 4096
NAME = "image-%05d.qcow2"


def stamp(folder: Path, parents: Sequence[int | None], size: str = "1M") -> list[Path]:
    """Make image-00000.qcow2 and so on; `parents` says for each the number of the image that backs it."""
    folder.mkdir(parents=True, exist_ok=True)
    template = folder / "template"
    qemu_img("create", "-q", "-f", "qcow2", template, size)
    alone = _pages(template)
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", NAME % 0, "-F", "qcow2", template, size)
    backed, size_bytes = _pages(template), template.stat().st_size
    template.unlink()
    paths = [folder / (NAME % number) for number in range(len(parents))]
    for path, parent in zip(paths, parents, strict=True):
        with path.open("wb") as file:
            for offset, data in (alone if parent is None else backed).items():
                file.seek(offset)
                file.write(data if parent is None else data.replace(os.fsencode(NAME % 0), os.fsencode(NAME % parent)))
            file.truncate(size_bytes)
    return paths


def _pages(path: Path) -> dict[int, bytes]:
    """The parts of a file that are not zero."""
    data = path.read_bytes()
    parts = {offset: data[offset : offset + PAGE] for offset in range(0, len(data), PAGE)}
    return {offset: part for offset, part in parts.items() if any(part)}


def overwrite(path: Path, offset: int, data: bytes) -> None:
    """Damage an image."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
