"""What goes over the wire: the greeting, answers, errors in QEMU's classes, and events with the time.

    server: greeting      client: qmp_capabilities      then: command -> answer, and events at any time

Source: docs/interop/qmp-spec.rst.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from cowtree.errors import RequestFailed

GENERIC_ERROR, COMMAND_NOT_FOUND, DEVICE_NOT_ACTIVE = "GenericError", "CommandNotFound", "DeviceNotActive"
DEVICE_NOT_FOUND, KVM_MISSING_CAP = "DeviceNotFound", "KVMMissingCap"
# Source: qapi/error.json.
ERROR_CLASSES: Final = (GENERIC_ERROR, COMMAND_NOT_FOUND, DEVICE_NOT_ACTIVE, DEVICE_NOT_FOUND, KVM_MISSING_CAP)

# The one whose vocabulary this is.
VERSION: Final = {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": "cowtree"}
CAPABILITIES: Final = ("oob",)

Json = Any


class CommandFailed(RequestFailed):
    """A command is answered with an error. Facts: reason, as QEMU's `desc`; kind, one of its classes."""

    def __init__(self, reason: str, kind: str = GENERIC_ERROR) -> None:
        super().__init__(reason=reason, kind=kind)

    @property
    def kind(self) -> str:
        """QEMU's class of the error."""
        return str(self.facts["kind"])


def encode(message: Mapping[str, Json]) -> bytes:
    """One line. A name that is no text is sent with marks where it is none."""
    text = json.dumps(message, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace").encode() + b"\r\n"


def greeting() -> bytes:
    """What is sent first."""
    return encode({"QMP": {"version": VERSION, "capabilities": CAPABILITIES}})


def answer(result: Json, mark: Mapping[str, Json]) -> bytes:
    """What a command gave; `mark` is the request's `id`, if it had one."""
    return encode({"return": result, **mark})


def refusal(kind: str, reason: str, mark: Mapping[str, Json]) -> bytes:
    """Why a command, or what should have been one, was not carried out."""
    return encode({"error": {"class": kind, "desc": reason}, **mark})


def event(name: str, data: Mapping[str, Json] | None, time_us: int) -> bytes:
    """Something has happened, so many microseconds after 1970."""
    seconds, microseconds = divmod(time_us, 1_000_000)
    stamp = {"seconds": seconds, "microseconds": microseconds}
    return encode({"timestamp": stamp, "event": name, **({} if data is None else {"data": data})})
