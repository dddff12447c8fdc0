"""The vocabulary: every command, result and event, in QEMU's own names and order.

Commands take a struct or a union of `TYPES`. What QEMU knows and no image needs is left out: drivers of other
protocols, exports that are not NBD; they are refused as words that do not exist. `block-job-change` came with QEMU 8.2.

Source: qapi/block-core.json, block-export.json, job.json, transaction.json, sockets.json, control.json of QEMU 7.2.
"""

from typing import Final, NamedTuple

from cowtree.qmp.shapes import Alternate, Enum, Members, Shape, Shapes, Struct, Type, Union
from cowtree.qmp.wire import Json

JOB_STATES: Final = (
    *("undefined", "created", "running", "paused", "ready", "standby"),
    *("waiting", "pending", "aborting", "concluded", "null"),
)
JOB_VERBS: Final = ("cancel", "pause", "resume", "set-speed", "complete", "dismiss", "finalize", "change")
JOB_TYPES: Final = (
    *("commit", "stream", "mirror", "backup", "create", "amend"),
    *("snapshot-load", "snapshot-save", "snapshot-delete"),
)
SYNC_MODES: Final = ("top", "full", "none", "incremental", "bitmap")
ON_ERROR: Final = ("report", "ignore", "enospc", "stop", "auto")

_FORMATS: Final = ("bochs", "cloop", "compress", "dmg", "parallels", "snapshot-access", "vdi", "vhdx", "vpc")
_FORMATS_WITH_BACKING: Final = ("qed", "vmdk")
_FILES: Final = ("file", "host_cdrom", "host_device")
_DRIVERS: Final = {
    **dict.fromkeys(_FORMATS, "BlockdevOptionsGenericFormat"),
    **dict.fromkeys(_FORMATS_WITH_BACKING, "BlockdevOptionsGenericCOWFormat"),
    **dict.fromkeys(_FILES, "BlockdevOptionsFile"),
    **dict.fromkeys(("null-aio", "null-co"), "BlockdevOptionsNull"),
    "copy-before-write": "BlockdevOptionsCbw",
    "copy-on-read": "BlockdevOptionsCor",
    "luks": "BlockdevOptionsLUKS",
    "nbd": "BlockdevOptionsNbd",
    "preallocate": "BlockdevOptionsPreallocate",
    "qcow": "BlockdevOptionsQcow",
    "qcow2": "BlockdevOptionsQcow2",
    "raw": "BlockdevOptionsRaw",
    "throttle": "BlockdevOptionsThrottle",
}

_ENUMS: Final = {
    "BitmapSyncMode": ("on-success", "never", "always"),
    "BlockdevAioOptions": ("threads", "native", "io_uring"),
    "BlockDeviceIoStatus": ("ok", "failed", "nospace"),
    "BlockdevDetectZeroesOptions": ("off", "on", "unmap"),
    "BlockdevDiscardOptions": ("ignore", "unmap"),
    "BlockdevDriver": tuple(sorted(_DRIVERS)),
    "BlockdevOnError": ON_ERROR,
    "BlockdevQcow2EncryptionFormat": ("aes", "luks"),
    "BlockdevQcowEncryptionFormat": ("aes",),
    "BlockErrorAction": ("ignore", "report", "stop"),
    "BlockExportRemoveMode": ("safe", "hard"),
    "BlockExportType": ("nbd",),
    "ImageInfoSpecificKind": ("qcow2", "luks"),
    "IoOperationType": ("read", "write"),
    "JobStatus": JOB_STATES,
    "JobType": JOB_TYPES,
    "MirrorCopyMode": ("background", "write-blocking"),
    "MirrorSyncMode": SYNC_MODES,
    "NewImageMode": ("existing", "absolute-paths"),
    "OnCbwError": ("break-guest-write", "break-snapshot"),
    "OnOffAuto": ("auto", "on", "off"),
    "Qcow2BitmapInfoFlags": ("in-use", "auto"),
    "Qcow2CompressionType": ("zlib", "zstd"),
    "Qcow2OverlapCheckMode": ("none", "constant", "cached", "all"),
    "QCryptoCipherAlgorithm": (
        *("aes-128", "aes-192", "aes-256", "des", "3des", "cast5-128"),
        *("serpent-128", "serpent-192", "serpent-256", "twofish-128", "twofish-192", "twofish-256"),
    ),
    "QCryptoCipherMode": ("ecb", "cbc", "xts", "ctr"),
    "QCryptoHashAlgorithm": ("md5", "sha1", "sha224", "sha256", "sha384", "sha512", "ripemd160"),
    "QCryptoIVGenAlgorithm": ("plain", "plain64", "essiv"),
    "QMPCapability": ("oob",),
    "SocketAddressType": ("inet", "unix", "vsock", "fd"),
    "TransactionActionKind": (
        *("abort", "block-dirty-bitmap-add", "block-dirty-bitmap-remove", "block-dirty-bitmap-clear"),
        *("block-dirty-bitmap-enable", "block-dirty-bitmap-disable", "block-dirty-bitmap-merge", "blockdev-backup"),
        *("blockdev-snapshot", "blockdev-snapshot-internal-sync", "blockdev-snapshot-sync", "drive-backup"),
    ),
    "ActionCompletionMode": ("individual", "grouped"),
}

_FILE: Final[Members] = {"file": "BlockdevRef"}
_BACKED: Final[Members] = {**_FILE, "*backing": "BlockdevRefOrNull"}
_BITMAP: Final[Members] = {"node": "str", "name": "str"}
_END: Final[Members] = {"*auto-finalize": "bool", "*auto-dismiss": "bool"}
_ON_ERRORS: Final[Members] = {"*on-source-error": "BlockdevOnError", "*on-target-error": "BlockdevOnError"}
_BACKUP: Final[Members] = {
    **{"*job-id": "str", "device": "str", "sync": "MirrorSyncMode", "*speed": "int", "*bitmap": "str"},
    **{"*bitmap-mode": "BitmapSyncMode", "*compress": "bool", **_ON_ERRORS, **_END},
    **{"*filter-node-name": "str", "*x-perf": "BackupPerf"},
}
_LIMITS: Final = ("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr")
_JOB_EVENT: Final[Members] = {"type": "JobType", "device": "str", "len": "int", "offset": "int", "speed": "int"}

# What a client sends.
_ARGUMENTS: Final[dict[str, Members]] = {
    "BackupPerf": {"*use-copy-range": "bool", "*max-workers": "int", "*max-chunk": "int"},
    "BlockDirtyBitmap": _BITMAP,
    "BlockDirtyBitmapAdd": {**_BITMAP, "*granularity": "uint32", "*persistent": "bool", "*disabled": "bool"},
    "BlockDirtyBitmapMerge": {"node": "str", "target": "str", "bitmaps": ["BlockDirtyBitmapOrStr"]},
    "BlockdevBackup": {**_BACKUP, "target": "str"},
    "DriveBackup": {**_BACKUP, "target": "str", "*format": "str", "*mode": "NewImageMode"},
    "BlockdevCacheOptions": {"*direct": "bool", "*no-flush": "bool"},
    "BlockdevSnapshot": {"node": "str", "overlay": "str"},
    "BlockdevSnapshotInternal": {"device": "str", "name": "str"},
    "BlockdevSnapshotSync": {
        **{"*device": "str", "*node-name": "str", "snapshot-file": "str", "*snapshot-node-name": "str"},
        **{"*format": "str", "*mode": "NewImageMode"},
    },
    "BlockdevOptionsGenericFormat": _FILE,
    "BlockdevOptionsGenericCOWFormat": _BACKED,
    "BlockdevOptionsCbw": {
        **{**_FILE, "target": "BlockdevRef", "*bitmap": "BlockDirtyBitmap"},
        **{"*on-cbw-error": "OnCbwError", "*cbw-timeout": "uint32"},
    },
    "BlockdevOptionsCor": {**_FILE, "*bottom": "str"},
    "BlockdevOptionsFile": {
        **{"filename": "str", "*pr-manager": "str", "*locking": "OnOffAuto", "*aio": "BlockdevAioOptions"},
        **{"*aio-max-batch": "int", "*drop-cache": "bool", "*x-check-cache-dropped": "bool"},
    },
    "BlockdevOptionsLUKS": {**_FILE, "*key-secret": "str"},
    "BlockdevOptionsNbd": {
        **{"server": "SocketAddress", "*export": "str", "*tls-creds": "str", "*tls-hostname": "str"},
        **{"*x-dirty-bitmap": "str", "*reconnect-delay": "uint32", "*open-timeout": "uint32"},
    },
    "BlockdevOptionsNull": {"*size": "int", "*latency-ns": "uint64", "*read-zeroes": "bool"},
    "BlockdevOptionsPreallocate": {**_FILE, "*prealloc-align": "int", "*prealloc-size": "int"},
    "BlockdevOptionsQcow": {**_BACKED, "*encrypt": "BlockdevQcowEncryption"},
    "BlockdevOptionsQcow2": {
        **{**_BACKED, "*lazy-refcounts": "bool", "*pass-discard-request": "bool", "*pass-discard-snapshot": "bool"},
        **{"*pass-discard-other": "bool", "*overlap-check": "Qcow2OverlapChecks", "*cache-size": "int"},
        **{"*l2-cache-size": "int", "*l2-cache-entry-size": "int", "*refcount-cache-size": "int"},
        **{"*cache-clean-interval": "int", "*encrypt": "BlockdevQcow2Encryption", "*data-file": "BlockdevRef"},
    },
    "BlockdevOptionsRaw": {**_FILE, "*offset": "int", "*size": "int"},
    "BlockdevOptionsThrottle": {"throttle-group": "str", **_FILE},
    "BlockExportOptionsNbd": {
        **{"*name": "str", "*description": "str", "*bitmaps": ["BlockDirtyBitmapOrStr"], "*allocation-depth": "bool"}
    },
    "FdSocketAddress": {"str": "str"},
    "InetSocketAddress": {
        **{"host": "str", "port": "str", "*numeric": "bool", "*to": "uint16", "*ipv4": "bool", "*ipv6": "bool"},
        **{"*keep-alive": "bool", "*mptcp": "bool"},
    },
    "QCryptoBlockOptionsQCow": {"*key-secret": "str"},
    "QCryptoBlockOptionsLUKS": {"*key-secret": "str"},
    "Qcow2OverlapCheckFlags": {
        **{"*template": "Qcow2OverlapCheckMode", "*main-header": "bool", "*active-l1": "bool", "*active-l2": "bool"},
        **{"*refcount-table": "bool", "*refcount-block": "bool", "*snapshot-table": "bool", "*inactive-l1": "bool"},
        **{"*inactive-l2": "bool", "*bitmap-directory": "bool"},
    },
    "TransactionProperties": {"*completion-mode": "ActionCompletionMode"},
    "UnixSocketAddress": {"path": "str", "*abstract": "bool", "*tight": "bool"},
    "VsockSocketAddress": {"cid": "str", "port": "str"},
}

# What it is told.
_RESULTS: Final[dict[str, Members]] = {
    "BlockDeviceInfo": {
        **{"file": "str", "*node-name": "str", "ro": "bool", "drv": "str", "*backing_file": "str"},
        **{"backing_file_depth": "int", "encrypted": "bool", "detect_zeroes": "BlockdevDetectZeroesOptions"},
        **dict.fromkeys(_LIMITS, "int"),
        **{"image": "ImageInfo"},
        **{f"*{name}_max": "int" for name in _LIMITS},
        **{f"*{name}_max_length": "int" for name in _LIMITS},
        **{"*iops_size": "int", "*group": "str", "cache": "BlockdevCacheInfo", "write_threshold": "int"},
        **{"*dirty-bitmaps": ["BlockDirtyInfo"]},
    },
    "BlockDirtyInfo": {
        **{"*name": "str", "count": "int", "granularity": "uint32", "recording": "bool", "busy": "bool"},
        **{"persistent": "bool", "*inconsistent": "bool"},
    },
    "BlockExportInfo": {"id": "str", "type": "BlockExportType", "node-name": "str", "shutting-down": "bool"},
    "BlockInfo": {
        **{"device": "str", "*qdev": "str", "type": "str", "removable": "bool", "locked": "bool"},
        **{"*inserted": "BlockDeviceInfo", "*tray_open": "bool", "*io-status": "BlockDeviceIoStatus"},
    },
    "BlockJobInfo": {
        **{"type": "str", "device": "str", "len": "int", "offset": "int", "busy": "bool", "paused": "bool"},
        **{"speed": "int", "io-status": "BlockDeviceIoStatus", "ready": "bool", "status": "JobStatus"},
        **{"auto-finalize": "bool", "auto-dismiss": "bool", "*error": "str"},
    },
    "BlockdevCacheInfo": {"writeback": "bool", "direct": "bool", "no-flush": "bool"},
    "CommandInfo": {"name": "str"},
    "Empty": {},
    "ImageInfo": {
        **{"filename": "str", "format": "str", "*dirty-flag": "bool", "*actual-size": "int", "virtual-size": "int"},
        **{"*cluster-size": "int", "*encrypted": "bool", "*compressed": "bool", "*backing-filename": "str"},
        **{"*full-backing-filename": "str", "*backing-filename-format": "str", "*snapshots": ["SnapshotInfo"]},
        **{"*backing-image": "ImageInfo", "*format-specific": "ImageInfoSpecific"},
    },
    "ImageInfoSpecificQCow2": {
        **{"compat": "str", "*data-file": "str", "*data-file-raw": "bool", "*extended-l2": "bool"},
        **{"*lazy-refcounts": "bool", "*corrupt": "bool", "refcount-bits": "int"},
        **{"*encrypt": "ImageInfoSpecificQCow2Encryption", "*bitmaps": ["Qcow2BitmapInfo"]},
        **{"compression-type": "Qcow2CompressionType"},
    },
    "ImageInfoSpecificQCow2Wrapper": {"data": "ImageInfoSpecificQCow2"},
    "ImageInfoSpecificLUKSWrapper": {"data": "QCryptoBlockInfoLUKS"},
    "JobInfo": {
        **{"id": "str", "type": "JobType", "status": "JobStatus", "current-progress": "int", "total-progress": "int"},
        **{"*error": "str"},
    },
    "QCryptoBlockInfoLUKS": {
        **{"cipher-alg": "QCryptoCipherAlgorithm", "cipher-mode": "QCryptoCipherMode"},
        **{"ivgen-alg": "QCryptoIVGenAlgorithm", "*ivgen-hash-alg": "QCryptoHashAlgorithm"},
        **{"hash-alg": "QCryptoHashAlgorithm", "payload-offset": "int", "master-key-iters": "int", "uuid": "str"},
        **{"slots": ["QCryptoBlockInfoLUKSSlot"]},
    },
    "QCryptoBlockInfoLUKSSlot": {"active": "bool", "*iters": "int", "*stripes": "int", "key-offset": "int"},
    "Qcow2BitmapInfo": {"name": "str", "granularity": "uint32", "flags": ["Qcow2BitmapInfoFlags"]},
    "SnapshotInfo": {
        **{"id": "str", "name": "str", "vm-state-size": "int", "date-sec": "int", "date-nsec": "int"},
        **{"vm-clock-sec": "int", "vm-clock-nsec": "int", "*icount": "int"},
    },
    "VersionInfo": {"qemu": "VersionTriple", "package": "str"},
    "VersionTriple": {"major": "int", "minor": "int", "micro": "int"},
}


def _wrapped(names: dict[str, str]) -> dict[str, Shape]:
    """Structs whose only member is `data`, one for each of these types."""
    return {f"{name}Wrapper": Struct({"data": name}) for name in names.values()}


_ADDRESSES: Final = {
    **{"inet": "InetSocketAddress", "unix": "UnixSocketAddress", "vsock": "VsockSocketAddress"},
    **{"fd": "FdSocketAddress"},
}
_ACTIONS: Final = {
    "abort": "Empty",
    "block-dirty-bitmap-add": "BlockDirtyBitmapAdd",
    "block-dirty-bitmap-merge": "BlockDirtyBitmapMerge",
    **{f"block-dirty-bitmap-{verb}": "BlockDirtyBitmap" for verb in ("remove", "clear", "enable", "disable")},
    "blockdev-backup": "BlockdevBackup",
    "blockdev-snapshot": "BlockdevSnapshot",
    "blockdev-snapshot-internal-sync": "BlockdevSnapshotInternal",
    "blockdev-snapshot-sync": "BlockdevSnapshotSync",
    "drive-backup": "DriveBackup",
}
_OPTIONS: Final[Members] = {
    **{"driver": "BlockdevDriver", "*node-name": "str", "*discard": "BlockdevDiscardOptions"},
    **{"*cache": "BlockdevCacheOptions", "*read-only": "bool", "*auto-read-only": "bool", "*force-share": "bool"},
    **{"*detect-zeroes": "BlockdevDetectZeroesOptions"},
}
_EXPORT: Final[Members] = {
    **{"type": "BlockExportType", "id": "str", "*fixed-iothread": "bool", "*iothread": "str", "node-name": "str"},
    **{"*writable": "bool", "*writethrough": "bool"},
}
_JOB_CHANGE: Final[Members] = {"id": "str", "type": "JobType"}

TYPES: Final = Shapes(
    {
        **{name: Enum(words) for name, words in _ENUMS.items()},
        **{name: Struct(members) for name, members in {**_ARGUMENTS, **_RESULTS}.items()},
        **_wrapped(_ADDRESSES),
        **_wrapped(_ACTIONS),
        "BlockDirtyBitmapOrStr": Alternate(("str", "BlockDirtyBitmap")),
        "BlockdevOptions": Union(_OPTIONS, "driver", _DRIVERS),
        "BlockdevQcow2Encryption": Union(
            {"format": "BlockdevQcow2EncryptionFormat"},
            "format",
            {"aes": "QCryptoBlockOptionsQCow", "luks": "QCryptoBlockOptionsLUKS"},
        ),
        "BlockdevQcowEncryption": Union(
            {"format": "BlockdevQcowEncryptionFormat"}, "format", {"aes": "QCryptoBlockOptionsQCow"}
        ),
        "BlockdevRef": Alternate(("BlockdevOptions", "str")),
        "BlockdevRefOrNull": Alternate(("BlockdevOptions", "str", "null")),
        "BlockExportOptions": Union(_EXPORT, "type", {"nbd": "BlockExportOptionsNbd"}),
        "BlockJobChangeOptions": Union(_JOB_CHANGE, "type", {"mirror": "BlockJobChangeOptionsMirror"}),
        "BlockJobChangeOptionsMirror": Struct({"copy-mode": "MirrorCopyMode"}),
        "ImageInfoSpecific": Union(
            {"type": "ImageInfoSpecificKind"},
            "type",
            {"qcow2": "ImageInfoSpecificQCow2Wrapper", "luks": "ImageInfoSpecificLUKSWrapper"},
        ),
        "ImageInfoSpecificQCow2Encryption": Union(
            {"format": "BlockdevQcow2EncryptionFormat"}, "format", {"luks": "QCryptoBlockInfoLUKS"}
        ),
        "Qcow2OverlapChecks": Alternate(("Qcow2OverlapCheckFlags", "Qcow2OverlapCheckMode")),
        # What a client connects to has its members beside the type, what a server listens on has them in `data`.
        "SocketAddress": Union({"type": "SocketAddressType"}, "type", _ADDRESSES),
        "SocketAddressLegacy": Union(
            {"type": "SocketAddressType"}, "type", {kind: f"{name}Wrapper" for kind, name in _ADDRESSES.items()}
        ),
        "TransactionAction": Union(
            {"type": "TransactionActionKind"}, "type", {kind: f"{name}Wrapper" for kind, name in _ACTIONS.items()}
        ),
    }
)


class Command(NamedTuple):
    """What a command takes, as members or as the name of a type, and what it gives."""

    takes: Members | str
    gives: Type = "Empty"


_OF_ID: Final = Command({"id": "str"})
_OF_DEVICE: Final = Command({"device": "str"})
_OF_BITMAP: Final = Command("BlockDirtyBitmap")

COMMANDS: Final[dict[str, Command]] = {
    "qmp_capabilities": Command({"*enable": ["QMPCapability"]}),
    "query-block": Command({}, ["BlockInfo"]),
    "query-block-exports": Command({}, ["BlockExportInfo"]),
    "query-block-jobs": Command({}, ["BlockJobInfo"]),
    "query-commands": Command({}, ["CommandInfo"]),
    "query-jobs": Command({}, ["JobInfo"]),
    "query-named-block-nodes": Command({"*flat": "bool"}, ["BlockDeviceInfo"]),
    "query-version": Command({}, "VersionInfo"),
    "quit": Command({}),
    "block-commit": Command(
        {
            **{"*job-id": "str", "device": "str", "*base-node": "str", "*base": "str", "*top-node": "str"},
            **{"*top": "str", "*backing-file": "str", "*speed": "int", "*on-error": "BlockdevOnError"},
            **{"*filter-node-name": "str", **_END},
        }
    ),
    "block-stream": Command(
        {
            **{"*job-id": "str", "device": "str", "*base": "str", "*base-node": "str", "*backing-file": "str"},
            **{"*bottom": "str", "*speed": "int", "*on-error": "BlockdevOnError", "*filter-node-name": "str", **_END},
        }
    ),
    "blockdev-mirror": Command(
        {
            **{"*job-id": "str", "device": "str", "target": "str", "*replaces": "str", "sync": "MirrorSyncMode"},
            **{"*speed": "int", "*granularity": "uint32", "*buf-size": "int", **_ON_ERRORS},
            **{"*filter-node-name": "str", "*copy-mode": "MirrorCopyMode", **_END},
        }
    ),
    "drive-mirror": Command(
        {
            **{"*job-id": "str", "device": "str", "target": "str", "*format": "str", "*node-name": "str"},
            **{"*replaces": "str", "sync": "MirrorSyncMode", "*mode": "NewImageMode", "*speed": "int"},
            **{"*granularity": "uint32", "*buf-size": "int", **_ON_ERRORS, "*unmap": "bool"},
            **{"*copy-mode": "MirrorCopyMode", **_END},
        }
    ),
    "blockdev-backup": Command("BlockdevBackup"),
    "drive-backup": Command("DriveBackup"),
    "blockdev-add": Command("BlockdevOptions"),
    "blockdev-del": Command({"node-name": "str"}),
    "blockdev-reopen": Command({"options": ["BlockdevOptions"]}),
    "blockdev-snapshot": Command("BlockdevSnapshot"),
    "blockdev-snapshot-sync": Command("BlockdevSnapshotSync"),
    "blockdev-snapshot-internal-sync": Command("BlockdevSnapshotInternal"),
    "blockdev-snapshot-delete-internal-sync": Command({"device": "str", "*id": "str", "*name": "str"}, "SnapshotInfo"),
    "block_resize": Command({"*device": "str", "*node-name": "str", "size": "int"}),
    "change-backing-file": Command({"device": "str", "image-node-name": "str", "backing-file": "str"}),
    "block-set-write-threshold": Command({"node-name": "str", "write-threshold": "uint64"}),
    "transaction": Command({"actions": ["TransactionAction"], "*properties": "TransactionProperties"}),
    "block-dirty-bitmap-add": Command("BlockDirtyBitmapAdd"),
    "block-dirty-bitmap-remove": _OF_BITMAP,
    "block-dirty-bitmap-clear": _OF_BITMAP,
    "block-dirty-bitmap-enable": _OF_BITMAP,
    "block-dirty-bitmap-disable": _OF_BITMAP,
    "block-dirty-bitmap-merge": Command("BlockDirtyBitmapMerge"),
    "block-export-add": Command("BlockExportOptions"),
    "block-export-del": Command({"id": "str", "*mode": "BlockExportRemoveMode"}),
    "nbd-server-start": Command(
        {"addr": "SocketAddressLegacy", "*tls-creds": "str", "*tls-authz": "str", "*max-connections": "uint32"}
    ),
    "nbd-server-add": Command(
        {"*name": "str", "*description": "str", "device": "str", "*writable": "bool", "*bitmap": "str"}
    ),
    "nbd-server-remove": Command({"name": "str", "*mode": "BlockExportRemoveMode"}),
    "nbd-server-stop": Command({}),
    "block-job-cancel": Command({"device": "str", "*force": "bool"}),
    "block-job-change": Command("BlockJobChangeOptions"),
    "block-job-complete": _OF_DEVICE,
    "block-job-dismiss": _OF_ID,
    "block-job-finalize": _OF_ID,
    "block-job-pause": _OF_DEVICE,
    "block-job-resume": _OF_DEVICE,
    "block-job-set-speed": Command({"device": "str", "speed": "int"}),
    **{f"job-{verb}": _OF_ID for verb in ("cancel", "complete", "dismiss", "finalize", "pause", "resume")},
}

EVENTS: Final[dict[str, Members]] = {
    "BLOCK_EXPORT_DELETED": {"id": "str"},
    "BLOCK_IMAGE_CORRUPTED": {
        **{"device": "str", "*node-name": "str", "msg": "str", "*offset": "int", "*size": "int", "fatal": "bool"}
    },
    "BLOCK_IO_ERROR": {
        **{"device": "str", "*node-name": "str", "operation": "IoOperationType", "action": "BlockErrorAction"},
        **{"*nospace": "bool", "reason": "str"},
    },
    "BLOCK_JOB_CANCELLED": _JOB_EVENT,
    "BLOCK_JOB_COMPLETED": {**_JOB_EVENT, "*error": "str"},
    "BLOCK_JOB_ERROR": {"device": "str", "operation": "IoOperationType", "action": "BlockErrorAction"},
    "BLOCK_JOB_PENDING": {"type": "JobType", "id": "str"},
    "BLOCK_JOB_READY": _JOB_EVENT,
    "BLOCK_WRITE_THRESHOLD": {"node-name": "str", "amount-exceeded": "uint64", "write-threshold": "uint64"},
    "JOB_STATUS_CHANGE": {"id": "str", "status": "JobStatus"},
}

_SHAPES: Final = Shapes(
    {
        **TYPES.all,
        **{f"q_{name}": Struct(each.takes) for name, each in COMMANDS.items() if not isinstance(each.takes, str)},
        **{f"q_{name}": Struct(members) for name, members in EVENTS.items()},
    }
)


def check_arguments(command: str, arguments: Json) -> None:
    """Look through what a known command is given. Raises: CommandFailed, in QEMU's words."""
    takes = COMMANDS[command].takes
    _SHAPES.check(takes if isinstance(takes, str) else f"q_{command}", arguments)


def check_result(command: str, result: Json) -> None:
    """Look through what a known command gives. Raises: CommandFailed when no client would understand it."""
    _SHAPES.check(COMMANDS[command].gives, result)


def check_event(name: str, data: Json) -> None:
    """Look through what goes with an event. Raises: CommandFailed when no client would understand it."""
    _SHAPES.check(f"q_{name}", data)
