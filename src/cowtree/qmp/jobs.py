"""A job as QEMU's users see it: the states it goes through, what may be asked of it in which, and the events it sends.

    created -> running <-> paused
                  |-> ready <-> standby                    a mirror or an active commit that has caught up
                  |-> waiting -> pending -> concluded -> null
                  `-> aborting -------------^

All of it is values: whoever runs the job calls these functions and sends the events. Jobs of one transaction make a
group, which ends together; it is handed over in the order in which the jobs began, and ends in the other order, as
QEMU's does.

Source: job.c, blockjob.c and qapi/job.json of QEMU 7.2; the verb `change` of QEMU 8.2.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from cowtree.qmp.wire import DEVICE_NOT_ACTIVE, CommandFailed

# Which state may follow which.
STEPS: Final[dict[str, tuple[str, ...]]] = {
    "undefined": ("created",),
    "created": ("running", "aborting", "null"),
    "running": ("paused", "ready", "waiting", "aborting"),
    "paused": ("running",),
    "ready": ("standby", "waiting", "aborting"),
    "standby": ("ready",),
    "waiting": ("pending", "aborting"),
    "pending": ("aborting", "concluded"),
    "aborting": ("concluded",),
    "concluded": ("null",),
    "null": (),
}

# In which states a verb is accepted.
_ALIVE: Final = ("created", "running", "paused", "ready", "standby")
VERBS: Final[dict[str, tuple[str, ...]]] = {
    "cancel": (*_ALIVE, "waiting", "pending"),
    "pause": _ALIVE,
    "resume": _ALIVE,
    "set-speed": _ALIVE,
    "change": _ALIVE,
    "complete": ("ready", "standby"),
    "finalize": ("pending",),
    "dismiss": ("concluded",),
}

CANCELED: Final = "Operation canceled"
_ID: Final = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")


class Event(NamedTuple):
    """Something to tell all monitors."""

    name: str
    data: dict[str, Any]


class Job(NamedTuple):
    """What is known of one job. `ends` is how one that is ready was told to: "complete" is to pivot, "leave" not."""

    id: str
    type: str
    status: str = "undefined"
    length_bytes: int = 0
    offset_bytes: int = 0
    speed: int = 0
    auto_finalize: bool = True
    auto_dismiss: bool = True
    has_started: bool = False
    is_paused_by_user: bool = False
    is_cancelled: bool = False
    ends: str = ""
    error: str = ""
    io_status: str = "ok"


class Change(NamedTuple):
    """What a job is now, and what is told of it."""

    job: Job
    events: tuple[Event, ...] = ()


class Settled(NamedTuple):
    """What a group is now. When it `is_final`, the last acts are done for each job, and then `conclude` is called."""

    jobs: tuple[Job, ...]
    events: tuple[Event, ...] = ()
    is_final: bool = False


def move(job: Job, status: str) -> Change:
    """Go to another state. Raises: ValueError for one that cannot follow."""
    if status not in STEPS[job.status]:
        raise ValueError(f"a job does not go from {job.status} to {status}")
    return Change(job._replace(status=status), (Event("JOB_STATUS_CHANGE", {"id": job.id, "status": status}),))


def _then(change: Change, status: str) -> Change:
    moved = move(change.job, status)
    return Change(moved.job, change.events + moved.events)


def _tell(change: Change, name: str, data: dict[str, Any]) -> Change:
    return Change(change.job, (*change.events, Event(name, data)))


def _outline(job: Job) -> dict[str, Any]:
    return {
        **{"type": job.type, "device": job.id, "len": job.length_bytes, "offset": job.offset_bytes},
        "speed": job.speed,
    }


def find(jobs: Mapping[str, Job], name: str) -> Job:
    """The job that a verb like `job-pause` names. Raises: CommandFailed."""
    if name not in jobs:
        raise CommandFailed("Job not found")
    return jobs[name]


def find_device(jobs: Mapping[str, Job], name: str) -> Job:
    """The job that an older verb like `block-job-pause` names. Raises: CommandFailed."""
    if name not in jobs:
        raise CommandFailed(f"Block job '{name}' not found", DEVICE_NOT_ACTIVE)
    return jobs[name]


def accept(job: Job, verb: str) -> None:
    """Raises: CommandFailed when a job in its state cannot do what is asked."""
    if job.status not in VERBS[verb]:
        raise CommandFailed(f"Job '{job.id}' in state '{job.status}' cannot accept command verb '{verb}'")


def _check_speed(speed: int) -> None:
    if speed < 0:
        raise CommandFailed("Parameter 'speed' expects a non-negative value")


def create(job: Job, jobs: Mapping[str, Job]) -> Change:
    """A job that is not begun, beside others. Raises: CommandFailed."""
    if not _ID.fullmatch(job.id):
        raise CommandFailed(f"Invalid job ID '{job.id}'")
    if job.id in jobs:
        raise CommandFailed(f"Job ID '{job.id}' already in use")
    _check_speed(job.speed)
    return move(job, "created")


def start(job: Job) -> Change:
    """Its work begins."""
    return move(job._replace(has_started=True), "running")


def drop(job: Job) -> Change:
    """It could not be begun, and is forgotten."""
    return move(job, "null")


def halt(job: Job) -> Change:
    """Its work stands still, for whoever asked."""
    return move(job, "standby" if job.status == "ready" else "paused")


def go_on(job: Job) -> Change:
    """Its work goes on; nothing where it has never stood still."""
    after = {"paused": "running", "standby": "ready"}.get(job.status)
    return move(job, after) if after else Change(job)


def catch_up(job: Job) -> Change:
    """There is nothing left to copy but what is written from now on."""
    ready = move(job, "ready")
    return _tell(ready, "BLOCK_JOB_READY", _outline(job))


def pause(job: Job) -> Job:
    """It shall stand still: `halt` says when it does. Raises: CommandFailed."""
    accept(job, "pause")
    if job.is_paused_by_user:
        raise CommandFailed("Job is already paused")
    return job._replace(is_paused_by_user=True)


def resume(job: Job) -> Job:
    """It shall go on: `go_on` says when it does. Raises: CommandFailed."""
    if not job.is_paused_by_user:
        raise CommandFailed("Can't resume a job that was not paused")
    accept(job, "resume")
    return _released(job)


def _released(job: Job) -> Job:
    return job._replace(is_paused_by_user=False, io_status="ok") if job.is_paused_by_user else job


def set_speed(job: Job, speed: int) -> Job:
    """So many bytes a second; 0 for no limit. Raises: CommandFailed."""
    accept(job, "set-speed")
    _check_speed(speed)
    return job._replace(speed=speed)


def complete(job: Job) -> Job:
    """What has caught up shall end and pivot. Raises: CommandFailed."""
    accept(job, "complete")
    if job.ends == "leave" or job.is_cancelled:
        raise CommandFailed(f"The active block job '{job.id}' cannot be completed")
    return job._replace(ends="complete")


def cancel(job: Job) -> Change:
    """It shall end, and what it did shall not count; `finish` or `settle` says when. Raises: CommandFailed."""
    accept(job, "cancel")
    cancelled = _released(job)._replace(is_cancelled=True)
    return finish(cancelled) if job.status in ("created", "waiting", "pending") else Change(cancelled)


def leave(job: Job) -> Change:
    """The old way to cancel, which lets a job that has caught up end well, without a pivot. Raises: CommandFailed."""
    if job.is_paused_by_user:
        raise CommandFailed(f"The block job for device '{job.id}' is currently paused")
    if job.status not in ("ready", "standby"):
        return cancel(job)
    return Change(job._replace(ends=job.ends or "leave"))


def dismiss(job: Job) -> Change:
    """It is forgotten. Raises: CommandFailed."""
    accept(job, "dismiss")
    return move(job, "null")


def fail(job: Job, operation: str, policy: str, *, is_no_space: bool) -> tuple[Change, str]:
    """A read or a write has failed. Returns: with it what follows, `ignore`, `report` or `stop`, by the policy."""
    action = policy
    if policy in ("enospc", "auto"):
        action = "stop" if is_no_space else "report"
    if action == "stop":
        job = job._replace(is_paused_by_user=True, io_status="nospace" if is_no_space else "failed")
    return _tell(Change(job), "BLOCK_JOB_ERROR", {"device": job.id, "operation": operation, "action": action}), action


def finish(job: Job, error: str = "") -> Change:
    """Its work has ended, well or not; then `settle` its group."""
    change = go_on(job)
    error = error or (CANCELED if job.is_cancelled else "")
    if not error:
        return _then(change, "waiting")
    return _then(Change(change.job._replace(error=error), change.events), "aborting")


def settle(jobs: Sequence[Job]) -> Settled:
    """See how far a group is. Where one has failed the others are cancelled: whoever runs them ends them."""
    has_failed = any(job.status == "aborting" for job in jobs)
    changes = []
    for job in reversed(jobs):
        change = Change(job)
        if has_failed and job.status != "aborting":
            change = cancel(job)
        changes.append(change)
    if not has_failed and all(job.status == "waiting" for job in jobs):
        changes = [_await_end(change.job) for change in changes]
    after = [change.job for change in changes]
    is_over = all(job.status in ("aborting", "pending") for job in after)
    is_final = is_over and (has_failed or all(job.auto_finalize for job in after))
    return Settled(tuple(reversed(after)), _events(changes), is_final)


def _await_end(job: Job) -> Change:
    pending = move(job, "pending")
    return pending if job.auto_finalize else _tell(pending, "BLOCK_JOB_PENDING", {"type": job.type, "id": job.id})


def _events(changes: Sequence[Change]) -> tuple[Event, ...]:
    return tuple(event for change in changes for event in change.events)


def conclude(jobs: Sequence[Job]) -> Settled:
    """End a group, all of it well or none; what nobody wants to dismiss is forgotten."""
    changes = [_conclude(job) for job in reversed(jobs)]
    return Settled(tuple(change.job for change in reversed(changes)), _events(changes), is_final=True)


def _conclude(job: Job) -> Change:
    change = Change(job)
    if job.has_started:
        error = {"error": job.error} if job.error and not job.is_cancelled else {}
        name = "BLOCK_JOB_CANCELLED" if job.is_cancelled else "BLOCK_JOB_COMPLETED"
        change = _tell(change, name, {**_outline(job), **error})
    change = _then(change, "concluded")
    return _then(change, "null") if job.auto_dismiss or not job.has_started else change


def job_info(job: Job) -> dict[str, Any]:
    """What `query-jobs` tells of it."""
    told = {"id": job.id, "type": job.type, "status": job.status, "current-progress": job.offset_bytes}
    return {**told, "total-progress": job.length_bytes, **({"error": job.error} if job.error else {})}


def block_job_info(job: Job) -> dict[str, Any]:
    """What `query-block-jobs` tells of it."""
    is_halted = job.status in ("paused", "standby")
    return {
        **_outline(job),
        "busy": job.status in ("running", "ready") and not job.is_paused_by_user,
        "paused": job.is_paused_by_user or is_halted or job.status == "created",
        "io-status": job.io_status,
        "ready": job.status in ("ready", "standby"),
        "status": job.status,
        "auto-finalize": job.auto_finalize,
        "auto-dismiss": job.auto_dismiss,
        **({"error": job.error} if job.error else {}),
    }
