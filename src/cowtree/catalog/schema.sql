-- The catalogue's tables. Each numbered part is one migration: it is run once, in one transaction, and its number becomes
-- the database's user_version. A part that was released is never changed; what changes later is a new part.
-- Paths are blobs: file names are bytes. Times are nanoseconds since 1970.

-- migration 1

-- Folders whose images are searched when nobody names a folder.
CREATE TABLE pool (
    path BLOB PRIMARY KEY
) STRICT, WITHOUT ROWID;

-- What was known of an overlay's base when the overlay was made, for overlays whose header has no room for it.
-- `overlay` is device:inode; `link` the backing format, a zero byte, and the backing file name.
CREATE TABLE base (
    overlay TEXT PRIMARY KEY,
    link    BLOB NOT NULL,
    record  BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- Merges, the last one last. `plan` is JSON, which nobody here reads.
CREATE TABLE merge (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    plan        TEXT    NOT NULL,
    started_ns  INTEGER NOT NULL,
    finished_ns INTEGER,
    undone_ns   INTEGER
) STRICT;
