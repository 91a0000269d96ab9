"""The requests that clients make: one coroutine per method, JSON in, JSON out."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Any

from modal_nomad.dispatcher import scope
from modal_nomad.dispatcher._autoscaling import current_stats, update_autoscaler
from modal_nomad.dispatcher._containers import FunctionState
from modal_nomad.dispatcher._durable_calls import GENERATOR
from modal_nomad.dispatcher._publication import check_publication
from modal_nomad.dispatcher._requests import (
    Answer,
    Request,
    count,
    full_method,
    method,
    optional,
    seconds,
    text,
)
from modal_nomad.dispatcher.apps import DEFAULT_ENVIRONMENT
from modal_nomad.dispatcher.blob_rights import flagged
from modal_nomad.dispatcher.core import Dispatcher
from modal_nomad.dispatcher.sessions import ClientSession
from modal_nomad.exception import InvalidError, NotFoundError
from modal_nomad.wire.spec import FunctionSpec


@method("blob.missing")
async def _blob_missing(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    hashes = args.get("hashes")
    if not isinstance(hashes, list) or not all(isinstance(x, str) for x in hashes):
        raise InvalidError("the request needs hashes as a list of strings")
    return {"missing": await server.rights.missing(session.identity.environments, hashes)}, []


@method("app.publish")
async def _publish(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    await server.rights.check_values(session.identity.environments, args.get("functions"))
    await server.garbage.spare(args.get("functions"))
    return await server.live_apps.publish(dict(args), session), []


@method("app.plan")
async def _plan(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    entries = args.get("functions")
    if not isinstance(entries, list) or not all(
        isinstance(x, dict) and isinstance(x.get("job"), dict) for x in entries
    ):
        raise InvalidError("the request needs functions, each with its job")
    token = session.identity.token
    jobs = []
    check_publication({"functions": [x for x in entries if x.get("spec") is not None]})
    for entry in entries:
        spec = entry.get("spec")
        schedule = FunctionSpec.from_dict(spec).schedule if spec is not None else None
        periodic = server.schedules.job_of(entry["job"], schedule)
        jobs += [entry["job"], *([periodic] if periodic is not None else [])]
    # Else the difference to what is registered would show jobs of other environments.
    server.live_apps.check_place(optional(args, "environment") or DEFAULT_ENVIRONMENT, jobs)
    plans = await asyncio.gather(*(server.engine.plan(job, token=token) for job in jobs))
    return {
        "plans": [
            {
                "job_id": job.get("ID", ""),
                "changes": plan.changes,
                "diff": plan.diff,
                "warnings": plan.warnings,
                "failures": dict(plan.failures),
            }
            for job, plan in zip(jobs, plans, strict=True)
        ]
    }, []


@method("app.stop")
async def _stop(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    await server.live_apps.stop(text(args, "app_id"), session.identity.token)
    return {}, []


@method("app.resolve")
async def _resolve(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    return await server.apps.resolve(text(args, "app"), optional(args, "environment")), []


@method("app.list")
async def _list(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    found = await server.apps.list(optional(args, "environment"))
    for app in found["apps"]:
        app["next_run"] = server.schedules.next_of_app(app["app_id"])
    return found, []


@method("app.history")
async def _history(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    return await server.apps.history(text(args, "app"), optional(args, "environment")), []


@method("app.lookup")
async def _lookup(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    create = bool(args.get("create_if_missing"))
    return await server.apps.lookup(text(args, "name"), optional(args, "environment"), create), []


@method("app.subscribe")
async def _subscribe(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    server.hub.follow(text(args, "app_id"), session.send, backlog=bool(args.get("backlog")))
    return {}, []


@method("function.lookup")
async def _function_lookup(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    app, name = text(args, "app"), text(args, "name")
    if app.startswith("ap-"):
        # A container asks for a Function of its own App, which may be ephemeral.
        for state in server.functions.values():
            if state.app_id == app and state.name == name and state.parent_id is None:
                found = {"function_id": state.function_id, "is_generator": state.spec.is_generator}
                await server.rights.show_values(session.identity.environments, state.spec_dict)
                return {**found, "spec": state.spec_dict}, []
        raise NotFoundError(f"app {app} has no function {name!r}")
    found = await server.apps.function_lookup(app, name, optional(args, "environment"))
    await server.rights.show_values(session.identity.environments, found)
    return found, []


async def _show(server: Dispatcher, session: ClientSession, payloads: Sequence[tuple[bytes, int]]) -> None:
    """Let a client read the blobs that stand for payloads which it is given."""
    if session.identity.environments:
        named = flagged((x[0] for x in payloads), (x[1] for x in payloads))
        await server.rights.show(session.identity.environments, named)


def _function(server: Dispatcher, args: Mapping[str, Any]) -> FunctionState:
    function_id = text(args, "function_id")
    state = server.functions.get(function_id)
    if state is None:
        raise NotFoundError(f"Function {function_id} is not live here: run or deploy its app again")
    return state


@method("function.stats")
async def _function_stats(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    return current_stats(server.calls, _function(server, args)), []


@method("function.update_autoscaler")
async def _update_autoscaler(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    state = _function(server, args)
    return await update_autoscaler(server.store, server.handle, state, args.get("settings")), []


@method("function.describe")
async def _function_describe(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    state = server.functions.get(text(args, "function_id"))
    if state is None:
        raise NotFoundError(f"Function {args['function_id']} is not known here: deploy its app again")
    answer = {"spec": state.spec_dict, "job_id": state.job_id, "namespace": state.namespace}
    return {**answer, "environment": state.environment}, []


@full_method("function.bind")
async def _function_bind(server: Dispatcher, request: Request) -> Answer:
    args, params = request.args, request.payloads[0] if request.payloads else None
    options = {name: args[name] for name in ("spec", "job") if name in args}
    parent_id, token = text(args, "function_id"), request.session.identity.token
    parent = server.functions.get(parent_id)
    if parent is not None and isinstance(options.get("spec"), dict):
        check_publication({"functions": [{"spec": options["spec"], "job": {}}]})
        await server.rights.check_values(request.session.identity.environments, options)
        allowed = scope.narrowed(parent.spec.scope, request.session.identity.environments)
        options["spec"] = {**options["spec"], "scope": list(allowed)}
        await server.rights.show_values(allowed, options["spec"])
        spec = FunctionSpec.from_dict(options["spec"])
        await server.live_apps.check_use([spec], parent.environment, request.session.identity)
    return {"function_id": await server.variants.bind(parent_id, params, options, token)}, []


@method("call.get")
async def _call_get(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    index, timeout = args.get("index", 0), args.get("timeout")
    if not isinstance(index, int) or not (timeout is None or isinstance(timeout, (int, float))):
        raise InvalidError("index must be a whole number and timeout a number of seconds or null")
    output = await server.durable.result(text(args, "call_id"), index, timeout)
    if output is None:
        return {"done": False}, []
    await _show(server, session, [(output.payload, output.flags)])
    return {"done": True, "status": output.status, "flags": output.flags}, [output.payload]


@method("call.info")
async def _call_info(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    call = await server.reader.record(text(args, "call_id"))
    return {
        "function_id": call.function_id,
        "is_generator": call.kind == GENERATOR,
        "num_inputs": await server.reader.num_inputs(call),
    }, []


@method("call.outputs")
async def _call_outputs(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    start, limit, timeout = count(args, "start"), count(args, "limit"), seconds(args, "timeout")
    page = await server.reader.outputs(text(args, "call_id"), start, min(limit, 10_000), timeout)
    await _show(server, session, [(x.payload, x.flags) for x in page.outputs])
    return {
        "statuses": [x.status for x in page.outputs],
        "flags": [x.flags for x in page.outputs],
        "num_inputs": page.num_inputs,
    }, [x.payload for x in page.outputs]


@method("call.items")
async def _call_items(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    index, start, limit = (count(args, name) for name in ("index", "start", "limit"))
    call_id, timeout = text(args, "call_id"), seconds(args, "timeout")
    page = await server.reader.items(call_id, index, start, min(limit, 10_000), timeout)
    if page.end is not None:
        await _show(server, session, [(page.end.payload, page.end.flags)])
        return {"done": True, "status": page.end.status, "flags": page.end.flags}, [page.end.payload]
    await _show(server, session, page.items)
    return {"done": False, "flags": [x[1] for x in page.items]}, [x[0] for x in page.items]


@method("call.graph")
async def _call_graph(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    calls, inputs = await server.graph.graph(text(args, "call_id"))
    positions = {call.call_id: position for position, call in enumerate(calls)}
    return {
        "calls": [(x.call_id, x.parent, x.name, x.module) for x in calls],
        "inputs": [(positions[x.call_id], x.input_index, x.status, x.task_id) for x in inputs],
    }, []


@method("call.cancel")
async def _call_cancel(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    from modal_nomad.dispatcher._events import CallCancelled

    server.handle(CallCancelled(text(args, "call_id"), bool(args.get("terminate_containers"))))
    return {}, []


@method("server.status")
async def _status(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    from modal_nomad import __version__

    stats = server.calls.stats()
    busy = {c.container_id: c for c in server.calls.containers()}
    names = {a["app_id"]: a["name"] or a["description"] for a in (await server.apps.list(None))["apps"]}
    now = server._now()
    containers = []
    allowed = session.identity.environments
    for info in server.containers.values():
        if allowed and info.function.environment not in allowed:
            continue
        view = busy.get(info.container_id)
        containers.append(
            {
                "container_id": info.container_id,
                "app": names.get(info.function.app_id, info.function.app_id),
                "function": info.function.label,
                "state": view.state if view else info.state,
                "since": time.time() - (now - view.since) if view else server.started,
                "busy": view.busy if view else 0,
            }
        )
    return {
        "version": __version__,
        "engine": server.engine.name,
        "pid": os.getpid(),
        "uptime": time.time() - server.started,
        "apps": len({f.app_id for f in server.functions.values()}),
        "containers": containers,
        "calls": stats.calls,
        "backlog": stats.backlog,
        "store": str(server.settings.home),
    }, []


@method("server.stop")
async def _server_stop(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    if not server.settings.embedded:
        raise InvalidError("only the embedded dispatcher is stopped this way; stop a cluster's with Nomad")
    asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGTERM)
    return {}, []
