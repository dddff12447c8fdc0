"""Every error that cowtree raises, drawn as one family.

    CowtreeError                 1  anything else of ours; a PlacedError is one of one file
    ├── WrongUse                 2  the words of the command; nothing was opened
    ├── ImageError               3  the bytes of one image break the format's rules
    │   ├── NotAnImage           4  the file is not in the format that was named
    │   ├── TruncatedImage       5  the file ends before something that it points at
    │   ├── BrokenHeader         6  a header field or extension breaks a rule
    │   ├── BrokenTable          7  an L1, L2, refcount or snapshot table breaks a rule
    │   │   └── BrokenCluster    7  a compressed cluster cannot be inflated
    │   ├── UnknownFeature       8  an incompatible feature bit that we may not ignore
    │   ├── MarkedCorrupt        9  somebody set the corrupt bit: no writes
    │   └── Locked              18  guest data is encrypted, and no key that fits was given
    ├── ChainError              10  one image is sound, but the chain is not
    │   ├── MissingImage        11  a file of the chain cannot be opened
    │   ├── LoopInChain         12  a file backs itself, directly or through others
    │   ├── ChainTooDeep        13  more than 256 layers
    │   ├── NotInChain          14  a named base or top is not a layer of this chain
    │   └── StaleBase           20  a base was changed after an overlay was made of it
    ├── Refused                 15  sound images, legal words, but the act would lose data
    ├── ImageLocked             16  another process has the image open
    ├── StorageFailed           17  the system refused: no space, input/output error, no permission
    ├── CatalogError            19  the catalogue of pools, bases and merges cannot be read or written
    ├── BrokenJournal           21  what was written down of a half-done merge cannot be understood
    ├── ProofFailed             22  a guest would see something else than before the merge
    ├── NoSuchDomain            23  no guest of this name is defined
    ├── NoSuchSnapshot          24  the guest has no snapshot of this name
    ├── ChangedBehind           25  another tool has changed a guest's chain, and what is wanted relies on it
    ├── BrokenXml               26  a text is no XML, or not the definition of a guest or a snapshot
    ├── BrokenPeer              27  the other end of a connection does not keep to the protocol: it is ended
    └── RequestFailed           28  one request to a peer failed; the connection goes on

The number is the exit status of cowtree's own commands; `cowtree img` exits as qemu-img does. Facts are fields,
`text` says what is wrong and where, `hint` what to do next.
"""

import re
from typing import Any, ClassVar


def with_advice(text: str, advice: str) -> str:
    """A message, and behind it what to do next if there is something."""
    return f"{text}{'' if text.endswith(('.', '?')) else '.'} Try: {advice}" if advice else text


class CowtreeError(Exception):
    """Something that cowtree can name; its fields are the facts."""

    exit_status: ClassVar[int] = 1
    text: ClassVar[str] = "{reason}"
    hint: ClassVar[str] = ""

    def __init__(self, **facts: Any) -> None:
        self.facts = facts
        super().__init__(self.message)

    @property
    def reason(self) -> str:
        """What is wrong, without the hint and without the place that a fact `path` names."""
        return self.text.format(**self.facts)

    @property
    def message(self) -> str:
        """What is wrong and where, without the hint."""
        return self.reason

    @property
    def advice(self) -> str:
        """What to do next; empty when there is nothing better than the message."""
        hint = str(self.facts.get("hint") or self.hint)
        # Not `format`: a hint may hold a file name, and that may hold braces. One pass: so may a fact.
        return re.sub(r"\{(\w+)\}", lambda found: str(self.facts.get(found[1], found[0])), hint)

    def __str__(self) -> str:
        return with_advice(self.message, self.advice)


class WrongUse(CowtreeError):
    """The words of the command make no sense together."""

    exit_status = 2


class PlacedError(CowtreeError):
    """An error of one file, whose path goes before the reason. Facts: path; overlay, when it was opened to back one."""

    @property
    def message(self) -> str:
        """What is wrong and where, without the hint."""
        backs = f" (it backs {self.facts['overlay']})" if "overlay" in self.facts else ""
        return f"{self.facts['path']}: {self.reason}{backs}"


class ImageError(PlacedError):
    """One image breaks the rules of its format."""

    exit_status = 3
    hint = "cowtree img check {path}"


class NotAnImage(ImageError):
    """The file is not in the format that was named."""

    exit_status = 4
    text = "Image is not in {format} format"
    hint = "cowtree img info {path}, or name the right format with -f"


class TruncatedImage(ImageError):
    """The file ends too early."""

    exit_status = 5
    text = "{what} at byte {offset} needs {length} bytes, but the file ends at {size_bytes}"
    hint = "copy the image again from where it came from; it was cut short"


class BrokenHeader(ImageError):
    """A header field or extension breaks a rule of the specification."""

    exit_status = 6
    hint = "restore the first cluster of {path} from a copy"


class BrokenTable(ImageError):
    """A table entry breaks a rule of the specification."""

    exit_status = 7


class BrokenCluster(BrokenTable):
    """A compressed cluster cannot be inflated; the tables that lead to it are right."""


class UnknownFeature(ImageError):
    """An incompatible feature that this program may not ignore."""

    exit_status = 8
    text = "Unsupported qcow2 feature(s): {features}"
    hint = "open it with the program that made it, and convert it to an image without that feature"


class MarkedCorrupt(ImageError):
    """The corrupt bit is set, so nothing may be written."""

    exit_status = 9
    text = "Image is corrupt; cannot be opened read/write"
    hint = "cowtree img check -r all {path}"


class Locked(ImageError):
    """Guest data is encrypted, and no key that fits was given."""

    exit_status = 18
    hint = "--object secret,id=ID,file=FILE --image-opts {option}=ID,driver=FORMAT,file.filename={path}"


class ChainError(PlacedError):
    """The layers of a chain do not fit together."""

    exit_status = 10


class MissingImage(ChainError):
    """A file of the chain cannot be opened."""

    exit_status = 11
    hint = "see whether the name is right, and the folder"

    @property
    def advice(self) -> str:
        """What to do next; a name that an overlay holds can be changed there. Facts: overlay, where there is one."""
        overlay, hint = self.facts.get("overlay"), self.facts.get("hint")
        if overlay is None or hint is not None:
            return super().advice
        return f"put the file back, or name the right one: cowtree img rebase -u -b BASE -F FORMAT {overlay}"


class LoopInChain(ChainError):
    """A file backs itself."""

    exit_status = 12
    text = "Backing file '{backing}' creates an infinite loop."
    hint = "cowtree img rebase -u -b RIGHT_BASE -F FORMAT {path}"


class ChainTooDeep(ChainError):
    """The chain is deeper than anything we would open."""

    exit_status = 13
    text = "the chain below it is deeper than {limit} layers"
    hint = "merge some of its layers with the tool that made them"


class NotInChain(ChainError):
    """A named layer is not in the chain."""

    exit_status = 14
    text = "Did not find '{wanted}' in the backing chain of '{path}'"
    hint = "cowtree img info --backing-chain {path}"


class StaleBase(ChainError):
    """A base was changed after an overlay was made of it. Facts: path of the overlay; base."""

    exit_status = 20
    text = "base was changed after this overlay was made: {base}"
    hint = "look whether what it shows is still right, then: cowtree verify --accept {path}"


class Refused(CowtreeError):
    """The images are sound, but the act would lose what a guest can see."""

    exit_status = 15


class ImageLocked(CowtreeError):
    """Another process has the image open in a way that excludes ours."""

    exit_status = 16
    text = "Failed to get {what} lock\nIs another process using the image [{path}]?"
    hint = "stop the guest that uses {path}, or read it with -U"


class StorageFailed(PlacedError):
    """The operating system refused a read, a write or a flush."""

    exit_status = 17
    text = "{action} failed: {reason}"
    hint = "check space and health of the disk, then run the same command again: it goes on where it stopped"


class CatalogError(PlacedError):
    """The catalogue cannot be read or written; no image suffers from that."""

    exit_status = 19
    hint = "see who owns {path} and who may write it, or name another one with --catalog FILE"


class BrokenJournal(PlacedError):
    """What was written down of a half-done merge cannot be understood."""

    exit_status = 21
    text = "this is no journal of a merge: {reason}"
    hint = "move it away; every image that a guest uses is whole, and the merge can be planned anew"


class ProofFailed(PlacedError):
    """A digest of what a guest sees differs after a merge."""

    exit_status = 22
    text = "shows something else than before the merge: {reason}"
    hint = "do not start its guest; cowtree undo"


class NoSuchDomain(CowtreeError):
    """No guest of this name is defined."""

    exit_status = 23
    text = "failed to get domain '{name}'"
    hint = "cowtree list --all"


class NoSuchSnapshot(CowtreeError):
    """A guest has no snapshot of this name."""

    exit_status = 24
    text = "Domain snapshot not found: no domain snapshot with matching name '{name}'"
    hint = "cowtree snapshot-list {domain}"


class ChangedBehind(CowtreeError):
    """Another tool has changed a guest's chain."""

    exit_status = 25


class BrokenXml(CowtreeError):
    """A text is not the XML that is wanted. Facts: reason; line, where one is to blame."""

    exit_status = 26
    hint = "put the text right; cowtree dumpxml DOMAIN shows one that is"

    @property
    def reason(self) -> str:
        """What is wrong, as stock begins it, and in which line."""
        place, reason = f"line {self.facts['line']}: " if "line" in self.facts else "", str(self.facts["reason"])
        # A name in a hostile text may be as long as the text.
        shown = reason if len(reason) < 500 else f"{reason[:350]} ... {reason[-100:]}"
        return f"XML error: {place}{shown}"


class BrokenPeer(CowtreeError):
    """The other end of a connection does not keep to the protocol, or is gone."""

    exit_status = 27
    text = "the connection is ended: {reason}"


class RequestFailed(CowtreeError):
    """A peer could not do what it was asked for. The fact `errno` is the system's number for why."""

    exit_status = 28
