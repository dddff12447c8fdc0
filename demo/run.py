"""The main job, shown on real images: every figure and every merge of the document that cowtree implements.

A raw RootBase.img with a real ext4 file system gets four snapshots, each with real changed files. Each scene takes a
fresh copy of them, merges in one of the ways that the document draws, says how many bytes that moved and how long it
took, and stops with an error if the guest would see one byte that it did not see before.

No QEMU is needed: mke2fs, debugfs and e2fsck make, change and check the file system without mounting it.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from cowtree.cli.main import main as cowtree
from cowtree.images import merge
from cowtree.images.digest import digest
from cowtree.images.family import permit_commit
from cowtree.images.merge import Into, Outcome
from cowtree.storage.file import LocalFiles
from cowtree.units import MIB, format_size

DISK_BYTES = 192 * MIB
SNAPSHOT_COUNT = 4
FILES = LocalFiles()
ROOT, ACTIVE = "RootBase.img", "Snap-4.qcow2"
ALL = (ROOT, *(f"Snap-{number}.qcow2" for number in range(1, SNAPSHOT_COUNT + 1)))


class DemoFailed(Exception):
    """A scene did not end as it must."""


class Act(NamedTuple):
    """One merge: what it does in words, and the call that does it. `shows` says which image shows afterwards what
    another one showed when the scene began.
    """

    words: str
    run: Callable[[], Outcome]
    shows: tuple[tuple[str, str], ...] = ()


def say(text: str = "") -> None:
    """Print a line at once."""
    print(text, flush=True)


def command(*words: str | Path) -> str:
    """Run a program of e2fsprogs, which must succeed. Returns: what it printed."""
    result = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise DemoFailed(f"{' '.join(map(str, words))} failed:\n{result.stdout}{result.stderr}")
    return result.stdout


def run_cowtree(*words: str | Path) -> None:
    """Run a cowtree command in this process, which must succeed."""
    if cowtree(["cowtree", *map(str, words)]) != 0:
        raise DemoFailed(f"cowtree {' '.join(map(str, words))} failed")


def show_tree(folder: Path) -> None:
    """Print the family of images in a folder."""
    run_cowtree("tree", folder)
    say()


def seen_in(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The digest of what the guest sees through each image."""
    return {name: digest(FILES, str(folder / name)) for name in names}


def prove(folder: Path, before: dict[str, str], verdict: str = "unchanged") -> None:
    """Compare digests with what they must be. Raises: DemoFailed when one differs."""
    for name, now in seen_in(folder, before).items():
        if now != before[name]:
            raise DemoFailed(f"the guest sees something else through {name}:\n  wanted {before[name]}\n  found  {now}")
        say(f"    {now}  {name}: {verdict}")


# --- the family ---------------------------------------------------------------------------------------------------


def make_root(folder: Path) -> None:
    """Make RootBase.img: an ext4 file system filled from a folder, without mounting anything."""
    content = folder / "content"
    for name, size_bytes in (("etc/motd", 0), ("usr/lib/library.bin", 24 * MIB), ("var/log/messages", 2 * MIB)):
        path = content / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pattern(name, size_bytes) or b"welcome to RootBase\n")
    root = folder / ROOT
    run_cowtree("img", "create", "-q", "-f", "raw", root, str(DISK_BYTES))
    command("mke2fs", "-q", "-t", "ext4", "-F", "-E", "root_owner=0:0", "-d", content, root)
    shutil.rmtree(content)


def pattern(name: str, size_bytes: int) -> bytes:
    """Bytes that look like a file and are the same in every run."""
    line = f"{name}: every line of this file is as long as the one before it\n".encode()
    return (line * (size_bytes // len(line) + 1))[:size_bytes]


def add_snapshot(folder: Path, number: int) -> None:
    """Make Snap-N: the guest writes files, and only what it changed goes into the new overlay."""
    base = ROOT if number == 1 else f"Snap-{number - 1}.qcow2"
    base_format = "raw" if number == 1 else "qcow2"
    disk, overlay = folder / "disk.img", folder / f"Snap-{number}.qcow2"
    run_cowtree("img", "convert", "-f", base_format, "-O", "raw", folder / base, disk)
    write_files(disk, folder, number)
    # An empty overlay on the changed disk, rebased to the old one, keeps exactly the clusters that differ.
    run_cowtree("img", "create", "-q", "-f", "qcow2", "-b", disk.name, "-F", "raw", overlay)
    run_cowtree("img", "rebase", "-b", base, "-F", base_format, overlay)
    disk.unlink()


def write_files(disk: Path, folder: Path, number: int) -> None:
    """Change the file system as a guest would: a new message of the day, more data, less old data."""
    motd, data = folder / "motd", folder / "data"
    motd.write_text(f"welcome to Snap-{number}\n")
    data.write_bytes(pattern(f"data of Snap-{number}", (4 + number) * MIB))
    script = folder / "script"
    lines = ["rm /etc/motd", f"write {motd} /etc/motd", f"write {data} /var/data-{number}"]
    if number > 2:
        lines.append(f"rm /var/data-{number - 2}")
    script.write_text("\n".join(lines) + "\n")
    command("debugfs", "-w", "-f", script, disk)
    for path in (motd, data, script):
        path.unlink()


def check_files(folder: Path, name: str) -> None:
    """Read the guest's file system out of an image: it must be whole, and hold what the guest wrote last."""
    disk = folder / "read-back.img"
    run_cowtree("img", "convert", "-O", "raw", folder / name, disk)
    command("e2fsck", "-f", "-n", disk)
    motd = command("debugfs", "-R", "cat /etc/motd", disk).strip()
    disk.unlink()
    if motd != "welcome to Snap-4":
        raise DemoFailed(f"/etc/motd in {name} says '{motd}'")
    say(f"    e2fsck: clean; /etc/motd says '{motd}'\n")


# --- the scenes ---------------------------------------------------------------------------------------------------


class Stage:
    """Gives every scene a fresh copy of the family, and plays it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.family = folder / "family"
        self.count = 0

    def play(self, title: str, acts: Callable[[Path], list[Act]], kept: Iterable[str] = (ACTIVE,)) -> tuple[int, float]:
        """Play one scene; the guest must see the same through the `kept` images. Returns: bytes moved, and seconds."""
        folder = self.fresh(title)
        before = seen_in(folder, kept)
        at_first = seen_in(folder, ALL)
        total_bytes, total_s = 0, 0.0
        for act in acts(folder):
            start_s = time.monotonic()
            outcome = act.run()
            took_s = time.monotonic() - start_s
            say(f"  {act.words}: {format_size(outcome.moved_bytes)} moved in {took_s:.2f} s")
            total_bytes, total_s = total_bytes + outcome.moved_bytes, total_s + took_s
            for name, earlier in act.shows:
                prove(folder, {name: at_first[earlier]}, f"shows what {earlier} showed")
            remove(outcome)
        show_tree(folder)
        prove(folder, before)
        check_files(folder, ACTIVE)
        shutil.rmtree(folder)
        return total_bytes, total_s

    def fresh(self, title: str) -> Path:
        """Announce a scene and copy the family for it."""
        self.count += 1
        say(f"=== {title}")
        folder = self.folder / f"scene-{self.count}"
        command("cp", "-r", "--sparse=always", "--reflink=auto", self.family, folder)
        return folder


def remove(outcome: Outcome) -> None:
    """Remove the files that a merge has made invalid."""
    for path in outcome.invalid:
        Path(path).unlink()
        say(f"  {Path(path).name} is not needed any more: removed")


def commit(folder: Path, top: int, base: int, overlay: int | None = None) -> Act:
    """Commit Snap-TOP into Snap-BASE (0: RootBase). What lies on the top, the next one or `overlay`, gets that base."""
    base_name = ROOT if base == 0 else f"Snap-{base}.qcow2"
    upper = str(folder / f"Snap-{top + 1 if overlay is None else overlay}.qcow2")

    def run() -> Outcome:
        top_path, base_path = str(folder / f"Snap-{top}.qcow2"), str(folder / base_name)
        permit = permit_commit(FILES, top_path, base_path)
        return merge.commit(FILES, top_path, into=Into(permit, base_path, [upper]))

    through = "" if top == base + 1 else f" to Snap-{base + 1}"
    return Act(f"commit Snap-{top}{through} into {base_name}", run)


def one_commit(top: int, base: int) -> Callable[[Path], list[Act]]:
    """A scene of one commit."""
    return lambda folder: [commit(folder, top, base)]


def method_b(folder: Path) -> list[Act]:
    """Commit one layer after the other; in between, Snap-2 is a valid image that shows what Snap-3 showed."""
    valid = (("Snap-2.qcow2", "Snap-3.qcow2"),)
    # By the second step Snap-4 lies on Snap-2.
    return [commit(folder, 3, 2)._replace(shows=valid), commit(folder, 2, 1, overlay=4)._replace(shows=valid)]


def pull(folder: Path, base: str | None) -> Act:
    """Pull into the active layer all that lies between it and the base; without a base, everything."""
    path = str(folder / ACTIVE)
    target = None if base is None else str(folder / base)
    words = f"pull everything above {base} into {ACTIVE}" if base else f"pull everything into {ACTIVE}"
    return Act(words, lambda: merge.pull(FILES, path, base=target))


def delete_by_method_2(folder: Path) -> Act:
    """Copy Snap-2 into Snap-3, which gets Snap-1 as its backing file; then Snap-2 is not needed."""
    path, middle = str(folder / "Snap-3.qcow2"), str(folder / "Snap-2.qcow2")

    def run() -> Outcome:
        outcome = merge.rebase(FILES, path, backing=("Snap-1.qcow2", "qcow2"))
        return outcome._replace(invalid=(middle,))

    return Act("rebase Snap-3 to Snap-1, copying what Snap-2 holds", run)


def show_family(folder: Path) -> None:
    """Figure-2: one backing file with three branches of overlays."""
    say("=== Figure-2: one base, many overlays")
    links = (
        ("Overlay-1", ROOT), ("Overlay-1A", "Overlay-1"), ("Overlay-1B", "Overlay-1A"), ("Overlay-1C", "Overlay-1B"),
        ("Overlay-2", ROOT), ("Overlay-2A", "Overlay-2"), ("Overlay-3", ROOT), ("Overlay-3A", "Overlay-3"),
    )  # fmt: skip
    figure = folder / "figure-2"
    figure.mkdir()
    shutil.copy(folder / "family" / ROOT, figure / ROOT)
    start_s = time.monotonic()
    for name, base in links:
        backing, base_format = (base, "raw") if base == ROOT else (f"{base}.qcow2", "qcow2")
        path = figure / f"{name}.qcow2"
        run_cowtree("img", "create", "-q", "-f", "qcow2", "-b", backing, "-F", base_format, path)
    say(f"  {len(links)} overlays made: 0 B moved in {time.monotonic() - start_s:.2f} s")
    show_tree(figure)
    same = seen_in(figure, [ROOT])[ROOT]
    prove(figure, {f"{name}.qcow2": same for name, _ in links}, f"shows what {ROOT} shows")
    say()
    shutil.rmtree(figure)


def play_all(stage: Stage) -> None:
    """Every scene, in the order of the document."""
    cases = ((3, 0), (2, 0), (1, 0), (2, 1), (3, 2), (3, 1))
    for number, (top, base) in enumerate(cases, 1):
        figure = {1: " (Figure-4)", 6: " (Figure-3)"}.get(number, "")
        stage.play(f"blockcommit, case ({number}){figure}", one_commit(top, base))
    direct = stage.play("method-a: Snap-2 and Snap-3 into Snap-1 at once", one_commit(3, 1))
    steps = stage.play("method-b: Snap-3 into Snap-2, then Snap-2 into Snap-1", method_b)
    say(
        f"  method-a moved {format_size(direct[0])} in {direct[1]:.2f} s, "
        f"method-b {format_size(steps[0])} in {steps[1]:.2f} s and kept Snap-2 valid to the end\n"
    )
    stage.play("Figure-5: partial pull", lambda folder: [pull(folder, ROOT)])
    stage.play("Figure-6: full pull", lambda folder: [pull(folder, None)])
    kept = ("Snap-3.qcow2", ACTIVE)
    stage.play("delete Snap-2 by Method (1): commit it into Snap-1", one_commit(2, 1), kept)
    stage.play("delete Snap-2 by Method (2): copy it into Snap-3", lambda folder: [delete_by_method_2(folder)], kept)


def main() -> int:
    """Make the family, play every scene. Returns: the exit status."""
    start_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cowtree-demo-") as name:
        stage = Stage(Path(name))
        stage.family.mkdir()
        try:
            say(f"=== {ROOT}: a raw disk of {format_size(DISK_BYTES)} with ext4, and four snapshots with changed files")
            make_root(stage.family)
            for number in range(1, SNAPSHOT_COUNT + 1):
                add_snapshot(stage.family, number)
            show_tree(stage.family)
            show_family(stage.folder)
            play_all(stage)
        except DemoFailed as error:
            print(f"demo: {error}", file=sys.stderr)
            return 1
    say(f"Every figure done, every digest equal, in {time.monotonic() - start_s:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
