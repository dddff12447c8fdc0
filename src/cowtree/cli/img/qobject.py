"""JSON exactly as QEMU prints it: the order of keys, the indent, the escapes.

QEMU keeps an object in a hash table of 512 chains and prints it chain by chain, so the order looks random but is always
the same. The newest key of a chain comes first.
"""

from typing import Final

Value = None | bool | int | str | list["Value"] | dict[str, "Value"]

BUCKET_COUNT: Final = 512
INDENT: Final = 4
_ESCAPES: Final = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def bucket(key: str) -> int:
    """The chain of QEMU's hash table that a key falls into.
    Source: QEMU, qobject/qdict.c, `tdb_hash`.
    """
    data = key.encode()
    value = 0x238F13AF * len(data) & 0xFFFFFFFF
    for index, byte in enumerate(data):
        value = value + (byte << (index * 5 % 24)) & 0xFFFFFFFF
    return (1103515243 * value + 12345 & 0xFFFFFFFF) % BUCKET_COUNT


def ordered(value: dict[str, Value]) -> list[tuple[str, Value]]:
    """The pairs in the order in which QEMU prints them, for an object filled in the order of `value`."""
    newest_first = list(value.items())[::-1]
    return sorted(newest_first, key=lambda pair: bucket(pair[0]))


def dumps(value: Value, depth: int = 0) -> str:
    """The text of a value, over several lines."""
    if isinstance(value, dict):
        return _container("{}", [f"{quote(key)}: {dumps(each, depth + 1)}" for key, each in ordered(value)], depth)
    if isinstance(value, list):
        return _container("[]", [dumps(each, depth + 1) for each in value], depth)
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    return quote(value) if isinstance(value, str) else str(value)


def dumps_line(value: Value) -> str:
    """The text of a value, in one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{quote(key)}: {dumps_line(each)}" for key, each in ordered(value)) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(dumps_line, value)) + "]"
    return dumps(value)


def _container(brackets: str, items: list[str], depth: int) -> str:
    inner, outer = "\n" + " " * INDENT * (depth + 1), "\n" + " " * INDENT * depth
    body = ",".join(inner + item for item in items)
    return f"{brackets[0]}{body}{outer}{brackets[1]}"


def quote(text: str) -> str:
    """A JSON string, all but plain ASCII escaped; bytes that are no UTF-8 become replacement characters."""
    return '"' + "".join(map(_escape, text)) + '"'


def _escape(sign: str) -> str:
    if sign in _ESCAPES:
        return _ESCAPES[sign]
    code = ord(sign)
    if 0xDC80 <= code <= 0xDCFF:
        return "\\uFFFD"
    if code > 0xFFFF:
        high, low = divmod(code - 0x10000, 0x400)
        return f"\\u{0xD800 + high:04X}\\u{0xDC00 + low:04X}"
    return sign if 0x20 <= code < 0x7F else f"\\u{code:04X}"
