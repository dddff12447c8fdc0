"""QEMU's own storage daemon and its monitor, to compare with."""

import json
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

PATIENCE_S = 10
# No text has this byte, so whatever was begun is over; the end of the line is where both read on.
OVER = b'\xff\n{"execute": "query-version", "id": "over"}\n'


class Monitor:
    """A client's end of a monitor, spoken to in bytes. QEMU's greets twice those who come while it begins."""

    def __init__(self, path: Path, *, may_greet_twice: bool = False) -> None:
        self._may_greet_twice = False
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect(str(path))
        self._lines = self.socket.makefile("rb")
        self.events: list[dict[str, Any]] = []
        self.greeting = self.take()
        self._may_greet_twice = may_greet_twice

    def take(self) -> dict[str, Any]:
        """The next message, whatever it is."""
        line = self._lines.readline()
        assert line, "it ended the connection"
        message: dict[str, Any] = json.loads(line)
        return self.take() if self._may_greet_twice and "QMP" in message else message

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answers(self, data: bytes) -> list[dict[str, Any]]:
        """Everything that is said to some bytes, right or wrong."""
        self.send(data + OVER)
        found: list[dict[str, Any]] = []
        while not (found and found[-1].get("id") == "over"):
            message = self.take()
            (self.events if "event" in message else found).append(message)
        return found[:-1]

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """One answer; what is a dash in its names is an underscore here."""
        names = {name.rstrip("_").replace("_", "-"): value for name, value in arguments.items()}
        self.send(json.dumps({"execute": command, **({"arguments": names} if names else {})}).encode() + b"\n")
        while "event" in (message := self.take()):
            self.events.append(message)
        return message

    def well(self, command: str, **arguments: Any) -> Any:
        """One result."""
        answer = self.ask(command, **arguments)
        assert "return" in answer, answer
        return answer["return"]

    def wait_event(self, name: str, **data: Any) -> dict[str, Any]:
        """The first event of this name and data that was not waited for yet; what came before it is forgotten."""
        while True:
            message = self.events.pop(0) if self.events else self.take()
            if message.get("event") == name and data.items() <= message["data"].items():
                return message

    def close(self) -> None:
        self._lines.close()
        self.socket.close()


@contextmanager
def storage_daemon() -> Iterator[partial[Monitor]]:
    """A daemon of QEMU's. Yields: what connects one more client to it, which is one at a time."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "monitor")
        # It listens before it answers: the socket is ours, and is there when the daemon begins.
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(path))
            listener.listen()
            chardev = f"socket,fd={listener.fileno()},server=on,wait=off,id=monitor"
            command = ["qemu-storage-daemon", "--chardev", chardev, "--monitor", "chardev=monitor"]
            process = subprocess.Popen(command, pass_fds=[listener.fileno()], stdin=subprocess.DEVNULL, cwd=folder)
        try:
            yield partial(Monitor, path, may_greet_twice=True)
        finally:
            process.kill()
            process.wait(PATIENCE_S)
