"""JSON as QEMU reads it in names: strings between single quotes, too, and no key twice. Bounded in depth.

Source: QEMU, qobject/json-parser.c and json-lexer.c.
"""

import re
from typing import Final, NoReturn

Value = None | bool | int | float | str | list["Value"] | dict[str, "Value"]

DEPTH_MAX: Final = 100
_KEYWORDS: Final = {"true": True, "false": False, "null": None}
_ESCAPES: Final = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "/": "/", "\\": "\\", '"': '"', "'": "'"}
_TOKEN: Final = re.compile(
    r"""(?P<mark>[{}\[\],:]) | (?P<word>[a-z]+) | (?P<number>-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)(?!\d)
    | (?P<string>"(?:[^"\\\x00-\x1f]|\\.)*" | '(?:[^'\\\x00-\x1f]|\\.)*') | (?P<end>\Z)
    | (?P<stray>-?0[0-9]|-.|["'].*|.)""",
    re.VERBOSE | re.DOTALL,
)
_SPACE: Final = " \t\r\n"
_ESCAPE: Final = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)


def loads(text: str) -> Value:
    """Read one value. Raises: ValueError, with QEMU's words."""
    parser = _Parser(text)
    if parser.kind == "end":
        raise ValueError("Expecting a JSON value")
    value = parser.value(0)
    if parser.kind != "end":
        raise ValueError("Expecting at most one JSON value")
    return value


class _Parser:
    """Looks one token ahead."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._place = 0
        self.kind = self.token = ""
        self._next()

    def _next(self) -> None:
        while self._text[self._place : self._place + 1] in (*_SPACE,):
            self._place += 1
        found = _TOKEN.match(self._text, self._place)
        self.kind, self.token = (str(found.lastgroup), found[0]) if found else ("end", "")
        self._place += len(self.token)

    def value(self, depth: int) -> Value:
        """The value that begins here. Raises: ValueError."""
        if depth > DEPTH_MAX:
            raise ValueError("JSON nesting depth limit exceeded")
        kind, token = self.kind, self.token
        if kind == "stray":
            self._fail_stray()
        self._next()
        if kind == "word":
            if token not in _KEYWORDS:
                self._fail(f"invalid keyword '{token}'")
            return _KEYWORDS[token]
        if kind == "number":
            return float(token) if set(token) & set(".eE") else int(token)
        if kind == "string":
            return _unquote(token)
        if token == "{":
            return self._object(depth)
        if token == "[":
            return self._array(depth)
        self._fail("premature EOI" if kind == "end" else "expecting value")

    def _object(self, depth: int) -> Value:
        found: dict[str, Value] = {}
        if self._takes("}"):
            return found
        while True:
            key = self.value(depth + 1)
            if not isinstance(key, str):
                self._fail("key is not a string in object")
            if not self._takes(":"):
                self._fail("premature EOI" if self.kind == "end" else "missing : in object pair")
            value = self.value(depth + 1)
            if key in found:
                self._fail("duplicate key")
            found[key] = value
            if not self._goes_on("}", "dict"):
                return found

    def _array(self, depth: int) -> Value:
        found: list[Value] = []
        if self._takes("]"):
            return found
        while True:
            found.append(self.value(depth + 1))
            if not self._goes_on("]", "list"):
                return found

    def _goes_on(self, end: str, what: str) -> bool:
        """Whether a comma is next; else the end must be."""
        if self._takes(","):
            return True
        if not self._takes(end):
            self._fail("premature EOI" if self.kind == "end" else f"expected separator in {what}")
        return False

    def _takes(self, mark: str) -> bool:
        if self.kind == "mark" and self.token == mark:
            self._next()
            return True
        if self.kind == "stray":
            self._fail_stray()
        return False

    def _fail_stray(self) -> NoReturn:
        self._fail(f"stray '{self.token}'")

    def _fail(self, reason: str) -> NoReturn:
        raise ValueError(f"JSON parse error, {reason}")


def _unquote(token: str) -> str:
    """The text between quotes. Raises: ValueError."""
    text = _ESCAPE.sub(_unescape, token[1:-1])
    # Two escapes may stand for the halves of one sign; a half alone is none. Bytes that are no UTF-8 arrive as halves.
    try:
        whole = text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise ValueError("JSON parse error, invalid UTF-8 sequence in string") from None
    if "\0" in whole:
        raise ValueError("JSON parse error, \\u0000 is not a valid Unicode character")
    return whole


def _unescape(found: re.Match[str]) -> str:
    escape = found[1]
    if len(escape) == 1:
        if escape not in _ESCAPES:
            raise ValueError("JSON parse error, invalid escape sequence in string")
        return _ESCAPES[escape]
    return chr(int(escape[1:], 16))
