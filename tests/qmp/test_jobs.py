"""The state machine of jobs: beside a real daemon's, and what a daemon cannot be made to show."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from cowtree.qmp import jobs
from cowtree.qmp.jobs import STEPS, VERBS, Change, Event, Job
from cowtree.qmp.schema import JOB_STATES, JOB_VERBS, ON_ERROR, check_event, check_result
from cowtree.qmp.wire import CommandFailed
from tests.qmp.daemon import Monitor, storage_daemon

MIB = 1 << 20


@pytest.fixture(scope="module")
def stock() -> Iterator[Monitor]:
    with storage_daemon() as connect:
        monitor = connect()
        monitor.well("qmp_capabilities")
        yield monitor
        monitor.close()


def test_the_tables_know_every_state_and_verb():
    assert set(STEPS) == set(JOB_STATES)
    assert set(VERBS) == set(JOB_VERBS)
    assert {state for states in (*STEPS.values(), *VERBS.values()) for state in states} <= set(JOB_STATES)


class Play:
    """Our job and QEMU's, a mirror from one empty node to another, asked for the same things."""

    def __init__(self, stock: Monitor, name: str, *, speed: int = 0, is_manual: bool = False) -> None:
        self.stock = stock
        self.told: list[Event] = []
        end = {"auto-finalize": not is_manual, "auto-dismiss": not is_manual}
        for node in (f"{name}-from", f"{name}-to"):
            stock.well("blockdev-add", driver="null-co", node_name=node, size=MIB, read_zeroes=False)
        nodes = {"device": f"{name}-from", "target": f"{name}-to", "sync": "full"}
        stock.well("blockdev-mirror", job_id=name, speed=speed, **nodes, **end)
        self.job = Job(name, "mirror", length_bytes=MIB, offset_bytes=MIB, speed=speed)
        self.job = self.job._replace(auto_finalize=not is_manual, auto_dismiss=not is_manual)
        self.tell(jobs.create(self.job, {}))
        self.tell(jobs.start(self.job))
        if not speed:
            self.tell(jobs.catch_up(self.job))
        self.compare()

    def tell(self, change: Change) -> None:
        self.job = change.job
        self.told += change.events

    def settle(self) -> None:
        settled = jobs.settle([self.job])
        self.tell(Change(settled.jobs[0], settled.events))
        if settled.is_final:
            ended = jobs.conclude(settled.jobs)
            self.tell(Change(ended.jobs[0], ended.events))

    def work(self) -> None:
        """What whoever runs the job does next."""
        job = self.job
        if job.status == "aborting":
            self.settle()
        elif job.status in ("running", "ready", "paused", "standby"):
            if job.is_paused_by_user and job.status in ("running", "ready"):
                self.tell(jobs.halt(job))
            elif not job.is_paused_by_user:
                self.tell(jobs.go_on(job))
                if job.ends or job.is_cancelled:
                    self.tell(jobs.finish(self.job))
                    self.settle()

    def ask(self, command: str, **more: Any) -> None:
        """One verb, of both; the answers, the events and what is told of the job afterwards are the same."""
        verb = command.removeprefix("block-").removeprefix("job-")
        is_old = command.startswith("block-") and verb not in ("dismiss", "finalize")
        theirs = self.stock.ask(command, **{"device" if is_old else "id": self.job.id}, **more)
        try:
            self.obey(verb, is_old, more)
            ours: dict[str, Any] = {"return": {}}
        except CommandFailed as error:
            ours = {"error": {"class": error.kind, "desc": error.reason}}
        assert ours == theirs, command
        self.work()
        self.compare()

    def obey(self, verb: str, is_old: bool, more: dict[str, Any]) -> None:
        known = {} if self.job.status == "null" else {self.job.id: self.job}
        job = (jobs.find_device if is_old else jobs.find)(known, self.job.id)
        simple: dict[str, Callable[[Job], Job]] = {
            "pause": jobs.pause,
            "resume": jobs.resume,
            "complete": jobs.complete,
        }
        if verb in simple:
            self.job = simple[verb](job)
        elif verb == "set-speed":
            self.job = jobs.set_speed(job, more["speed"])
        elif verb == "cancel":
            self.tell((jobs.leave if is_old and not more.get("force") else jobs.cancel)(job))
        elif verb == "dismiss":
            self.tell(jobs.dismiss(job))
        else:
            jobs.accept(job, "finalize")
            ended = jobs.conclude([job])
            self.tell(Change(ended.jobs[0], ended.events))

    def compare(self) -> None:
        for event in self.told:
            check_event(event.name, event.data)
        assert self.told == events_of(self.stock, len(self.told))
        self.told = []
        infos = [info for info in self.stock.well("query-block-jobs") if info["device"] == self.job.id]
        if self.job.status != "null":
            ours = jobs.block_job_info(self.job)
            check_result("query-block-jobs", [ours])
            # A mirror holds its own nodes, and so itself, from when it is over until it is finalized.
            unsure = {"busy", "paused"} if self.job.status == "pending" else {"busy"}
            assert [{key: each for key, each in info.items() if key not in unsure} for info in infos] == [
                {key: each for key, each in ours.items() if key not in unsure}
            ]
            plain = jobs.job_info(self.job)
            check_result("query-jobs", [plain])
            assert plain in self.stock.well("query-jobs")
        else:
            assert not infos
        assert not self.stock.events


SCRIPTS: dict[str, Sequence[str]] = {
    "completed": ["job-complete"],
    "left": ["block-job-cancel"],
    "forced": ["block-job-cancel force"],
    "cancelled": ["job-cancel", "job-cancel", "block-job-cancel"],
    "halted": ["job-pause", "job-pause", "job-resume", "job-resume", "block-job-pause", "block-job-resume"],
    "halted-and-left": ["job-pause", "block-job-cancel", "block-job-cancel force"],
    "halted-and-completed": ["job-pause", "job-complete", "block-job-complete", "job-resume", "job-resume"],
    "refused-when-ready": ["job-finalize", "job-dismiss", "block-job-set-speed -1", "block-job-set-speed 5"],
}
MANUAL: dict[str, Sequence[str]] = {
    "by-hand": [
        *("job-complete", "job-pause", "job-resume", "job-complete", "block-job-set-speed 1", "job-dismiss"),
        *("job-finalize", "job-finalize", "job-pause", "job-cancel", "block-job-set-speed -1", "job-dismiss"),
        "job-dismiss",
    ],
    "taken-back": ["block-job-complete", "block-job-cancel", "job-cancel", "job-dismiss"],
    "old-words": ["block-job-complete", "block-job-finalize", "block-job-dismiss"],
    "leaves": ["block-job-cancel", "block-job-complete", "block-job-finalize", "block-job-dismiss"],
}
SLOW: dict[str, Sequence[str]] = {
    "slow": ["job-complete", "job-finalize", "job-pause", "job-cancel"],
    "slow-and-left": ["block-job-cancel"],
}


@pytest.mark.parametrize("name", [*SCRIPTS, *MANUAL, *SLOW])
def test_a_job_goes_the_way_of_stock(stock: Monitor, name: str):
    script = {**SCRIPTS, **MANUAL, **SLOW}[name]
    play = Play(stock, name, speed=1 if name in SLOW else 0, is_manual=name in MANUAL)
    for step in script:
        command, *more = step.split()
        words = {"force": True} if more == ["force"] else {"speed": int(more[0])} if more else {}
        play.ask(command, **words)


def test_a_name_for_a_job_is_refused_as_by_stock(stock: Monitor):
    for node in "ftgu":
        stock.well("blockdev-add", driver="null-co", node_name=node, size=MIB, read_zeroes=False)
    for name in ("", "1", "a b", "-", "ä", "a/b"):
        theirs = stock.ask("blockdev-mirror", device="f", target="t", sync="full", job_id=name)
        with pytest.raises(CommandFailed) as caught:
            jobs.create(Job(name, "mirror"), {})
        assert theirs == {"error": {"class": caught.value.kind, "desc": caught.value.reason}}
    stock.well("blockdev-mirror", device="f", target="t", sync="full", job_id="twice", speed=1)
    theirs = stock.ask("blockdev-mirror", device="g", target="u", sync="full", job_id="twice")
    with pytest.raises(CommandFailed) as caught:
        jobs.create(Job("twice", "mirror"), {"twice": Job("twice", "mirror")})
    assert theirs == {"error": {"class": caught.value.kind, "desc": caught.value.reason}}
    with pytest.raises(CommandFailed, match="expects a non-negative value"):
        jobs.create(Job("a", "mirror", speed=-1), {})
    stock.well("job-cancel", id="twice")
    stock.wait_event("JOB_STATUS_CHANGE", id="twice", status="null")


def running(name: str, **more: Any) -> Job:
    return jobs.start(jobs.create(Job(name, "backup", **more), {}).job).job


def names(events: Sequence[Event]) -> list[str]:
    return [
        f"{event.data.get('id') or event.data['device']} {event.data.get('status') or event.name}" for event in events
    ]


def test_a_group_ends_together_and_last_first():
    first, second = running("a"), running("b")
    second = jobs.finish(second).job
    waits = jobs.settle([first, second])
    assert (waits.events, waits.is_final) == ((), False)
    settled = jobs.settle([jobs.finish(first).job, second])
    assert settled.is_final
    assert names(settled.events) == ["b pending", "a pending"]
    ended = jobs.conclude(settled.jobs)
    assert names(ended.events) == [
        *("b BLOCK_JOB_COMPLETED", "b concluded", "b null"),
        *("a BLOCK_JOB_COMPLETED", "a concluded", "a null"),
    ]
    assert [job.id for job in ended.jobs] == ["a", "b"]


def test_a_group_waits_for_the_one_that_is_finalized_by_hand():
    group = [jobs.finish(job).job for job in (running("a", auto_finalize=False), running("b"))]
    settled = jobs.settle(group)
    assert not settled.is_final
    assert names(settled.events) == ["b pending", "a pending", "a BLOCK_JOB_PENDING"]
    jobs.accept(settled.jobs[1], "finalize")


def test_one_that_fails_cancels_the_others():
    first, second, third = running("a"), running("b"), jobs.finish(running("c")).job
    second = jobs.halt(jobs.pause(second)).job
    first = jobs.finish(first, "No space left on device").job
    settled = jobs.settle([first, second, third])
    assert not settled.is_final
    assert names(settled.events) == ["c aborting"]
    second = settled.jobs[1]
    assert (second.is_cancelled, second.is_paused_by_user) == (True, False)
    change = jobs.finish(second)
    assert names(change.events) == ["b running", "b aborting"]
    settled = jobs.settle([settled.jobs[0], change.job, settled.jobs[2]])
    assert settled.is_final
    ended = jobs.conclude(settled.jobs)
    told = {event.data["device"]: event for event in ended.events if "device" in event.data}
    assert told["a"].data["error"] == "No space left on device"
    assert [told[name].name for name in "abc"] == ["BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED", "BLOCK_JOB_CANCELLED"]
    assert "error" not in told["b"].data


def test_a_last_act_that_fails_takes_the_group_back():
    settled = jobs.settle([jobs.finish(job).job for job in (running("a"), running("b"))])
    failed = jobs.finish(settled.jobs[0], "Input/output error")
    assert names(failed.events) == ["a aborting"]
    again = jobs.settle([failed.job, settled.jobs[1]])
    assert (again.is_final, names(again.events)) == (True, ["b aborting"])


def test_what_never_began_ends_without_a_word_of_its_work():
    created = jobs.create(Job("a", "stream", auto_dismiss=False), {}).job
    change = jobs.cancel(created)
    assert names(change.events) == ["a aborting"]
    settled = jobs.settle([change.job])
    assert names(jobs.conclude(settled.jobs).events) == ["a concluded", "a null"]
    assert names(jobs.drop(created).events) == ["a null"]


@pytest.mark.parametrize(
    ("policy", "is_no_space", "action", "status"),
    [
        ("report", True, "report", "ok"),
        ("ignore", False, "ignore", "ok"),
        ("stop", False, "stop", "failed"),
        ("stop", True, "stop", "nospace"),
        ("enospc", True, "stop", "nospace"),
        ("enospc", False, "report", "ok"),
        ("auto", True, "stop", "nospace"),
        ("auto", False, "report", "ok"),
    ],
)
def test_what_follows_a_failed_read_is_the_choice_of_who_began(
    policy: str, is_no_space: bool, action: str, status: str
):
    change, follows = jobs.fail(running("a"), "read", policy, is_no_space=is_no_space)
    assert follows == action
    assert change.events == (Event("BLOCK_JOB_ERROR", {"device": "a", "operation": "read", "action": action}),)
    assert (change.job.io_status, change.job.is_paused_by_user) == (status, action == "stop")
    if action == "stop":
        assert jobs.resume(jobs.halt(change.job).job).io_status == "ok"


def test_the_first_word_on_how_a_job_shall_end_counts():
    ready = jobs.catch_up(running("a")).job
    left = jobs.leave(ready).job
    with pytest.raises(CommandFailed, match="The active block job 'a' cannot be completed"):
        jobs.complete(left)
    with pytest.raises(CommandFailed, match="cannot be completed"):
        jobs.complete(jobs.cancel(ready).job)
    assert jobs.leave(jobs.complete(ready)).job.ends == "complete"


def events_of(stock: Monitor, count: int) -> list[Event]:
    """So many events, the next ones."""
    found = (stock.events.pop(0) if stock.events else stock.take() for _ in range(count))
    return [Event(each["event"], each["data"]) for each in found]


def told_since_error(stock: Monitor, count: int) -> list[Event]:
    """So many events, from a failed read on."""
    first = stock.wait_event("BLOCK_JOB_ERROR")
    return [Event(first["event"], first["data"]), *events_of(stock, count - 1)]


@pytest.mark.parametrize("policy", ON_ERROR)
@pytest.mark.parametrize(("code", "error"), [(5, "Input/output error"), (28, "No space left on device")])
def test_a_read_that_fails_once_is_told_as_by_stock(stock: Monitor, policy: str, code: int, error: str):
    name = f"{policy}-{code}"
    image = {"driver": "null-co", "size": MIB, "read-zeroes": False}
    failing = {"inject-error": [{"event": "none", "iotype": "read", "errno": code, "once": True}]}
    stock.well("blockdev-add", driver="blkdebug", node_name=f"{name}-from", image=image, **failing)
    stock.well("blockdev-add", driver="null-co", node_name=f"{name}-to", size=MIB)
    nodes = {"device": f"{name}-from", "target": f"{name}-to", "sync": "full"}
    stock.well("blockdev-backup", job_id=name, on_source_error=policy, **nodes)
    job = jobs.start(jobs.create(Job(name, "backup", length_bytes=MIB), {}).job).job
    change, action = jobs.fail(job, "read", policy, is_no_space=code == 28)
    told, job = list(change.events), change.job
    if action == "stop":
        halted = jobs.halt(job)
        told += halted.events
        assert told_since_error(stock, len(told)) == told
        assert jobs.block_job_info(halted.job) in stock.well("query-block-jobs")
        stock.well("job-resume", id=name)
        job, told = jobs.resume(halted.job), []
    job = job._replace(offset_bytes=0 if action == "report" else MIB)
    ended = jobs.finish(job, error if action == "report" else "")
    settled = jobs.settle([ended.job])
    told += [*ended.events, *settled.events, *jobs.conclude(settled.jobs).events]
    theirs = events_of(stock, len(told)) if action == "stop" else told_since_error(stock, len(told))
    assert theirs == told


def test_no_job_goes_where_none_can():
    with pytest.raises(ValueError, match="from running to concluded"):
        jobs.move(running("a"), "concluded")


def test_every_verb_is_refused_in_every_other_state():
    for verb, states in VERBS.items():
        for state in set(JOB_STATES) - set(states):
            with pytest.raises(CommandFailed) as caught:
                jobs.accept(Job("x", "mirror", state), verb)
            assert caught.value.reason == f"Job 'x' in state '{state}' cannot accept command verb '{verb}'"
