"""The catalogue's database: opened, brought up to date, read and changed.

- Every change is one transaction, durable when the call returns. A process that is killed leaves the state before it or
  after it; several processes wait for each other.
- Nothing that is true of an image is only here: chains are read from the images each time. A catalogue that is lost
  costs the names of pools, the history of merges, policies, and what domains have beside disks; snapshots can be found
  again, for overlays tell of them.
- Whatever SQLite says becomes `CatalogError` with the path.
"""

import os
import re
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from cowtree.errors import CatalogError

VARIABLE: Final = "COWTREE_CATALOG"
SYSTEM_PATH: Final = "/var/lib/cowtree/catalog.db"
FOLDER_MODE: Final = 0o700
FILE_MODE: Final = 0o600
# "cowt", which tells the catalogue from any other SQLite file.
APPLICATION_ID: Final = 0x636F7774
WAIT_S: Final = 10.0
RETRY_S: Final = 0.05
_SCHEMA: Final = os.path.join(os.path.dirname(__file__), "schema.sql")
_MEMORY: Final = ":memory:"
_HEADER: Final = b"SQLite format 3\0"

Identity = tuple[int, int]


class Merge(NamedTuple):
    """One merge of the history. Units: nanoseconds since 1970; None for what has not happened."""

    id: int
    plan: str
    started_ns: int
    finished_ns: int | None
    undone_ns: int | None


def default_path(environment: Mapping[str, str] = os.environ) -> str:
    """Where the catalogue is when nobody says where: one for the machine, and one for each ordinary user."""
    if named := environment.get(VARIABLE):
        return named
    if os.geteuid() == 0:
        return SYSTEM_PATH
    home = environment.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(home, "cowtree", "catalog.db")


def migrations() -> list[str]:
    """The statements of each migration, the first one first."""
    with open(_SCHEMA, encoding="utf-8") as file:
        parts = re.split(r"^-- migration (\d+)\n", file.read(), flags=re.MULTILINE)
    numbers = [int(number) for number in parts[1::2]]
    if numbers != list(range(1, len(numbers) + 1)):
        raise ValueError(f"migrations are numbered {numbers}")
    return parts[2::2]


def open_catalog(
    path: str | None = None, *, creates: bool = True, clock: Callable[[], int] = time.time_ns
) -> "Catalog":
    """Open the catalogue, with all its tables. One that is not there is made, or else, where nothing shall be made, is
    empty and forgets all that it is told.
    Raises: CatalogError.
    """
    path = os.path.abspath(path or default_path())
    with _failing(path):
        if not creates and not os.path.exists(path):
            return Catalog(path, _prepare(_MEMORY), clock)
        if creates:
            _make(path)
        _refuse_other_files(path)
        return Catalog(path, _prepare(path), clock)


def _make(path: str) -> None:
    """Make folder and file for nobody else's eyes; what is there stays."""
    os.makedirs(os.path.dirname(path), FOLDER_MODE, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    except FileExistsError:
        return
    os.close(descriptor)


def _refuse_other_files(path: str) -> None:
    """Refuse what is no database, before SQLite touches it. Raises: CatalogError."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise CatalogError(path=path, reason="it is not a file")
    with open(path, "rb") as file:
        data = file.read(len(_HEADER))
    if data not in (b"", _HEADER):
        raise CatalogError(path=path, reason="it is not a catalogue, or it is damaged", hint=HINT_DAMAGED)


HINT_DAMAGED: Final = "name the right file; or cowtree catalog rebuild FOLDER, which moves it aside and makes a new one"


def _prepare(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=WAIT_S, isolation_level=None)
    try:
        connection.execute("PRAGMA foreign_keys = ON")
        # What a file from elsewhere says of its tables must not call anything.
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA synchronous = FULL")
        if _version(connection, path) < len(migrations()):
            _migrate(connection, path)
        return connection
    except BaseException:
        connection.close()
        raise


def _version(connection: sqlite3.Connection, path: str) -> int:
    """The number of the last migration. Raises: CatalogError for what is not ours, or newer than we are."""
    version, application = (
        int(connection.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("user_version", "application_id")
    )
    if application != APPLICATION_ID and connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
        raise CatalogError(path=path, reason="it is the database of another program", hint="name another file")
    if version > len(migrations()):
        reason = f"it was written by a newer cowtree (its tables are of version {version}, ours of {len(migrations())})"
        raise CatalogError(path=path, reason=reason, hint="use the newer cowtree")
    return version


def _migrate(connection: sqlite3.Connection, path: str) -> None:
    _wait_for(lambda: connection.execute("PRAGMA journal_mode = WAL"))
    with _transaction(connection):
        # Another process may have been faster.
        for part in migrations()[_version(connection, path) :]:
            for statement in _statements(part):
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(migrations())}")


def _wait_for(act: Callable[[], object]) -> None:
    """Do what SQLite does not wait for when another process is in the way."""
    end_s = time.monotonic() + WAIT_S
    while True:
        try:
            act()
            return
        except sqlite3.OperationalError:
            if time.monotonic() > end_s:
                raise
            time.sleep(RETRY_S)


def _statements(text: str) -> Iterator[str]:
    statement = ""
    for line in text.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def _failing(path: str) -> Iterator[None]:
    """Turn what SQLite and the system say into CatalogError."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise CatalogError(path=path, reason=str(error)) from error
    except sqlite3.DatabaseError as error:
        raise CatalogError(path=path, reason=str(error), hint=HINT_DAMAGED) from error
    except OSError as error:
        raise CatalogError(path=path, reason=str(error.strerror)) from error


class Catalog:
    """An open catalogue. Not to be shared by threads."""

    def __init__(self, path: str, connection: sqlite3.Connection, clock: Callable[[], int]) -> None:
        self.path = path
        self._connection = connection
        self._clock = clock

    def __enter__(self) -> "Catalog":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the file back. May be called twice."""
        self._connection.close()

    def pools(self) -> list[str]:
        """The folders that are searched when nobody names one, sorted."""
        return [os.fsdecode(path) for (path,) in self.read("SELECT path FROM pool ORDER BY path")]

    def add_pool(self, path: str) -> bool:
        """Remember a folder. Returns: whether it was new."""
        return self.change("INSERT OR IGNORE INTO pool VALUES (?)", os.fsencode(path)) > 0

    def remove_pool(self, path: str) -> bool:
        """Forget a folder. Returns: whether it was known."""
        return self.change("DELETE FROM pool WHERE path = ?", os.fsencode(path)) > 0

    def remember_base(self, overlay: Identity, link: bytes, record: bytes) -> None:
        """Keep what is known of an overlay's base, in place of what was known before."""
        self.change("INSERT OR REPLACE INTO base VALUES (?, ?, ?)", _key(overlay), link, record)

    def recall_base(self, overlay: Identity, link: bytes) -> bytes | None:
        """What is known of an overlay's base, when that was noted for this link."""
        found = self.read("SELECT record FROM base WHERE overlay = ? AND link = ?", _key(overlay), link)
        return bytes(found[0][0]) if found else None

    def begin_merge(self, plan: str) -> int:
        """Note that a merge begins. Returns: its number."""
        with _failing(self.path), _transaction(self._connection):
            words = "INSERT INTO merge (plan, started_ns) VALUES (?, ?) RETURNING id"
            return int(self._connection.execute(words, (plan, self._clock())).fetchone()[0])

    def finish_merge(self, number: int, plan: str | None = None) -> None:
        """Note that a merge is done, and what is known of it then."""
        words = "UPDATE merge SET finished_ns = ?, plan = coalesce(?, plan) WHERE id = ?"
        self.change(words, self._clock(), plan, number)

    def mark_undone(self, number: int) -> None:
        """Note that a merge was undone."""
        self.change("UPDATE merge SET undone_ns = ? WHERE id = ?", self._clock(), number)

    def merges(self) -> list[Merge]:
        """All merges that were not undone, the one first that was begun last."""
        columns = ", ".join(Merge._fields)
        return [
            Merge(*row) for row in self.read(f"SELECT {columns} FROM merge WHERE undone_ns IS NULL ORDER BY id DESC")
        ]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Let all changes within be one: when this ends well they are all durable, else none was made. Within another
        one it is a part of that.
        """
        if self._connection.in_transaction:
            yield
            return
        with _failing(self.path), _transaction(self._connection):
            yield

    def read(self, words: str, *values: object) -> list[tuple[Any, ...]]:
        """All rows that a statement finds; for the modules beside this one."""
        with _failing(self.path):
            return self._connection.execute(words, values).fetchall()

    def change(self, words: str, *values: object) -> int:
        """Run one statement, as a transaction of its own unless others are made `together`. Returns: how many rows it
        changed. For the modules beside this one.
        """
        return self._run(words, values).rowcount

    def add(self, words: str, *values: object) -> int:
        """The same for a row that is added. Returns: its number."""
        return int(self._run(words, values).lastrowid or 0)

    def now_ns(self) -> int:
        """The time, as the catalogue tells it."""
        return self._clock()

    def _run(self, words: str, values: Sequence[object]) -> sqlite3.Cursor:
        with self.together(), _failing(self.path):
            return self._connection.execute(words, values)


def _key(identity: Identity) -> str:
    """An inode number has 64 bits without a sign, more than SQLite's integers hold."""
    return f"{identity[0]}:{identity[1]}"
