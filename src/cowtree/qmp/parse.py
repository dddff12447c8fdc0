"""JSON as QEMU reads it: bytes in, in pieces of any size, values and complaints out.

Strings may stand between apostrophes too. What makes no sense is complained of at once, in QEMU's words, and reading
goes on at the next sign that could begin something. Nothing that is sent takes more memory than the limits say.

Source: docs/interop/qmp-spec.rst, qobject/json-lexer.c, qobject/json-parser.c.
"""

import re
import sys
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

# QEMU's own limits are 64 MiB, two million and 1024.
MESSAGE_BYTES_MAX: Final = 1 << 20
TOKEN_COUNT_MAX: Final = 1 << 16
NESTING_MAX: Final = 200

_STRING, _INTEGER, _FLOAT, _KEYWORD = "string", "integer", "float", "keyword"
_DEEPER: Final = {b"{": (1, 0), b"[": (0, 1), b"}": (-1, 0), b"]": (0, -1)}
_INTEGER_MIN, _INTEGER_MAX = -(1 << 63), (1 << 64) - 1


class Value(NamedTuple):
    """A whole value has come."""

    value: Any


class Complaint(NamedTuple):
    """What came is no value; `reason` says why as QEMU says it."""

    reason: str


class _Token(NamedTuple):
    """One word of the language. The kind of a sign is the sign itself."""

    kind: str
    text: bytes


class _State(NamedTuple):
    """Where a word may go on: over all of `run`, then by one byte to another state; else it is over, of kind `ends`."""

    run: re.Pattern[bytes]
    then: dict[bytes, str]
    ends: str = ""


def _state(run: bytes, then: dict[bytes, str], ends: str = "") -> _State:
    """A state; the keys of `then` are all the bytes that lead somewhere."""
    return _State(re.compile(run), {bytes([byte]): name for key, name in then.items() for byte in key}, ends)


_DIGITS: Final = b"0123456789"
_PRINTED: Final = bytes(range(0x20, 0xFE))
_STATES: Final = {
    "start": _state(
        rb"[ \t\r\n]*",
        {
            **{b'"': "quoted", b"'": "apostrophes", b"0": "zero", b"123456789": "digits", b"-": "sign"},
            **{b"{}[],:": "done", b"abcdefghijklmnopqrstuvwxyz": "keyword"},
        },
    ),
    "quoted": _state(rb"[ !#-\[\]-\xfd]*", {b'"': "done", b"\\": "quoted escape"}),
    "quoted escape": _state(b"", {_PRINTED: "quoted"}),
    "apostrophes": _state(rb"[ -&(-\[\]-\xfd]*", {b"'": "done", b"\\": "escape"}),
    "escape": _state(b"", {_PRINTED: "apostrophes"}),
    "sign": _state(b"", {b"0": "zero", b"123456789": "digits"}),
    "zero": _state(b"", {b".": "point", _DIGITS: "stray"}, _INTEGER),
    "digits": _state(rb"[0-9]*", {b".": "point", b"eE": "exponent"}, _INTEGER),
    "point": _state(b"", {_DIGITS: "fraction"}),
    "fraction": _state(rb"[0-9]*", {b"eE": "exponent"}, _FLOAT),
    "exponent": _state(b"", {b"+-": "exponent sign", _DIGITS: "power"}),
    "exponent sign": _state(b"", {_DIGITS: "power"}),
    "power": _state(rb"[0-9]*", {}, _FLOAT),
    "keyword": _state(rb"[a-z]*", {}, _KEYWORD),
    # After nonsense: up to a sign, the end of a line, or a byte that no text has.
    "lost": _state(rb"[\t -+\--9;-Z\\^-z|~-\xfd]*", {}, "nothing"),
}


class Reader:
    """Turns bytes into values."""

    def __init__(self) -> None:
        self._state = "start"
        self._word = bytearray()
        self._tokens: list[_Token] = []
        self._size_bytes = 0
        self._depths = [0, 0]

    def receive(self, data: bytes) -> Iterator[Value | Complaint]:
        """Take what was sent."""
        at = 0
        while at < len(data):
            state = _STATES[self._state]
            end = state.run.match(data, at).end()  # type: ignore[union-attr]  # every pattern fits nothing as well
            if self._state not in ("start", "lost"):
                self._word += data[at:end]
            at = end
            if self._size_bytes + len(self._word) > MESSAGE_BYTES_MAX:
                yield self._complain("JSON token size limit exceeded")
            elif at < len(data):
                before = self._state
                at += self._step(state, data[at : at + 1])
                if self._state == "done":
                    yield from self._take_word(state.ends or _kind(before))
                elif self._state == "stray":
                    yield self._complain(f"JSON parse error, stray '{_shown(self._word)}'")

    def _step(self, state: _State, byte: bytes) -> int:
        """Go on by one byte. Returns: how many were used; none where a word is over without it."""
        name = state.then.get(byte)
        if name is None and state.ends:
            self._state = "start" if state.ends == "nothing" else "done"
            return 0
        self._word += byte
        self._state = name or "stray"
        return 1

    def _complain(self, reason: str) -> Complaint:
        self._forget()
        self._state = "lost"
        return Complaint(reason)

    def _forget(self) -> None:
        self._word.clear()
        self._tokens.clear()
        self._size_bytes, self._depths = 0, [0, 0]

    def _take_word(self, kind: str) -> Iterator[Value | Complaint]:
        """Add a word to the message, and read the message when it is whole."""
        text = bytes(self._word)
        self._word.clear()
        self._state = "start"
        for index, step in enumerate(_DEEPER.get(text, (0, 0)) if not kind else ()):
            self._depths[index] += step
        self._size_bytes += len(text)
        self._tokens.append(_Token(kind or text.decode(), text))
        if len(self._tokens) > TOKEN_COUNT_MAX:
            self._forget()
            yield Complaint("JSON token count limit exceeded")
        elif sum(self._depths) > NESTING_MAX:
            self._forget()
            yield Complaint("JSON nesting depth limit exceeded")
        elif min(self._depths) < 0 or not any(self._depths):
            tokens = self._tokens
            self._tokens = []
            self._forget()
            yield _read(tokens)


def _kind(state: str) -> str:
    """Of which kind is what ends in a state by its own last byte; nothing for a sign."""
    return _STRING if state in ("quoted", "apostrophes") else ""


def _shown(word: bytes | bytearray) -> str:
    return bytes(word).split(b"\0")[0].decode("utf-8", "replace")


class _Wrong(Exception):
    """The message makes no sense."""


def _read(tokens: list[_Token]) -> Value | Complaint:
    try:
        return Value(_value(iter(tokens)))
    except _Wrong as error:
        return Complaint(f"JSON parse error, {error}")


def _next(tokens: Iterator[_Token]) -> _Token:
    token = next(tokens, None)
    if token is None:
        raise _Wrong("premature EOI")
    return token


def _value(tokens: Iterator[_Token], token: _Token | None = None) -> Any:
    """Read one value, which may have begun with a token already."""
    token = token or _next(tokens)
    match token.kind:
        case "{":
            return _object(tokens)
        case "[":
            return _array(tokens)
        case "string":
            return _string(token.text)
        case "integer" | "float":
            return _number(token)
        case "keyword" if token.text in _KEYWORDS:
            return _KEYWORDS[token.text]
        case "keyword":
            raise _Wrong(f"invalid keyword '{token.text.decode()}'")
    raise _Wrong("expecting value")


_KEYWORDS: Final = {b"true": True, b"false": False, b"null": None}


def _array(tokens: Iterator[_Token]) -> list[Any]:
    token = _next(tokens)
    if token.kind == "]":
        return []
    values = [_value(tokens, token)]
    while (token := _next(tokens)).kind != "]":
        if token.kind != ",":
            raise _Wrong("expected separator in list")
        values.append(_value(tokens))
    return values


def _object(tokens: Iterator[_Token]) -> dict[str, Any]:
    token = _next(tokens)
    values: dict[str, Any] = {}
    if token.kind == "}":
        return values
    _pair(values, tokens, token)
    while (token := _next(tokens)).kind != "}":
        if token.kind != ",":
            raise _Wrong("expected separator in dict")
        _pair(values, tokens, _next(tokens))
    return values


def _pair(values: dict[str, Any], tokens: Iterator[_Token], token: _Token) -> None:
    key = _value(tokens, token)
    if not isinstance(key, str):
        raise _Wrong("key is not a string in object")
    if _next(tokens).kind != ":":
        raise _Wrong("missing : in object pair")
    value = _value(tokens)
    if key in values:
        raise _Wrong("duplicate key")
    values[key] = value


def _number(token: _Token) -> int | float:
    """A whole number of 64 bits stays one; what is larger than any number becomes the largest."""
    # Python reads no integer of more digits than this at once, and needs not here.
    if token.kind == _INTEGER and len(token.text) <= 20 and _INTEGER_MIN <= int(token.text) <= _INTEGER_MAX:
        return int(token.text)
    largest = sys.float_info.max
    return min(max(float(token.text), -largest), largest)


_ESCAPES: Final = {**{sign: sign for sign in b"\"'\\/"}, **dict(zip(b"bfnrt", b"\b\f\n\r\t", strict=True))}
_PIECES: Final = re.compile(rb"[^\\]+|\\u(?P<hex>[0-9a-fA-F]{4})?|\\(?P<sign>.)", re.DOTALL)


def _string(text: bytes) -> str:
    """What stands between its marks."""
    inside = text[1:-1]
    if b"\\" not in inside:
        return _decoded(inside)
    pieces: list[str] = []
    at = 0
    while at < len(inside):
        found = _PIECES.match(inside, at)
        if found is None:
            raise _Wrong("invalid escape sequence in string")
        end = found.end()
        if found[0].startswith(b"\\u"):
            code, end = _code(inside, found)
            if code is None:
                raise _Wrong(f"{_shown(text[at + 1 : at + 7])} is not a valid Unicode character")
            pieces.append(chr(code))
        elif found["sign"]:
            if found["sign"][0] not in _ESCAPES:
                raise _Wrong("invalid escape sequence in string")
            pieces.append(chr(_ESCAPES[found["sign"][0]]))
        else:
            pieces.append(_decoded(found[0]))
        at = end
    return "".join(pieces)


def _code(inside: bytes, found: re.Match[bytes]) -> tuple[int | None, int]:
    """The character of an escape, or of two together. Returns: it, or None for no character; and where it ends."""
    if found["hex"] is None:
        return None, found.end()
    code, end = int(found["hex"], 16), found.end()
    second = _PIECES.match(inside, end)
    if 0xD800 <= code < 0xDC00 and second is not None and second["hex"] is not None:
        low = int(second["hex"], 16)
        if 0xDC00 <= low < 0xE000:
            code, end = 0x10000 + ((code & 0x3FF) << 10) + (low & 0x3FF), second.end()
    return (code if _is_character(code) else None), end


def _is_character(code: int) -> bool:
    return not (0xD800 <= code < 0xE000 or 0xFDD0 <= code <= 0xFDEF or code & 0xFFFE == 0xFFFE)


def _decoded(data: bytes) -> str:
    """Modified UTF-8, in which a zero has two bytes."""
    if data.isascii():
        return data.decode()
    try:
        text = data.replace(b"\xc0\x80", b"\0").decode()
    except UnicodeDecodeError:
        raise _Wrong("invalid UTF-8 sequence in string") from None
    if not all(map(_is_character, map(ord, text))):
        raise _Wrong("invalid UTF-8 sequence in string")
    return text
