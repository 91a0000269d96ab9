"""Requests about web endpoints and their proxy auth tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modal_nomad.dispatcher._requests import Answer, method, optional, text
from modal_nomad.dispatcher.apps import DEFAULT_ENVIRONMENT
from modal_nomad.dispatcher.core import Dispatcher
from modal_nomad.dispatcher.sessions import ClientSession
from modal_nomad.exception import NotFoundError


@method("function.web_urls")
async def _web_urls(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    function_id = text(args, "function_id")
    if function_id not in server.functions:
        raise NotFoundError(f"Function {function_id} is not live here: run or deploy its app again")
    return {"urls": server.web.urls(function_id)}, []


def _environment(args: Mapping[str, Any]) -> str:
    return optional(args, "environment") or DEFAULT_ENVIRONMENT


@method("proxy_token.create")
async def _create(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    environment = _environment(args)
    await server.environments.find(environment)
    key, secret = await server.proxy_tokens.create(environment, optional(args, "label") or "")
    return {"token_id": key, "token_secret": secret, "environment": environment}, []


@method("proxy_token.list")
async def _list(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    found = await server.proxy_tokens.list(_environment(args))
    return {
        "tokens": [{"token_id": x.token_id, "label": x.label, "created_at": x.created_at} for x in found]
    }, []


@method("proxy_token.delete")
async def _delete(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    await server.proxy_tokens.delete(text(args, "token_id"), _environment(args))
    return {}, []
