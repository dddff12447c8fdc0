"""What an overlay tells of the moment below it: a header extension of ours, for whoever has lost the catalogue.

    0-39    the record: how long each text is, and times
    40-     the texts one behind the other, UTF-8, in the order of the record
    -       the link that the moment is about, as in `lineage.py`

What lies below an overlay is that moment as long as its header still names that link. A merge that changed it since has
left the text and not the truth. What somebody else or a later version wrote counts for nothing.
"""

from typing import Final, NamedTuple

from cowtree.qcow2 import header as qcow2
from cowtree.qcow2.geometry import round_up
from cowtree.qcow2.header import Extension, Header
from cowtree.qcow2.header_writes import without_extension
from cowtree.qcow2.lineage import link_of
from cowtree.records import record

# "cowm".
MOMENT: Final = 0x636F776D
VERSION: Final = 1
IS_TIP: Final = 1
RECORD: Final = record(
    (0, ">u1", "version"),
    (1, ">u1", "flags"),
    (2, ">u2", "domain"),
    (4, ">u2", "uuid"),
    (6, ">u2", "target"),
    (8, ">u2", "name"),
    (10, ">u2", "parent"),
    (12, ">u2", "description"),
    (14, ">u2", "path"),
    (16, ">u8", "created_ns"),
    (24, ">u8", "made_ns"),
    (32, "S8", "reserved"),
    size=40,
)
TEXTS: Final = ("domain", "uuid", "target", "name", "parent", "description", "path")
# What a text may be at the most. A description is cut; with any other one that is longer nothing is kept.
BYTES_MAX: Final = {"domain": 255, "uuid": 36, "target": 32, "name": 255, "parent": 255, "path": 4096}
DESCRIPTION_BYTES_MAX: Final = 2048
TIME_NS_MAX: Final = (1 << 63) - 1


class Moment(NamedTuple):
    """A snapshot, of whose disk `target` an overlay was made. Without a name it was not to be noted. All overlays that
    one command made have the same `made_ns`; `path` is how this one was called. Units: nanoseconds since 1970.
    """

    domain: str
    uuid: str
    target: str
    name: str
    parent: str
    description: str
    created_ns: int
    made_ns: int
    is_tip: bool = False
    path: str = ""


def pack(moment: Moment) -> bytes | None:
    """The record and its texts as they are kept; None for what cannot be."""
    # The only text that was not refused before when it is no text is a path.
    texts = {name: str(getattr(moment, name)).encode(errors="surrogateescape") for name in TEXTS}
    cut = texts["description"][:DESCRIPTION_BYTES_MAX].decode(errors="ignore")
    texts["description"] = cut.encode()
    times = moment.created_ns, moment.made_ns
    if any(len(texts[name]) > limit for name, limit in BYTES_MAX.items()) or not 0 <= min(times) <= max(times):
        return None
    if max(times) > TIME_NS_MAX:
        return None
    head = RECORD.pack(
        **{name: len(text) for name, text in texts.items()},
        version=VERSION,
        flags=IS_TIP if moment.is_tip else 0,
        created_ns=moment.created_ns,
        made_ns=moment.made_ns,
        reserved=b"",
    )
    return head + b"".join(texts.values())


def parse(data: bytes) -> tuple[Moment, bytes] | None:
    """Read a moment and the link that it is about; None when it is not one of ours."""
    if len(data) < RECORD.size_bytes or data[0] != VERSION:
        return None
    fields = RECORD.integers(data)
    limits = {**BYTES_MAX, "description": DESCRIPTION_BYTES_MAX}
    is_known = fields["flags"] in (0, IS_TIP) and max(fields["created_ns"], fields["made_ns"]) <= TIME_NS_MAX
    if not is_known or any(fields[name] > limits[name] for name in TEXTS):
        return None
    texts, position = dict[str, str](), RECORD.size_bytes
    for name in TEXTS:
        text = data[position : position + fields[name]]
        position += fields[name]
        try:
            texts[name] = text.decode(errors="surrogateescape" if name == "path" else "strict")
        except UnicodeDecodeError:
            return None
    if position > len(data) or any("\0" in text for text in texts.values()):
        return None
    moment = Moment(
        **texts,
        created_ns=fields["created_ns"],
        made_ns=fields["made_ns"],
        is_tip=bool(fields["flags"] & IS_TIP),
    )
    return moment, data[position:]


def find_moment(header: Header) -> tuple[Moment | None, bool]:
    """What an overlay tells, and whether what lies below it is still what it tells of."""
    data = header.extension(MOMENT)
    found = None if data is None else parse(data)
    if found is None:
        return None, False
    moment, link = found
    return moment, bool(header.backing_name_bytes) and link == link_of(header)


def with_moment(header: Header, moment: Moment | None) -> Header:
    """The header with a moment of the link that it names, or without one: also when there would be no room for it.
    Without a link it still tells whose disk it is.
    """
    bare = header._replace(extensions=without_extension(header.extensions, MOMENT))
    kept = None if moment is None else pack(moment)
    if kept is None:
        return bare
    new = Extension(MOMENT, kept + link_of(bare))
    used = bare.header_length + sum(len(qcow2.pack_extension(each)) for each in (*bare.extensions, new))
    # A longer backing file name may need room one day, and so may the name under which a merge is done.
    spare = qcow2.EXTENSION.size_bytes + round_up(qcow2.BACKING_NAME_BYTES_MAX, 8)
    if used + 2 * spare > 1 << header.cluster_bits:
        return bare
    return bare._replace(extensions=(*bare.extensions, new))
