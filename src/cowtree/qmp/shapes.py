"""What a type of QEMU's schema accepts, and what it says of a value that it does not.

A type is named as in QEMU's own schema; `["str"]` is a list of strings. A member whose name begins with a star may be
left out. Members are looked at in the order of the table, so that QEMU names the same one of several things wrong.

Source: qapi/qobject-input-visitor.c, docs/devel/qapi-code-gen.rst.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from cowtree.qmp.wire import CommandFailed, Json

Type = str | list[str]
Members = Mapping[str, Type]
# A step is a member's name, or a place in a list.
Path = tuple[str | int, ...]


class Enum(NamedTuple):
    """One of these words."""

    words: tuple[str, ...]


class Struct(NamedTuple):
    """An object with these members, and no others."""

    members: Members


class Union(NamedTuple):
    """An object whose member `tag` says which more members it has; the branches name structs, or nothing more."""

    members: Members
    tag: str
    branches: Mapping[str, str]


class Alternate(NamedTuple):
    """A value of one of several kinds: `str`, `null`, and a type that is an object."""

    choices: tuple[str, ...]


Shape = Enum | Struct | Union | Alternate

_WHOLE: Final = {"uint8": 8, "uint16": 16, "uint32": 32}
_WORDS: Final[Mapping[str, tuple[type, str]]] = {"str": (str, "string"), "bool": (bool, "boolean")}


def full_name(path: Path) -> str:
    """A member as QEMU names it: `actions[0].data.node`."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".") if path else "<anonymous>"


def _own_name(path: Path) -> str:
    """As it names it elsewhere: by the last step alone, and an element by no name at all."""
    return path[-1] if path and isinstance(path[-1], str) else "null"


def _expected(name: str, what: str) -> CommandFailed:
    return CommandFailed(f"Invalid parameter type for '{name}', expected: {what}")


class Shapes:
    """The types of a schema, which may name each other."""

    def __init__(self, shapes: Mapping[str, Shape]) -> None:
        self._shapes = shapes

    @property
    def all(self) -> Mapping[str, Shape]:
        """Every type by its name."""
        return self._shapes

    def check(self, kind: Type, value: Json, path: Path = ()) -> None:
        """Look through a value. Raises: CommandFailed, in QEMU's words, for the first thing that is wrong."""
        if isinstance(kind, list):
            if not isinstance(value, list):
                raise _expected(full_name(path), "array")
            for index, each in enumerate(value):
                self.check(kind[0], each, (*path, index))
        elif kind in self._shapes:
            shape = self._shapes[kind]
            _CHECKS[type(shape)](self, kind, value, path)
        elif kind != "any":
            _check_plain(kind, value, path)

    def members_of(self, shape: Struct | Union, value: Mapping[str, Json]) -> Members:
        """All the members that an object may have, of which a union's are known by its tag."""
        if isinstance(shape, Struct):
            return shape.members
        branch = shape.branches.get(value[shape.tag])
        return {**shape.members, **(self._struct(branch).members if branch else {})}

    def _struct(self, name: str) -> Struct:
        shape = self._shapes[name]
        if not isinstance(shape, Struct):
            raise TypeError(f"{name} is no struct")
        return shape

    def _check_object(self, kind: str, value: Json, path: Path) -> None:
        shape = self._shapes[kind]
        if not isinstance(value, dict) or not isinstance(shape, Struct | Union):
            raise _expected(full_name(path), "object")
        self._check_members(shape.members, value, path)
        members = self.members_of(shape, value)
        if isinstance(shape, Union):
            self._check_members(
                {name: each for name, each in members.items() if name not in shape.members}, value, path
            )
        for name in value:
            if name not in members and f"*{name}" not in members:
                raise CommandFailed(f"Parameter '{full_name((*path, name))}' is unexpected")

    def _check_members(self, members: Members, value: Mapping[str, Json], path: Path) -> None:
        for member, kind in members.items():
            name = member.removeprefix("*")
            if name in value:
                self.check(kind, value[name], (*path, name))
            elif name == member:
                raise CommandFailed(f"Parameter '{full_name((*path, name))}' is missing")

    def _check_word(self, kind: str, value: Json, path: Path) -> None:
        _check_plain("str", value, path)
        shape = self._shapes[kind]
        if isinstance(shape, Enum) and value not in shape.words:
            raise CommandFailed(f"Parameter '{_own_name(path)}' does not accept value '{value}'")

    def _check_choice(self, kind: str, value: Json, path: Path) -> None:
        shape = self._shapes[kind]
        for choice in shape.choices if isinstance(shape, Alternate) else ():
            if choice == "null":
                fits = value is None
            else:
                is_text = choice == "str" or isinstance(self._shapes[choice], Enum)
                fits = isinstance(value, str if is_text else dict)
            if fits:
                if choice != "null":
                    self.check(choice, value, path)
                return
        raise _expected(_own_name(path), kind)


_CHECKS: Final[Mapping[type, Callable[[Shapes, str, Json, Path], None]]] = {
    Enum: Shapes._check_word,
    Struct: Shapes._check_object,
    Union: Shapes._check_object,
    Alternate: Shapes._check_choice,
}


def _check_plain(kind: str, value: Any, path: Path) -> None:
    """Look at a value of a type that needs no table."""
    if kind in _WORDS:
        wanted, word = _WORDS[kind]
        if not isinstance(value, wanted):
            raise _expected(full_name(path), word)
        return
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if kind == "int":
        if not is_whole or not -(1 << 63) <= value < 1 << 63:
            raise _expected(full_name(path), "integer")
        return
    # A negative number of 64 bits without a sign has always been let through.
    if not is_whole or not -(1 << 63) <= value < 1 << 64:
        raise CommandFailed(f"Parameter '{full_name(path)}' expects uint64")
    if kind in _WHOLE and not 0 <= value < 1 << _WHOLE[kind]:
        raise CommandFailed(f"Parameter '{_own_name(path)}' expects {kind}_t")
