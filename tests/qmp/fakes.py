"""A handler that knows a few commands and no disk, and a server around it."""

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cowtree.errors import StorageFailed
from cowtree.qmp.schema import COMMANDS
from cowtree.qmp.server import LIMITS, Limits, Server
from cowtree.qmp.wire import DEVICE_NOT_ACTIVE, CommandFailed
from cowtree.sockets import listen_on_path


class Fake:
    """Answers as a daemon does in which nothing is."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.is_quit = threading.Event()
        self.pause = threading.Event()
        self.pause.set()
        self.answer_bytes = 0

    def commands(self) -> Collection[str]:
        return COMMANDS.keys() - {"block-job-change", "query-block"} | {"no-word-of-stock"}

    def answer(self, command: str, arguments: dict[str, Any]) -> Any:
        self.asked.append((command, arguments))
        assert self.pause.wait(10)
        match command:
            case "quit":
                self.is_quit.set()
            case "query-jobs" | "query-block-jobs":
                return ["x" * self.answer_bytes] if self.answer_bytes else []
            case "blockdev-add":
                raise StorageFailed(path="a", action="open", reason="No such file or directory", errno=2)
            case "nbd-server-stop":
                raise CommandFailed("NBD server not running")
            case _ if command.startswith("block-job-"):
                name = arguments.get("device", arguments.get("id"))
                raise CommandFailed(f"Block job '{name}' not found", DEVICE_NOT_ACTIVE)
            case _ if command.startswith("job-"):
                raise CommandFailed("Job not found")
        return {}


@contextmanager
def serving(path: Path, fake: Fake, limits: Limits = LIMITS, told: list[str] | None = None) -> Iterator[Server]:
    server = Server(fake, limits=limits, tell=(told if told is not None else []).append)
    server.listen(listen_on_path(str(path)))
    try:
        yield server
    finally:
        fake.pause.set()
        server.stop()
