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

-- migration 2

-- Guests. `xml` is libvirt's definition with the disks of now; `current` the snapshot on which their disks lie.
CREATE TABLE domain (
    id      INTEGER PRIMARY KEY,
    name    TEXT NOT NULL UNIQUE,
    uuid    TEXT NOT NULL UNIQUE,
    xml     TEXT NOT NULL,
    current INTEGER REFERENCES snapshot (id) ON DELETE SET NULL
) STRICT;

-- The chain of each disk as it was when a command of ours ended, the active image at depth 0.
CREATE TABLE layer (
    domain     INTEGER NOT NULL REFERENCES domain (id) ON DELETE CASCADE,
    target     TEXT    NOT NULL,
    depth      INTEGER NOT NULL,
    path       BLOB    NOT NULL,
    identity   TEXT    NOT NULL,
    size_bytes INTEGER NOT NULL,
    mtime_ns   INTEGER NOT NULL,
    PRIMARY KEY (domain, target, depth)
) STRICT, WITHOUT ROWID;

-- Moments of a domain. `xml` is its definition then; `memory` is no, internal or external. A tip was not asked for: it is
-- what a branch was when its domain was reverted to something else, and goes away when the domain comes back to it.
CREATE TABLE snapshot (
    id          INTEGER PRIMARY KEY,
    domain      INTEGER NOT NULL REFERENCES domain (id) ON DELETE CASCADE,
    name        TEXT    NOT NULL,
    parent      INTEGER REFERENCES snapshot (id) ON DELETE SET NULL,
    description TEXT    NOT NULL,
    created_ns  INTEGER NOT NULL,
    state       TEXT    NOT NULL,
    memory      TEXT    NOT NULL,
    memory_file BLOB,
    xml         TEXT    NOT NULL,
    is_tip      INTEGER NOT NULL,
    UNIQUE (domain, name)
) STRICT;
CREATE INDEX snapshot_parent ON snapshot (parent);

-- What a snapshot holds of one disk. `mode` is internal, external, manual or no. `source` is the file that shows it, by
-- itself or in its internal snapshot `internal_id`; `overlay` the file that an external snapshot made and went on with.
-- `lost` says why `source` does not show it any more.
CREATE TABLE snapshot_disk (
    snapshot    INTEGER NOT NULL REFERENCES snapshot (id) ON DELETE CASCADE,
    target      TEXT    NOT NULL,
    mode        TEXT    NOT NULL,
    source      BLOB    NOT NULL,
    format      TEXT    NOT NULL,
    overlay     BLOB,
    internal_id TEXT,
    lost        TEXT,
    PRIMARY KEY (snapshot, target)
) STRICT, WITHOUT ROWID;
CREATE INDEX snapshot_disk_source ON snapshot_disk (source);

-- Files that we made: no others are removed unasked. `identity` is device:inode.
CREATE TABLE made (
    path     BLOB PRIMARY KEY,
    identity TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- What is being done to a domain's files; written before they are touched, and removed with the change that it leads to.
CREATE TABLE intent (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    domain     INTEGER NOT NULL REFERENCES domain (id) ON DELETE CASCADE,
    verb       TEXT    NOT NULL,
    content    TEXT    NOT NULL,
    started_ns INTEGER NOT NULL
) STRICT;

-- Which snapshots of a domain are kept, and how deep its chains may be; NULL for as deep as they like.
CREATE TABLE policy (
    domain    INTEGER PRIMARY KEY REFERENCES domain (id) ON DELETE CASCADE,
    keep      TEXT NOT NULL,
    max_depth INTEGER
) STRICT;

-- migration 3

-- Journals of relocations that were begun and are not done: `digest` is of all that stands in one.
CREATE TABLE journal (
    path   BLOB PRIMARY KEY,
    digest BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- migration 4

-- Whether a snapshot was found in an image when the catalogue was rebuilt, and nobody knows who took it.
ALTER TABLE snapshot ADD COLUMN is_found INTEGER NOT NULL DEFAULT 0;

-- migration 5

-- How fast merges were: bytes read and written in a second, for each device.
CREATE TABLE speed (
    device      TEXT PRIMARY KEY,
    bytes_per_s INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
