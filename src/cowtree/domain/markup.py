"""XML: a text becomes a tree under guard, and a tree becomes a text as libvirt lays one out.

The only module that knows lxml, which is loaded when the first text is parsed: it takes 15 ms, and few commands need
it. A text comes from anywhere. It declares nothing (no DOCTYPE, so no entities and no other files), and whatever was
parsed can be printed, and what is printed can be parsed.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeAlias

from cowtree.errors import BrokenXml

# lxml brings no types.
Node: TypeAlias = Any

TEXT_BYTES_MAX: Final = 1 << 20
# The parser itself gives up at 256, as it does in libvirt.
DEPTH_MAX: Final = 250
NODE_COUNT_MAX: Final = 50_000
NAMESPACE_COUNT_MAX: Final = 32
STEP: Final = "  "

_TOO_DEEP: Final = f"elements lie in each other more than {DEPTH_MAX} deep"
_XML_NAMESPACE: Final = "http://www.w3.org/XML/1998/namespace"
_PROLOG = re.compile(r"\ufeff?(?:\s+|<!--.*?-->|<\?.*?\?>)*", re.DOTALL)
_ENCODING = re.compile(r"""\ufeff?<\?xml\s[^>]*?\bencoding\s*=\s*["']([^"'>]*)["']""")
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NAMES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "'": "&apos;", '"': "&quot;", "\r": "&#13;"}
_IN_TEXT = str.maketrans(_NAMES)
# A parser makes a space of any other white space in an attribute.
_IN_ATTRIBUTE = str.maketrans({**_NAMES, "\n": "&#10;", "\t": "&#9;"})


def parse(text: bytes | str, root: str) -> Node:
    """The tree of a text whose outermost element is `root`. Raises: BrokenXml."""
    from lxml import etree  # noqa: PLC0415 see above

    # Whatever a text says of entities and other files is neither read nor looked for.
    parser = etree.XMLParser(
        **{"resolve_entities": False, "load_dtd": False, "dtd_validation": False, "no_network": True},
        **{"huge_tree": False, "recover": False, "encoding": "utf-8"},
    )
    try:
        tree = etree.fromstring(_guarded(text), parser)
    except etree.XMLSyntaxError as error:
        reason = re.sub(r", line \d+, column \d+( .*)?$", "", error.msg)
        reason = _TOO_DEEP if "depth" in reason else reason
        raise BrokenXml(line=max(error.position[0], 1), reason=reason) from None
    _refuse_odd(tree)
    if tree.tag != root:
        uri = f" of namespace '{tree.nsmap[tree.prefix]}'" if tree.tag.startswith("{") else ""
        reason = f"unexpected root element <{qualified(tree)}>{uri}, expecting <{root}>"
        raise BrokenXml(line=tree.sourceline, reason=reason)
    return tree


def _guarded(text: bytes | str) -> bytes:
    """The bytes to be parsed: short enough, in UTF-8, without a document type. Raises: BrokenXml."""
    # A text that is too long is not looked at.
    if len(text) > TEXT_BYTES_MAX:
        raise BrokenXml(reason=f"the text is longer than {TEXT_BYTES_MAX} bytes")
    try:
        words = text if isinstance(text, str) else text.decode("utf-8")
        data = words.encode("utf-8")
    except UnicodeError:
        raise BrokenXml(reason="the text is not in UTF-8") from None
    if len(data) > TEXT_BYTES_MAX:
        raise BrokenXml(reason=f"the text is longer than {TEXT_BYTES_MAX} bytes")
    if (where := words.find("\0")) >= 0:
        raise BrokenXml(line=words.count("\n", 0, where) + 1, reason="there is a zero byte, which no XML may hold")
    declared = _ENCODING.match(words)
    if declared and not words.isascii() and declared[1].lower() not in ("utf-8", "utf8"):
        raise BrokenXml(line=1, reason=f"the text says that it is in {declared[1]}, and only UTF-8 is read")
    prolog = _PROLOG.match(words)
    start = prolog.end() if prolog else 0
    if words.startswith("<!DOCTYPE", start):
        reason = "there is a DOCTYPE; it could name other files or grow without end, so none is read"
        raise BrokenXml(line=words.count("\n", 0, start) + 1, reason=reason)
    if start == len(words):
        raise BrokenXml(reason="there is no element in it")
    return data


def _refuse_odd(root: Node) -> None:
    """Raises: BrokenXml for a tree that is deeper, larger or more entangled than any that libvirt prints."""
    from lxml import etree  # noqa: PLC0415 see above

    depth = namespace_count = node_count = 0
    for event, node in etree.iterwalk(root, events=("start", "end", "start-ns", "comment", "pi")):
        if event == "end":
            depth -= 1
        elif event == "start-ns":
            namespace_count += 1
            if namespace_count > NAMESPACE_COUNT_MAX:
                raise BrokenXml(reason=f"more than {NAMESPACE_COUNT_MAX} namespaces are declared")
        else:
            node_count += 1
            depth += event == "start"
            if depth > DEPTH_MAX:
                raise BrokenXml(line=node.sourceline, reason=_TOO_DEEP)
            if node_count > NODE_COUNT_MAX:
                raise BrokenXml(line=node.sourceline, reason=f"there are more than {NODE_COUNT_MAX} elements")


def layout(root: Node, indent: str = "") -> str:
    """The text of a tree as libvirt prints one: an element a line, two spaces a level, in single quotes. Comments stay,
    those around the outermost element too. Raises: BrokenXml when it is too long.
    """
    lines = _Lines()
    is_part = root.getparent() is not None
    before = [] if is_part else [*root.itersiblings(preceding=True)]
    after = [] if is_part else [*root.itersiblings()]
    for node in (*reversed(before), root, *after):
        _write(node, lines, indent, {})
    return "".join(lines.pieces)


class _Lines:
    """What was printed so far. A text that white space would blow up is given up early."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self._length = 0

    def add(self, *pieces: str) -> None:
        """Print some more. Raises: BrokenXml."""
        self.pieces += pieces
        self._length += sum(map(len, pieces))
        if self._length > TEXT_BYTES_MAX:
            raise BrokenXml(reason=f"with an element a line the text is longer than {TEXT_BYTES_MAX} bytes")


def _write(node: Node, lines: _Lines, indent: str | None, outer: Mapping[str | None, str]) -> None:
    """Print one node and what is in it; without an indent all goes on one line, for white space counts there."""
    end = "" if indent is None else "\n"
    if not isinstance(node.tag, str):
        lines.add(indent or "", _aside(node), end)
        return
    namespaces = node.nsmap
    name = qualified(node)
    lines.add(indent or "", "<", name, *_attributes(node, namespaces, outer))
    text = (node.text or "").translate(_IN_TEXT)
    if not len(node):
        is_empty = not text or (indent is not None and _is_blank(text))
        lines.add("/>" if is_empty else f">{text}</{name}>", end)
        return
    inner = None if indent is None or _is_mixed(node) else indent + STEP
    lines.add(">", text if inner is None else "\n")
    for child in node:
        _write(child, lines, inner, namespaces)
        lines.add((child.tail or "").translate(_IN_TEXT) if inner is None else "")
    lines.add("" if inner is None else indent or "", f"</{name}>", end)


def _is_blank(text: str) -> bool:
    """Whether a text is nothing but the white space with which XML is laid out."""
    return "\n" in text and not text.strip()


def _is_mixed(node: Node) -> bool:
    """Whether text stands between the elements of a node."""
    return bool(len(node)) and any((text or "").strip() for text in (node.text, *(child.tail for child in node)))


def _aside(node: Node) -> str:
    """A comment or an instruction."""
    text = node.text or ""
    if hasattr(node, "target"):
        return f"<?{node.target}{' ' * bool(text)}{text}?>"
    return f"<!--{text}-->"


def _attributes(node: Node, namespaces: Mapping[str | None, str], outer: Mapping[str | None, str]) -> Iterator[str]:
    """The attributes of an element, and behind them the namespaces that it declares."""
    prefixes = {uri: prefix for prefix, uri in namespaces.items() if prefix}
    for key, value in node.attrib.items():
        uri, _, local = key[1:].rpartition("}") if key.startswith("{") else ("", "", key)
        prefix = "xml" if uri == _XML_NAMESPACE else prefixes.get(uri)
        yield f" {prefix}:{local}" if uri else f" {local}"
        yield f"='{value.translate(_IN_ATTRIBUTE)}'"
    for prefix, uri in namespaces.items():
        if outer.get(prefix) != uri:
            yield f" xmlns:{prefix}" if prefix else " xmlns"
            yield f"='{(uri or '').translate(_IN_ATTRIBUTE)}'"


def qualified(node: Node) -> str:
    """The name of an element as it was written, with its prefix."""
    local = str(node.tag).rpartition("}")[2]
    return f"{node.prefix}:{local}" if node.prefix else local


def elements(node: Node) -> list[Node]:
    """The elements in a node, without comments."""
    return [child for child in node if isinstance(child.tag, str)]


def text_of(node: Node) -> str:
    """The text in an element, without comments."""
    text = str(node.xpath("string()"))
    return "" if _is_blank(text) else text


def text_at(node: Node, path: str) -> str | None:
    """The text of the first element of this path; None when there is none."""
    found = node.find(path)
    return None if found is None else text_of(found)


def attribute_at(node: Node, path: str, name: str) -> str | None:
    """An attribute of the first element of this path; None when either is missing."""
    found = node.find(path)
    return None if found is None else found.get(name)


def require_xml(text: str) -> str:
    """The text itself. Raises: BrokenXml when it holds what no XML can, such as a file name that is not in UTF-8."""
    if found := _NO_XML.search(text):
        sign = f"byte 0x{ord(found[0]) & 0xFF:02x}"
        raise BrokenXml(reason=f"{text!a} holds {sign} at place {found.start()}, which no XML may hold")
    return text


def element(name: str, text: str | None = None, /, **attributes: str | None) -> str:
    """One element as libvirt prints it; attributes that are None are left out. Raises: BrokenXml."""
    held = {key: require_xml(value) for key, value in attributes.items() if value is not None}
    written = "".join(f" {key}='{value.translate(_IN_ATTRIBUTE)}'" for key, value in held.items())
    opened = f"<{name}{written}"
    return f"{opened}/>" if text is None else f"{opened}>{require_xml(text).translate(_IN_TEXT)}</{name}>"
