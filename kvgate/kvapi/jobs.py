"""POST, GET and DELETE /_kv/v1/jobs: what takes long, begun, watched and cancelled."""

from __future__ import annotations

import time

from kvgate.kvapi.call import Call, Context
from kvgate.kvapi.encoding import Members
from kvgate.kvapi.fields import Fields
from kvgate.kvapi.selection import FIELDS, selection
from kvgate.store.jobs import Job
from kvgate.store.retention import MAX_TTL_S

_PINS = ("hard", "soft")


async def _start(context: Context, fields: Fields) -> Members:
    """A selection with {kind, tier?, source?, codec?, pin?, pin_s?} → {jobs: [the new one]}.

    Raises InvalidArgument, NoSuchBucket, Overloaded.
    """
    chosen, kind = selection(context, fields), fields.text("kind")
    options: dict[str, object] = {name: fields.text(name) for name in ("tier", "source", "codec") if fields.has(name)}
    if pin := fields.choice("pin", _PINS):
        options["pin"] = pin
    if (pin_s := fields.optional_seconds("pin_s")) is not None:
        options["pin_s"] = min(pin_s, MAX_TTL_S)
    job = await context.store.jobs.start(context.tenant.name, kind, chosen, options)
    return {"jobs": [_members(job)]}


def _list(context: Context, fields: Fields) -> Members:
    """?id → {jobs}: one, or all of the caller's, the newest first. Raises NoSuchJob, for another tenant's too."""
    jobs, tenant = context.store.jobs, context.tenant.name
    id = fields.optional_text("id")
    return {"jobs": [_members(job) for job in ([jobs.get(tenant, id)] if id else jobs.of(tenant))]}


async def _cancel(context: Context, fields: Fields) -> Members:
    """?id → {jobs: [as it ended]}. Raises NoSuchJob, for another tenant's too."""
    return {"jobs": [_members(await context.store.jobs.cancel(context.tenant.name, fields.text("id")))]}


def _members(job: Job) -> Members:
    chosen = job.selection
    seconds = job.seconds(time.time_ns() // 1_000_000)
    return {
        "id": job.id,
        "kind": job.kind,
        "state": job.state.value,
        "message": job.message,
        "bucket": chosen.bucket,
        "prefix": chosen.prefix if chosen.keys is None else None,
        "selected": job.selected if job.selected is not None or chosen.keys is None else len(chosen.keys),
        "options": dict(job.options),
        "created_ms": job.created_ms,
        "started_ms": job.started_ms,
        "ended_ms": job.ended_ms,
        "objects": {
            "total": job.total,
            "done": job.done,
            "skipped": job.skipped,
            "failed": job.failed,
            "unmet": job.unmet,
        },
        "nbytes": {"total": job.total_nbytes, "done": job.done_nbytes, "saved": job.saved_nbytes},
        "rate": {
            "objects_s": round(job.done / seconds, 3) if seconds else 0.0,
            "nbytes_s": round(job.done_nbytes / seconds, 3) if seconds else 0.0,
        },
        "reasons": [{"reason": reason, "objects": count} for reason, count in job.reasons.most_common()],
        "examples": [{"key": key, "why": why} for key, why in job.examples],
    }


start = Call("StartJob", (*FIELDS, "kind", "tier", "source", "codec", "pin", "pin_s"), _start)
list_ = Call("ListJobs", ("id",), _list, in_query=True)
cancel = Call("CancelJob", ("id",), _cancel, in_query=True)
