"""A catalogue from what the images tell: domains, their snapshots, and which files are ours.

- What the catalogue knows and is true stays: nothing is taken away, and no disk that is there goes on elsewhere.
- Every conclusion is told in a sentence. What an image says is what somebody wrote there: with a trial one can look
  before anything is noted.
- A moment whose overlay has another base by now was merged since: what lies below is kept under a name of its own.
- Of several ends of one disk the one of the branch that was written last goes on; the others are kept as tips.
"""

import os
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import count
from typing import Final, NamedTuple

from cowtree.catalog import domains, intents, snapshots
from cowtree.catalog.domains import Domain
from cowtree.catalog.snapshots import EXTERNAL, INTERNAL, NO, SHUTOFF, Held, Snapshot
from cowtree.chain import gate
from cowtree.domain.definition import Definition, make, parse
from cowtree.domain.moment import refuse_name
from cowtree.errors import BrokenXml, CatalogError, CowtreeError, NoSuchDomain, Refused
from cowtree.operations import check, drift
from cowtree.operations.found import File, gather, line, refuse_text
from cowtree.operations.host import Host, subject
from cowtree.qcow2.moment import Moment
from cowtree.storage.contract import is_there

RUNNING: Final = "running"
TIP_DESCRIPTION: Final = "what the domain was when it was reverted to something else"


class New(NamedTuple):
    """A snapshot to be noted: its number is not known yet, and its parent only by name."""

    snapshot: Snapshot
    parent: str | None
    disks: tuple[Held, ...]


class Rebuilt(NamedTuple):
    """What is to be noted of one domain; `domain` is None when nobody knows it yet. `healed` is what snapshots that are
    known hold again, by their numbers.
    """

    domain: Domain | None
    definition: Definition
    news: tuple[New, ...]
    current: str | None
    made: tuple[File, ...]
    healed: dict[int, list[Held]]


def rebuild(host: Host, folders: Sequence[str], *, is_trial: bool = False) -> Iterator[str]:
    """Note down what images tell; a trial notes nothing. Yields: every conclusion, in a sentence.
    Raises: MissingImage when a folder is not there, CatalogError, Refused in the end when a domain was left out.
    """
    found = gather(host, folders)
    uuids = dict.fromkeys(each.moment.uuid for each in found.values() if each.moment is not None)
    uuids |= dict.fromkeys(domain.uuid for domain in domains.everyone(host.catalog))
    left_out = 0
    for uuid in uuids:
        work = _Work(host, found, uuid)
        try:
            rebuilt = work.plan()
            if rebuilt is not None and not is_trial:
                _note(host, rebuilt)
        except CatalogError:
            raise
        except CowtreeError as error:
            left_out += 1
            host.tell(f"domain '{uuid}' is left out: {error.message}")
        yield from work.told
    if left_out:
        reason = f"what the images tell of {'a domain' if left_out == 1 else f'{left_out} domains'} was left out"
        raise Refused(reason=reason, hint="the warnings say why; cowtree tree FOLDER shows the images")


class _Work:
    """The search for what belongs to one domain."""

    def __init__(self, host: Host, found: dict[str, File], uuid: str) -> None:
        self.told: list[str] = []
        self._host = host
        self._found = found
        self._uuid = uuid
        self._own = {path: file for path, file in found.items() if file.moment and file.moment.uuid == uuid}
        self._domain = _known(host, uuid)
        self._title = self._domain.name if self._domain else uuid
        self._is_disk_known = self._domain is not None
        rows = [] if self._domain is None else snapshots.rows(host.catalog, self._domain)
        names = {row.id: row.name for row in rows}
        held = {} if self._domain is None else snapshots.all_disks(host.catalog, self._domain)
        self._held = [each for disks in held.values() for each in disks]
        self._names = {*names.values()}
        self._holders: dict[tuple[str, str], str] = {}
        for number, disks in held.items():
            self._hold(names[number], disks)
        self._moments = {(row.name, row.created_ns): row.id for row in rows}
        self._all_held = held
        self._healed: dict[int, list[Held]] = {}
        # The snapshot that lies below an overlay, and the news by name.
        self._below: dict[str, str] = {}
        self._news: dict[str, New] = {}
        self._insides: dict[str, list[tuple[int, str]]] = {}

    def plan(self) -> Rebuilt | None:
        """What there is to note; None when there is nothing. Raises: BrokenXml for names that are none."""
        if self._domain is not None and intents.found(self._host.catalog, self._domain):
            self._say("something was begun with it and did not end; any command for it settles that, then again")
            return None
        self._refuse_texts()
        definition = self._definition()
        if definition is None:
            return None
        chosen = self._choose(definition)
        definition = self._with_disks(definition, chosen)
        self._find_external(definition)
        self._find_internal(definition)
        self._find_tips(definition, chosen)
        self._find_parents()
        current = self._current(definition)
        made = tuple(
            file
            for file in self._own.values()
            if file.is_ours and snapshots.made(self._host.catalog, file.path) is None
        )
        if made:
            self._say(f"noted as made by cowtree: {', '.join(file.path for file in made)}")
        return Rebuilt(self._domain, definition, tuple(self._news.values()), current, made, self._healed)

    def _say(self, sentence: str) -> None:
        self.told.append(f"domain '{self._title}': {sentence}")

    def _hold(self, name: str, disks: Iterable[Held]) -> None:
        """Remember which snapshot holds which disk in which file."""
        for held in disks:
            if held.mode == EXTERNAL and held.lost is None:
                self._holders[held.target, held.source] = name

    def _refuse_texts(self) -> None:
        """Leave out what cannot be true."""
        for path, file in list(self._own.items()):
            reason = file.moment and refuse_text(file.moment)
            if reason is not None:
                self._say(f"{path} tells of something that cannot be: {reason}")
                del self._own[path]

    def _definition(self) -> Definition | None:
        """The definition of the domain, without its disks when nobody knows it yet. Raises: BrokenXml."""
        if self._domain is not None:
            try:
                return parse(self._domain.xml)
            except BrokenXml as error:
                self._is_disk_known = False
                return self._former(error)
        if not self._own:
            return None
        moment = max(_moments(self._own.values()), key=lambda each: each.made_ns)
        name = moment.domain
        if any(each.name == name for each in domains.everyone(self._host.catalog)):
            name = f"{name}-{self._uuid[:8]}"
            self._say(f"there is another domain '{moment.domain}', so it is called '{name}'")
        targets = sorted({each.target for each in _moments(self._own.values())}, key=lambda each: (len(each), each))
        made = make(name, self._uuid, [(os.devnull, gate.QCOW2) for _ in targets], targets)
        self._title = name
        self._say(f"it is made anew, for {len(self._own)} images tell of it; its other devices are not known any more")
        return made

    def _former(self, error: BrokenXml) -> Definition:
        """The definition as it was when the last snapshot was taken. Raises: the same when there is none."""
        rows = [] if self._domain is None else snapshots.rows(self._host.catalog, self._domain)
        for row in sorted(rows, key=lambda row: row.created_ns, reverse=True):
            with suppress(BrokenXml):
                found = parse(snapshots.get(self._host.catalog, row.id).xml)
                self._say(
                    f"its definition cannot be read ({error.reason}): it is again the one of snapshot '{row.name}'"
                )
                return found
        raise error

    def _ends(self) -> dict[str, dict[str, File]]:
        """The files of each disk on which no other one of ours lies, by target and path."""
        bases = {file.base for file in self._own.values()}
        found: dict[str, dict[str, File]] = {}
        for path, file in self._own.items():
            if file.moment is not None:
                found.setdefault(file.moment.target, {})
                if path not in bases:
                    found[file.moment.target][path] = file
        return found

    def _choose(self, definition: Definition) -> dict[str, str]:
        """In which file each disk goes on: where it does now if that is there, else in the branch written last."""
        chosen = dict[str, str]()
        ends = self._ends()
        latest = max((file for files in ends.values() for file in files.values()), key=_age, default=None)
        for disk in definition.disks:
            files = list(ends.get(disk.target, {}).values())
            same = [file for file in files if _act(file) == _act(latest)]
            best = max(same or files, key=_age, default=None)
            is_kept = self._is_disk_known or (self._domain is not None and best is None)
            if is_kept and disk.source is not None and is_there(self._host.files, disk.source):
                chosen[disk.target] = disk.source
                if best is not None and disk.source in {file.base for file in line(self._found, best.path)}:
                    self._say(
                        f"disk {disk.target} is {disk.source}, though {best.path} lies on it, which was made later"
                    )
            elif best is not None:
                chosen[disk.target] = best.path
                self._say(f"disk {disk.target} goes on in {best.path}{self._why(files)}")
            elif disk.source is not None:
                self._say(f"disk {disk.target} is gone: {disk.source}; no image tells of another one")
        return chosen

    @staticmethod
    def _why(files: Sequence[File]) -> str:
        return "" if len(files) < 2 else f", the end of {len(files)} that belongs to what was written last"

    def _with_disks(self, definition: Definition, chosen: dict[str, str]) -> Definition:
        for disk in definition.disks:
            path = chosen.get(disk.target)
            if path is not None and path != disk.source:
                definition = definition.with_source(disk.target, path, gate.QCOW2)
        return definition

    def _find_external(self, definition: Definition) -> None:
        """The snapshots that overlays tell of, and the states below overlays that were merged since."""
        groups: dict[tuple[str, int, bool], dict[str, tuple[File, Held]]] = {}
        merged = []
        for file in sorted(self._own.values(), key=lambda each: (_made_ns(each), each.path)):
            moment = file.moment
            if moment is None or file.base is None or not moment.name:
                continue
            if not file.is_true:
                merged.append(file)
                continue
            overlay = file.path if moment.made_ns == moment.created_ns else None
            held = Held(moment.target, EXTERNAL, file.base, file.base_format or gate.RAW, overlay)
            if self._holder(held) is None:
                self._heal(moment, held)
            if (known := self._holder(held)) is not None:
                self._below[file.path] = known
                continue
            group = groups.setdefault((moment.name, moment.created_ns, moment.is_tip), {})
            if moment.target in group and group[moment.target][1].source != held.source:
                self._say(f"{file.base} and {group[moment.target][1].source} are both said to be '{moment.name}'")
                merged.append(file)
                continue
            group.setdefault(moment.target, (file, held))
        for files in groups.values():
            self._add_group(definition, list(files.values()))
        for file in merged:
            self._add_merged(definition, file)
        for file in self._own.values():
            if file.is_true and file.path not in self._below and file.base is not None and file.moment is not None:
                name = self._holder(Held(file.moment.target, EXTERNAL, file.base, ""))
                if name is not None:
                    self._below[file.path] = name

    def _heal(self, moment: Moment, held: Held) -> None:
        """Let a snapshot that is known hold a disk again, if it had lost it, or the file that held it is gone."""
        number = self._moments.get((moment.name, moment.created_ns))
        if number is None:
            return
        now = self._healed.get(number, self._all_held.get(number, []))
        old = next((each for each in now if each.target == held.target), None)
        if old is not None and old.lost is None and is_there(self._host.files, old.source):
            return
        self._healed[number] = sorted([*(each for each in now if each is not old), held])
        self._hold(moment.name, [held])
        self._say(f"snapshot '{moment.name}' holds disk {held.target} again: {held.source}")

    def _holder(self, held: Held) -> str | None:
        """The snapshot that holds a disk in this file already, by itself."""
        return self._holders.get((held.target, held.source))

    def _add_group(self, definition: Definition, files: Sequence[tuple[File, Held]]) -> None:
        moment = files[0][0].moment
        if moment is None:
            return
        name = self._free(moment.name)
        if name != moment.name:
            self._say(f"there is another snapshot '{moment.name}', so one of that name is called '{name}'")
        snapshot = Snapshot(
            *(0, name, None, moment.description, moment.created_ns, SHUTOFF, NO, None, definition.text),
            is_tip=moment.is_tip,
        )
        self._add(snapshot, moment.parent or None, [held for _, held in files])
        self._below.update((file.path, name) for file, _ in files)

    def _add_merged(self, definition: Definition, file: File) -> None:
        """What lies below an overlay, which is not what the overlay was made for any more."""
        moment = file.moment
        if moment is None or file.base is None:
            return
        held = Held(moment.target, EXTERNAL, file.base, file.base_format or gate.RAW)
        if (known := self._holder(held)) is not None:
            self._below[file.path] = known
            return
        name = self._free(_name_of(file.base))
        self._say(
            f"{file.path} was made for snapshot '{moment.name}', and its base was merged or changed since: what lies "
            f"below it is kept as '{name}'"
        )
        snapshot = Snapshot(
            *(0, name, None, f"what {file.path} lay on when the catalogue was rebuilt", moment.made_ns),
            *(SHUTOFF, NO, None, definition.text),
            is_found=True,
        )
        self._add(snapshot, None, [held])
        self._below[file.path] = name

    def _add(self, snapshot: Snapshot, parent: str | None, disks: Sequence[Held]) -> None:
        then = parse(snapshot.xml)
        for held in disks:
            if any(disk.target == held.target for disk in then.disks):
                then = then.with_source(held.target, held.source, held.format)
        self._news[snapshot.name] = New(snapshot._replace(xml=then.text), parent, tuple(disks))
        self._names.add(snapshot.name)
        self._hold(snapshot.name, disks)
        kind = "tip" if snapshot.is_tip else "snapshot"
        self._say(f"{kind} '{snapshot.name}': {', '.join(f'{held.target} in {held.source}' for held in disks)}")

    def _free(self, name: str) -> str:
        names = (name if number == 1 else f"{name}-{number}" for number in count(1))
        return next(each for each in names if each not in self._names)

    def _find_internal(self, definition: Definition) -> None:
        """The internal snapshots in the files that nobody knows: one for all disks when name and time agree."""
        known = {(held.source, held.internal_id) for held in self._held if held.mode == INTERNAL}
        groups: dict[tuple[str, int], dict[str, Held]] = {}
        memory = set[tuple[str, int]]()
        for target, file in self._files_of_disks(definition):
            for entry in file.insides:
                key = (entry.name, check.created_ns(entry))
                if (file.path, entry.id) in known:
                    continue
                if target in groups.setdefault(key, {}):
                    self._say(f"internal snapshot '{entry.name}' in {file.path} is there twice, and left out")
                    continue
                groups[key][target] = Held(target, INTERNAL, file.path, gate.QCOW2, None, entry.id)
                memory |= {key} if entry.vm_state_bytes else set()
        for (name, created_ns), disks in groups.items():
            try:
                refuse_name(name)
            except CowtreeError as error:
                self._say(f"an internal snapshot is left out: {error.reason}")
                continue
            if name in self._names:
                paths = ", ".join(held.source for held in disks.values())
                self._say(f"internal snapshot '{name}' in {paths} is left out, for there is another one of that name")
                continue
            has_memory = (name, created_ns) in memory
            state, kept = (RUNNING, INTERNAL) if has_memory else (SHUTOFF, NO)
            snapshot = Snapshot(
                *(0, name, None, "found in the images", created_ns, state, kept, None, definition.text), is_found=True
            )
            self._add(snapshot, None, list(disks.values()))

    def _files_of_disks(self, definition: Definition) -> Iterator[tuple[str, File]]:
        """The domain's qcow2 files, and of which disk each is; what other domains rely on too is nobody's alone."""
        targets: dict[str, str] = {}
        for path, file in self._own.items():
            if file.moment is not None:
                targets |= {each.path: file.moment.target for each in line(self._found, path)}
        for disk in definition.disks:
            targets |= {each.path: disk.target for each in line(self._found, disk.source)}
        for held in self._held:
            targets |= {each.path: held.target for each in line(self._found, held.source)}
        others = {
            below.path
            for path, file in self._found.items()
            if file.moment is not None and file.moment.uuid != self._uuid
            for below in line(self._found, path)
        }
        for path, target in sorted(targets.items()):
            if path in others and self._found[path].insides:
                self._say(f"{path} has internal snapshots, and more than one domain lies on it: they are left out")
            elif path not in others:
                yield target, self._found[path]

    def _find_tips(self, definition: Definition, chosen: dict[str, str]) -> None:
        """The ends that do not go on: those that one command made are one tip."""
        groups: dict[int, list[File]] = {}
        for files in self._ends().values():
            for path, file in files.items():
                held = Held(file.moment.target if file.moment else "", EXTERNAL, path, gate.QCOW2)
                if path not in chosen.values() and self._holder(held) is None:
                    groups.setdefault(_made_ns(file), []).append(file)
        for made_ns in sorted(groups):
            ends = groups[made_ns]
            below = next((self._below[file.path] for file in ends if file.path in self._below), None)
            name = self._free("tip" if below is None else f"{below}-tip")
            disks = [Held(file.moment.target, EXTERNAL, file.path, gate.QCOW2) for file in ends if file.moment]
            created_ns = max(file.mtime_ns for file in ends)
            snapshot = Snapshot(
                *(0, name, None, TIP_DESCRIPTION, created_ns, SHUTOFF, NO, None, definition.text), is_tip=True
            )
            self._add(snapshot, below, disks)

    def _find_parents(self) -> None:
        """The parent of each snapshot: the one that is told, if there is one; else what its files lie on."""
        for name, new in self._news.items():
            for held in new.disks:
                if held.mode == INTERNAL:
                    insort(self._insides.setdefault(held.source, []), (new.snapshot.created_ns, name))
        for name, new in self._news.items():
            parent = new.parent
            if parent is None or parent not in self._names:
                below = self._structural(new)
                if parent is not None:
                    instead = "none" if below is None else f"'{below}', on which its files lie"
                    self._say(f"the parent of '{name}' was '{parent}', which is not known: it is {instead}")
                parent = below
            self._news[name] = new._replace(parent=parent)
        self._cut_loops()

    def _structural(self, new: New) -> str | None:
        """The snapshot before one in the same file, or the one on which its files lie."""
        for held in new.disks:
            if held.mode == INTERNAL:
                others = self._insides[held.source]
                place = bisect_left(others, (new.snapshot.created_ns, ""))
                if place:
                    return others[place - 1][1]
            for file in line(self._found, held.source):
                if self._below.get(file.path) not in (None, new.snapshot.name):
                    return self._below[file.path]
        return None

    def _cut_loops(self) -> None:
        """Let nobody be their own ancestor."""
        checked = set[str]()
        for name in self._news:
            way: dict[str, None] = {}
            step: str | None = name
            while step is not None and step in self._news and step not in checked:
                if step in way:
                    self._say(f"the parents of '{step}' lead back to itself: it has none")
                    self._news[step] = self._news[step]._replace(parent=None)
                    break
                way[step] = None
                step = self._news[step].parent
            checked.update(way)

    def _current(self, definition: Definition) -> str | None:
        """On which snapshot the disks lie."""
        if self._domain is not None and self._domain.current is not None:
            return None
        sources = {disk.source for disk in definition.disks}
        inside = [
            (new.snapshot.created_ns, name)
            for name, new in self._news.items()
            for held in new.disks
            if held.mode == INTERNAL and held.source in sources
        ]
        below = Counter(self._below[path] for path in sources if path in self._below)
        current = max(inside)[1] if inside else (below.most_common(1)[0][0] if below else None)
        if current is not None:
            self._say(f"the disks lie on snapshot '{current}'")
        return current


def _known(host: Host, uuid: str) -> Domain | None:
    try:
        found = domains.find(host.catalog, uuid)
    except NoSuchDomain:
        return None
    return found if found.uuid == uuid else None


def _name_of(path: str) -> str:
    """A name for what a file shows."""
    name = os.path.basename(path).lstrip(".")
    try:
        refuse_name(name)
    except CowtreeError:
        return "found"
    return name


def _moments(files: Iterable[File]) -> list[Moment]:
    return [file.moment for file in files if file.moment is not None]


def _made_ns(file: File) -> int:
    return file.moment.made_ns if file.moment else 0


def _act(file: File | None) -> int | None:
    """Which command made a file."""
    return None if file is None else _made_ns(file)


def _age(file: File) -> tuple[int, int, str]:
    """What was written last comes last."""
    return file.mtime_ns, _made_ns(file), file.path


def _parents_first(news: Sequence[New]) -> list[New]:
    """The same, each behind its parent when that is new too."""
    names = {new.snapshot.name for new in news}
    children: dict[str | None, list[New]] = {}
    for new in news:
        children.setdefault(new.parent if new.parent in names else None, []).append(new)
    found = list(children.get(None, []))
    for new in found:
        found += children.get(new.snapshot.name, [])
    return found


def _note(host: Host, rebuilt: Rebuilt) -> None:
    """Note all of one domain down, in one transaction."""
    definition = rebuilt.definition
    with host.catalog.together():
        domain = rebuilt.domain
        if domain is None:
            domain = domains.add(host.catalog, definition.name, definition.uuid or "", definition.text)
        elif domain.xml != definition.text:
            domain = domains.redefine(host.catalog, domain, definition.text)
        numbers = {row.name: row.id for row in snapshots.rows(host.catalog, domain)}
        for new in _parents_first(rebuilt.news):
            parent = None if new.parent is None else numbers[new.parent]
            made = snapshots.add(host.catalog, domain, new.snapshot._replace(parent=parent), new.disks)
            numbers[made.name] = made.id
        if rebuilt.current is not None:
            domains.set_current(host.catalog, domain, numbers[rebuilt.current])
        for number, disks in rebuilt.healed.items():
            snapshots.replace_disks(host.catalog, number, disks)
        for file in rebuilt.made:
            snapshots.note_made(host.catalog, file.path, file.identity)
    drift.note(host, subject(host, domains.find(host.catalog, domain.uuid)))
