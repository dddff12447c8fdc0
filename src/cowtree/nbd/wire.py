"""Every message of the protocol, as the specification prints it; all integers are big-endian.

    handshake      server: GREETING, client: flags; then options: OPTION + data, answered by OPTION_REPLY + data
    transmission   client: REQUEST (+ data), server: SIMPLE_REPLY (+ data), or CHUNK + payload, the last one with DONE

Source: the NBD protocol, https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md.
"""

import errno
import struct
from typing import Final

from cowtree.records import record

# Source: "Fixed newstyle negotiation".
INIT_MAGIC: Final = b"NBDMAGIC"
OPTION_MAGIC: Final = b"IHAVEOPT"
REPLY_MAGIC: Final = 0x3E889045565A9
GREETING: Final = record((0, "S8", "magic"), (8, "S8", "option_magic"), (16, ">u2", "flags"), size=18)
CLIENT_FLAGS: Final = struct.Struct(">I")
OPTION: Final = record((0, "S8", "magic"), (8, ">u4", "option"), (12, ">u4", "length"), size=16)
OPTION_REPLY: Final = record(
    (0, ">u8", "magic"), (8, ">u4", "option"), (12, ">u4", "reply"), (16, ">u4", "length"), size=20
)

# Handshake flags; a client's are the same bits.
FLAG_FIXED_NEWSTYLE: Final = 1 << 0
FLAG_NO_ZEROES: Final = 1 << 1
NEWSTYLE_ZEROES: Final = bytes(124)
EXPORT: Final = record((0, ">u8", "size_bytes"), (8, ">u2", "flags"), size=10)

# Source: "Option types".
OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_STARTTLS = 1, 2, 3, 5
OPT_INFO, OPT_GO, OPT_STRUCTURED_REPLY, OPT_LIST_META, OPT_SET_META = 6, 7, 8, 9, 10

# Source: "Option reply types".
REP_ACK, REP_SERVER, REP_INFO, REP_META_CONTEXT = 1, 2, 3, 4
REP_ERROR: Final = 1 << 31
ERR_UNSUP, ERR_POLICY, ERR_INVALID, ERR_UNKNOWN = (REP_ERROR | number for number in (1, 2, 3, 6))
ERR_TLS_REQD, ERR_SHUTDOWN, ERR_BLOCK_SIZE_REQD, ERR_TOO_BIG = (REP_ERROR | number for number in (5, 7, 8, 9))
ERRORS_OF_OPTIONS: Final = {
    ERR_UNSUP: "the server does not know this option",
    ERR_POLICY: "the server does not allow it",
    ERR_INVALID: "the option makes no sense",
    ERR_TLS_REQD: "the server wants TLS first",
    ERR_UNKNOWN: "the server has no export of this name",
    ERR_SHUTDOWN: "the server is going down",
    ERR_BLOCK_SIZE_REQD: "the server wants its block sizes to be obeyed",
    ERR_TOO_BIG: "the request is too large",
}

# Source: "NBD_OPT_INFO and NBD_OPT_GO"; what is told of an export.
INFO_EXPORT, INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE = 0, 1, 2, 3
INFO: Final = struct.Struct(">H")
INFO_EXPORT_REPLY: Final = record((0, ">u2", "info"), (2, ">u8", "size_bytes"), (10, ">u2", "flags"), size=12)
INFO_BLOCK_SIZE_REPLY: Final = record(
    (0, ">u2", "info"), (2, ">u4", "minimum"), (6, ">u4", "preferred"), (10, ">u4", "maximum"), size=14
)
COUNT: Final = struct.Struct(">I")

# Source: "Transmission flags".
HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_FUA = 1 << 0, 1 << 1, 1 << 2, 1 << 3
SEND_TRIM, SEND_WRITE_ZEROES, SEND_DF = 1 << 5, 1 << 6, 1 << 7
CAN_MULTI_CONN, SEND_CACHE, SEND_FAST_ZERO = 1 << 8, 1 << 10, 1 << 11

# Source: "Request message".
REQUEST_MAGIC: Final = 0x25609513
REQUEST: Final = record(
    (0, ">u4", "magic"),
    (4, ">u2", "flags"),
    (6, ">u2", "type"),
    (8, ">u8", "cookie"),
    (16, ">u8", "offset"),
    (24, ">u4", "length"),
    size=28,
)
CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH, CMD_TRIM, CMD_CACHE, CMD_WRITE_ZEROES, CMD_BLOCK_STATUS = range(8)
NAMES_OF_COMMANDS: Final = ("read", "write", "disconnect", "flush", "trim", "cache", "write zeroes", "block status")
CMD_FLAG_FUA, CMD_FLAG_NO_HOLE, CMD_FLAG_DF, CMD_FLAG_REQ_ONE, CMD_FLAG_FAST_ZERO = (1 << bit for bit in range(5))

# Source: "Simple reply message" and "Structured reply chunk message".
SIMPLE_REPLY_MAGIC: Final = 0x67446698
SIMPLE_REPLY: Final = record((0, ">u4", "magic"), (4, ">u4", "error"), (8, ">u8", "cookie"), size=16)
CHUNK_MAGIC: Final = 0x668E33EF
CHUNK: Final = record(
    (0, ">u4", "magic"), (4, ">u2", "flags"), (6, ">u2", "type"), (8, ">u8", "cookie"), (16, ">u4", "length"), size=20
)
CHUNK_DONE: Final = 1 << 0
CHUNK_NONE, CHUNK_OFFSET_DATA, CHUNK_OFFSET_HOLE, CHUNK_BLOCK_STATUS = 0, 1, 2, 5
CHUNK_ERROR, CHUNK_ERROR_OFFSET = (1 << 15) | 1, (1 << 15) | 2
OFFSET: Final = struct.Struct(">Q")
HOLE: Final = struct.Struct(">QI")
STATUS: Final = struct.Struct(">II")
ERROR_HEAD: Final = struct.Struct(">IH")

# Source: "Error values".
EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN = 1, 5, 12, 22, 28, 75, 95, 108
ERRORS: Final = {
    **{errno.EPERM: EPERM, errno.EROFS: EPERM, errno.EACCES: EPERM, errno.EIO: EIO, errno.ENOMEM: ENOMEM},
    **{errno.EINVAL: EINVAL, errno.ENOSPC: ENOSPC, errno.EDQUOT: ENOSPC, errno.EFBIG: ENOSPC},
    **{errno.EOVERFLOW: EOVERFLOW, errno.EOPNOTSUPP: ENOTSUP, errno.ESHUTDOWN: ESHUTDOWN},
}

# Source: "base:allocation" metadata context.
BASE_ALLOCATION: Final = "base:allocation"
STATE_HOLE, STATE_ZERO = 1 << 0, 1 << 1

# Limits of ours: see the page on safety. A name has at most 4096 bytes by the protocol, a payload 32 MiB by custom.
OPTION_BYTES_MAX: Final = 4096
NAME_BYTES_MAX: Final = 4096
OPTION_COUNT_MAX: Final = 64
PAYLOAD_BYTES_MAX: Final = 32 << 20
EXTENT_COUNT_MAX: Final = 1 << 16


def error_number(code: int | None) -> int:
    """The protocol's number for one of the system's; EIO for what has none."""
    return ERRORS.get(code or errno.EIO, EIO)


def option_reply(option: int, reply: int, data: bytes = b"") -> bytes:
    """One answer to an option."""
    return OPTION_REPLY.pack(magic=REPLY_MAGIC, option=option, reply=reply, length=len(data)) + data


_REQUEST: Final = REQUEST.layout
_SIMPLE: Final = SIMPLE_REPLY.layout
_CHUNK: Final = CHUNK.layout


def simple_reply(cookie: int, error: int = 0) -> bytes:
    """The head of an answer of the old kind; what was read follows it."""
    return _SIMPLE.pack(SIMPLE_REPLY_MAGIC, error, cookie)


def chunk(cookie: int, kind: int, payload: bytes = b"", *, more_bytes: int = 0, is_last: bool = True) -> bytes:
    """A chunk of a structured reply, with the beginning of its payload; `more_bytes` of it follow."""
    flags = CHUNK_DONE if is_last else 0
    return _CHUNK.pack(CHUNK_MAGIC, flags, kind, cookie, len(payload) + more_bytes) + payload


def error_chunk(cookie: int, error: int, message: str = "") -> bytes:
    """The chunk that says that a request failed, and why."""
    text = message.encode("utf-8", "replace")[:NAME_BYTES_MAX]
    return chunk(cookie, CHUNK_ERROR, ERROR_HEAD.pack(error, len(text)) + text)


def request(kind: int, cookie: int, offset: int = 0, length: int = 0, flags: int = 0) -> bytes:
    """A request; what is written follows it."""
    return _REQUEST.pack(REQUEST_MAGIC, flags, kind, cookie, offset, length)


def option(number: int, data: bytes = b"") -> bytes:
    """An option as a client sends it."""
    return OPTION.pack(magic=OPTION_MAGIC, option=number, length=len(data)) + data


def counted(text: str) -> bytes:
    """A string with its length before it, as names are sent within options."""
    data = text.encode("utf-8", "surrogateescape")
    return COUNT.pack(len(data)) + data
