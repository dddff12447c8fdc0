"""One monitor's conversation: bytes in, answers out, no socket.

    greeting -> qmp_capabilities -> command, answer, command, answer ...

Until the client has sent `qmp_capabilities` no other command is known, and it hears no events. Whatever it sends is
answered; nothing that it sends ends the conversation. A command is one that the vocabulary and the handler know both,
and the handler gets arguments that fit. No command can be run out of turn, as in QEMU's own storage daemon.

Source: docs/interop/qmp-spec.rst, qapi/qmp-dispatch.c, monitor/qmp.c.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final, Protocol

from cowtree.errors import CowtreeError
from cowtree.qmp import wire
from cowtree.qmp.parse import Complaint, Reader
from cowtree.qmp.schema import COMMANDS, check_arguments
from cowtree.qmp.wire import CommandFailed, Json

OPENING: Final = "qmp_capabilities"
_NOT_OPEN: Final = "Expecting capabilities negotiation with 'qmp_capabilities'"
_OPEN_ALREADY: Final = "Capabilities negotiation is already complete, command ignored"
_OWN: Final = (OPENING, "query-commands", "query-version")


class Handler(Protocol):
    """Whoever carries out commands."""

    def commands(self) -> Collection[str]:
        """The names of those that it knows."""

    def answer(self, command: str, arguments: dict[str, Json]) -> Json:
        """Carry one out. Returns: its result, `{}` where there is none. Raises: CowtreeError, which is its answer."""


class Session:
    """One monitor's state."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._reader = Reader()
        self._is_open = False
        self._has_oob = False

    @property
    def hears_events(self) -> bool:
        """Whether events are sent to it."""
        return self._is_open

    def receive(self, data: bytes) -> Iterator[bytes]:
        """Take what the client sent. Yields: answers, each of which is sent before the next one is asked for."""
        for found in self._reader.receive(data):
            if isinstance(found, Complaint):
                yield wire.refusal(wire.GENERIC_ERROR, found.reason, {})
                continue
            was_opened = False
            mark = {"id": found.value["id"]} if isinstance(found.value, dict) and "id" in found.value else {}
            try:
                command, arguments = self._understand(found.value)
                was_opened = command == OPENING
                answer = wire.answer(self._carry_out(command, arguments), mark)
            except CommandFailed as error:
                answer = wire.refusal(error.kind, self._reason(error), mark)
            except CowtreeError as error:
                answer = wire.refusal(wire.GENERIC_ERROR, str(error), mark)
            yield answer
            # Not sooner: no event comes before the answer.
            self._is_open = self._is_open or was_opened

    def _reason(self, error: CommandFailed) -> str:
        is_too_early = error.kind == wire.COMMAND_NOT_FOUND and not self._is_open
        return _NOT_OPEN if is_too_early else error.reason

    def _understand(self, message: Json) -> tuple[str, dict[str, Json]]:
        """Find the command and its arguments in what was sent. Raises: CommandFailed."""
        if not isinstance(message, dict):
            raise CommandFailed("QMP input must be a JSON object")
        name = self._check_message(message)
        command = str(message[name])
        is_known = command in _OWN or (command in COMMANDS and command in self._handler.commands())
        if not is_known or (command != OPENING and not self._is_open):
            raise CommandFailed(f"The command {command} has not been found", wire.COMMAND_NOT_FOUND)
        if name == "exec-oob":
            raise CommandFailed(f"The command {command} does not support OOB")
        arguments: dict[str, Json] = message.get("arguments", {})
        check_arguments(command, arguments)
        return command, arguments

    def _check_message(self, message: Mapping[str, Json]) -> str:
        """Look through the members of a command. Returns: the one that names it. Raises: CommandFailed."""
        found = ""
        for member, value in message.items():
            if member == "execute" or (member == "exec-oob" and self._has_oob):
                if not isinstance(value, str):
                    raise CommandFailed(f"QMP input member '{member}' must be a string")
                if found:
                    raise CommandFailed(f"QMP input member '{member}' clashes with '{found}'")
                found = member
            elif member == "arguments":
                if not isinstance(value, dict):
                    raise CommandFailed("QMP input member 'arguments' must be an object")
            elif member != "id":
                raise CommandFailed(f"QMP input member '{member}' is unexpected")
        if not found:
            raise CommandFailed("QMP input lacks member 'execute'")
        return found

    def _carry_out(self, command: str, arguments: dict[str, Any]) -> Json:
        match command:
            case "qmp_capabilities":
                if self._is_open:
                    raise CommandFailed(_OPEN_ALREADY, wire.COMMAND_NOT_FOUND)
                self._has_oob = "oob" in arguments.get("enable", [])
                return {}
            case "query-version":
                return wire.VERSION
            case "query-commands":
                known = {*_OWN, *(name for name in self._handler.commands() if name in COMMANDS)}
                return [{"name": name} for name in sorted(known)]
        return self._handler.answer(command, arguments)
