"""The vocabulary, compared with what a real daemon says of its own, and the words in which arguments are refused."""

import json
import random
import re
from collections.abc import Iterator
from typing import Any

import pytest

from cowtree.qmp.schema import COMMANDS, EVENTS, TYPES, check_arguments, check_event, check_result
from cowtree.qmp.shapes import Alternate, Enum, Members, Struct, Type, Union
from cowtree.qmp.wire import CommandFailed
from tests.qmp.daemon import Monitor, storage_daemon

# Which words of QEMU's are left out on purpose; in all other tables there are as many as in QEMU's.
FEWER = {"BlockdevDriver", "BlockExportType", "ImageInfoSpecificKind"}
NEWER = {"block-job-change"}


@pytest.fixture(scope="module")
def stock() -> Iterator[Monitor]:
    with storage_daemon() as connect:
        monitor = connect()
        monitor.well("qmp_capabilities")
        yield monitor
        monitor.close()


class Comparison:
    """Our tables beside QEMU's, type by type."""

    def __init__(self, theirs: list[dict[str, Any]]) -> None:
        self.theirs = {each["name"]: each for each in theirs}
        self.seen: set[tuple[str, str]] = set()

    def members(self, ours: Members, theirs: list[dict[str, Any]], where: str) -> None:
        optional = {("*" if "default" in each else "") + each["name"]: each["type"] for each in theirs}
        assert list(ours) == list(optional), where
        for name, kind in ours.items():
            self.types(kind, optional[name], f"{where}.{name}")

    def types(self, ours: Type, name: str, where: str) -> None:
        theirs = self.theirs[name]
        if isinstance(ours, list):
            assert theirs["meta-type"] == "array", where
            self.types(ours[0], theirs["element-type"], where)
        elif ours not in TYPES.all:
            assert theirs["meta-type"] == "builtin", where
            assert name == ("int" if ours.startswith("uint") else ours), where
        elif (ours, name) not in self.seen:
            self.seen.add((ours, name))
            self.shapes(ours, theirs, f"{where} ({ours})")

    def shapes(self, ours: str, theirs: dict[str, Any], where: str) -> None:
        match TYPES.all[ours]:
            case Enum(words=words):
                names = [each["name"] for each in theirs["members"]]
                assert set(words) <= set(names), where
                assert ours in FEWER or len(words) == len(names), where
            case Struct(members=members):
                self.members(members, theirs["members"], where)
                assert "tag" not in theirs, where
            case Union(members=members, tag=tag, branches=branches):
                self.members(members, theirs["members"], where)
                assert theirs["tag"] == tag, where
                cases = {each["case"]: each["type"] for each in theirs["variants"]}
                for word, name in branches.items():
                    self.types(name, cases[word], f"{where} {word}")
            case Alternate(choices=choices):
                assert len(choices) == len(theirs["members"]), where
                others = {self.theirs[each["type"]]["meta-type"]: each["type"] for each in theirs["members"]}
                for choice in (choice for choice in choices if choice in TYPES.all):
                    meta = "enum" if isinstance(TYPES.all[choice], Enum) else "object"
                    self.types(choice, others[meta], where)


def test_every_table_is_as_stock_has_it(stock: Monitor):
    comparison = Comparison(stock.well("query-qmp-schema"))
    for name, command in COMMANDS.items():
        if name in NEWER:
            assert name not in comparison.theirs
            continue
        theirs = comparison.theirs[name]
        if isinstance(command.takes, str):
            comparison.types(command.takes, theirs["arg-type"], name)
        else:
            comparison.members(command.takes, comparison.theirs[theirs["arg-type"]]["members"], name)
        comparison.types(command.gives, theirs["ret-type"], f"{name} gives")
    for name, members in EVENTS.items():
        data = comparison.theirs[comparison.theirs[name]["arg-type"]]
        comparison.members(members, data["members"], name)
    compared = {ours for ours, _ in comparison.seen}
    assert len(compared) > 80


NBD = {"type": "nbd", "id": "a", "node-name": "b"}
UNIX = {"type": "unix", "data": {"path": "no-folder/socket"}}
FULL = {"device": "a", "target": "b", "sync": "full"}
BITMAP = {"node": "a", "name": "b"}


REOPENS: list[Any] = [1, [1], [{}], [{"driver": "null-co", "x": 1}]]
ACTIONS: list[Any] = [{}, [{}], [{"type": "x"}], [{"type": "abort"}], [{"data": {}}]]
BITMAPS: list[Any] = [1, {"node": "y"}, {**BITMAP, "name": 1}]


def in_qcow2(**more: Any) -> dict[str, Any]:
    return {"driver": "qcow2", **{name.replace("_", "-"): value for name, value in more.items()}}


def in_file(**more: Any) -> dict[str, Any]:
    return in_qcow2(file={"driver": "file", "filename": "x", **more})


def each_of(command: str, *arguments: Any) -> list[tuple[str, Any]]:
    return [(command, each) for each in arguments]


WRONG: list[tuple[str, Any]] = [
    *each_of("blockdev-add", {}, {"driver": "x"}, {"driver": 1}, {"node-name": "x"}, {"driver": "raw"}),
    *[
        ("blockdev-add", in_qcow2(file=each))
        for each in (1, None, {}, {"driver": "file"}, {"driver": "qcow2", "file": 1})
    ],
    *[
        ("blockdev-add", in_file(**each))
        for each in ({"y": 1}, {"cache": {"direct": 1}}, {"aio": "x"}, {"locking": True})
    ],
    ("blockdev-add", in_qcow2(file="n", backing=1)),
    ("blockdev-add", in_qcow2(file="n", overlap_check=1)),
    ("blockdev-add", in_qcow2(file="n", overlap_check="x")),
    ("blockdev-add", in_qcow2(file="n", overlap_check={"template": "x"})),
    ("blockdev-add", in_qcow2(file="n", encrypt={"format": "x"})),
    ("blockdev-add", in_qcow2(file="n", encrypt={})),
    ("blockdev-add", in_qcow2(file="n", encrypt={"format": "luks", "x": 1})),
    ("blockdev-add", {"driver": "null-co", "size": "x"}),
    ("blockdev-add", {"driver": "null-co", "latency-ns": "x"}),
    ("blockdev-add", {"driver": "null-co", "read-zeroes": 1}),
    ("blockdev-add", {"driver": "nbd", "server": {"type": "inet", "host": "x"}}),
    ("blockdev-add", {"driver": "nbd", "server": {"type": "inet", "host": "x", "port": "1", "to": 65536}}),
    ("blockdev-add", {"driver": "copy-before-write", "file": "a", "target": "b", "cbw-timeout": -1}),
    *each_of("blockdev-reopen", *({"options": each} for each in REOPENS)),
    ("blockdev-reopen", {}),
    *each_of("transaction", *({"actions": each} for each in ACTIONS)),
    ("transaction", {"actions": [{"type": "abort", "data": {"x": 1}}]}),
    ("transaction", {"actions": [{"type": "blockdev-snapshot", "data": {"node": "x"}}]}),
    ("transaction", {"actions": [{"type": "blockdev-backup", "data": {**FULL, "sync": "x"}}]}),
    ("transaction", {"actions": [], "properties": {"completion-mode": "x"}}),
    *each_of("block-export-add", {}, {"type": "nbd"}, {**NBD, "type": "x"}, {**NBD, "mountpoint": "x"}),
    *each_of("block-export-add", *({**NBD, "bitmaps": [each]} for each in BITMAPS)),
    ("block-export-add", {**NBD, "writable": "x"}),
    ("block-export-del", {"id": "a", "mode": "x"}),
    *each_of("nbd-server-start", {}, {"addr": {}}, {"addr": {"type": "unix"}}, {"addr": 1}),
    ("nbd-server-start", {"addr": {"type": "unix", "data": {}}}),
    ("nbd-server-start", {"addr": {"type": "inet", "data": {"host": "x", "port": 1}}}),
    *[("nbd-server-start", {"addr": UNIX, "max-connections": each}) for each in (-1, 1 << 32, 1.5, "x")],
    *[("block-dirty-bitmap-add", {**BITMAP, "granularity": each}) for each in (-1, 1 << 32, 1e3, 1 << 64, True)],
    ("block-dirty-bitmap-merge", {"node": "a", "target": "b", "bitmaps": [{}]}),
    ("block-dirty-bitmap-clear", {"node": "a"}),
    *each_of("block-commit", {"device": None}, {"device": 1}, {"device": []}, {"device": {}}),
    *[("block-commit", {"device": "x", "on-error": each}) for each in ("x", 1, None)],
    ("block-commit", {"device": "x", "z": 1}),
    ("block-commit", {}),
    ("block-stream", {"device": "a", "speed": "1"}),
    *[("block_resize", {"size": each}) for each in (1 << 63, (1 << 64) - 1, -1 << 64, 1.0)],
    ("blockdev-mirror", {**FULL, "sync": "x"}),
    ("blockdev-mirror", {**FULL, "granularity": 1 << 32}),
    ("blockdev-mirror", {**FULL, "copy-mode": "x"}),
    ("drive-mirror", {**FULL, "mode": "x"}),
    ("blockdev-backup", {**FULL, "x-perf": {"max-chunk": "a"}}),
    ("blockdev-snapshot-sync", {"device": "a"}),
    *[("block-job-set-speed", {"device": "a", "speed": each}) for each in (True, "1", 1.5, 1 << 63)],
    ("block-job-set-speed", {"device": "a"}),
    ("block-job-cancel", {"device": "a", "force": 1}),
    ("block-job-cancel", {"id": "a"}),
    ("job-dismiss", {"device": "a"}),
    ("query-named-block-nodes", {"flat": "x"}),
    ("query-jobs", {"a": 1}),
    ("qmp_capabilities", {"enable": "oob"}),
    ("qmp_capabilities", {"enable": [1]}),
    ("block-set-write-threshold", {"node-name": "a", "write-threshold": "x"}),
]


@pytest.mark.parametrize(("command", "arguments"), WRONG, ids=json.dumps)
def test_wrong_arguments_are_refused_in_the_words_of_stock(stock: Monitor, command: str, arguments: Any):
    with pytest.raises(CommandFailed) as caught:
        check_arguments(command, arguments)
    answers = stock.answers(json.dumps({"execute": command, "arguments": arguments}).encode())
    assert answers[:1] == [{"error": {"class": caught.value.kind, "desc": caught.value.reason}}]


def test_right_arguments_are_accepted():
    check_arguments("blockdev-add", in_file(locking="auto"))
    check_arguments("blockdev-add", in_qcow2(file="n", backing=None, overlap_check="all"))
    check_arguments("transaction", {"actions": [{"type": "block-dirty-bitmap-clear", "data": BITMAP}]})
    check_arguments("block-export-add", {**NBD, "bitmaps": ["x", BITMAP]})
    check_arguments("block-job-change", {"id": "a", "type": "mirror", "copy-mode": "write-blocking"})


def test_results_and_events_of_stock_pass_our_own_check(stock: Monitor):
    stock.well("blockdev-add", driver="null-co", node_name="n", size=1 << 20)
    stock.well("blockdev-add", driver="null-co", node_name="m", size=1 << 20)
    check_result("query-named-block-nodes", stock.well("query-named-block-nodes"))
    check_result("query-version", stock.well("query-version"))
    check_result("query-commands", stock.well("query-commands"))
    stock.well("blockdev-mirror", device="n", target="m", sync="full", job_id="j")
    stock.wait_event("BLOCK_JOB_READY")
    check_result("query-jobs", stock.well("query-jobs"))
    check_result("query-block-jobs", stock.well("query-block-jobs"))
    stock.well("block-job-complete", device="j")
    stock.wait_event("BLOCK_JOB_COMPLETED")
    stock.well("query-version")
    for event in stock.events:
        check_event(event["event"], event["data"])


def test_a_wrong_result_is_found():
    with pytest.raises(CommandFailed, match=r"'\[0\]\.status' is missing"):
        check_result("query-jobs", [{"id": "a", "type": "commit"}])
    with pytest.raises(CommandFailed, match="does not accept value 'over'"):
        check_event("JOB_STATUS_CHANGE", {"id": "a", "status": "over"})


RIGHT: list[tuple[str, Any]] = [
    ("blockdev-add", {**in_file(locking="auto", cache={"direct": True}), "node-name": "a", "overlap-check": "all"}),
    ("blockdev-add", in_qcow2(file="n", backing=None, encrypt={"format": "luks", "key-secret": "k"}, cache_size=1)),
    ("blockdev-add", {"driver": "nbd", "server": {"type": "unix", "path": "no-folder/s"}, "open-timeout": 0}),
    ("transaction", {"actions": [{"type": "block-dirty-bitmap-merge", "data": {**BITMAP, "bitmaps": ["a", BITMAP]}}]}),
    ("transaction", {"actions": [{"type": "blockdev-backup", "data": FULL}], "properties": {}}),
    ("block-export-add", {**NBD, "bitmaps": ["x", BITMAP], "writable": True, "name": "x"}),
    ("nbd-server-start", {"addr": UNIX, "max-connections": 3}),
    ("blockdev-mirror", {**FULL, "speed": 1, "granularity": 65536, "on-source-error": "stop", "job-id": "j"}),
    ("blockdev-backup", {**FULL, "x-perf": {"max-chunk": 1}, "bitmap-mode": "never", "auto-dismiss": False}),
    ("block-commit", {"device": "a", "base-node": "b", "on-error": "enospc", "auto-finalize": False}),
]
ODD: list[Any] = [None, True, 0, -1, 1.5, 1 << 40, 1 << 64, "", "x", "null", [], ["x"], [1], {}, {"a": 1}, [[]], [{}]]


def spoilt(value: Any, numbers: random.Random) -> Any:
    """The same with one thing in it changed, left out, or added."""
    if not isinstance(value, dict | list) or not value or numbers.random() < 0.1:
        return numbers.choice(ODD)
    if isinstance(value, list):
        at = numbers.randrange(len(value))
        return [*value[:at], spoilt(value[at], numbers), *value[at + 1 :]]
    name = numbers.choice(list(value))
    match numbers.randrange(6):
        case 0:
            return {other: each for other, each in value.items() if other != name}
        case 1:
            return {**value, numbers.choice(["x", "", "Type", name + " "]): numbers.choice(ODD)}
    return {**value, name: spoilt(value[name], numbers)}


def test_spoilt_arguments_are_refused_as_by_stock(stock: Monitor, seed: int):
    numbers = random.Random(seed)
    for _ in range(40):
        command, right = numbers.choice(RIGHT)
        arguments = spoilt(right, numbers)
        if not isinstance(arguments, dict):
            continue
        answer = stock.answers(json.dumps({"execute": command, "arguments": arguments}).encode())[0]
        desc = answer.get("error", {}).get("desc", "")
        ours = complaint(command, arguments)
        if ours is None:
            assert not re.search(r"^Invalid parameter type|does not accept value|is unexpected$|is missing$", desc)
        else:
            assert ours == desc, arguments


def complaint(command: str, arguments: Any) -> str | None:
    try:
        check_arguments(command, arguments)
    except CommandFailed as error:
        return error.reason
    return None
