"""Checks vLLM servers before anything is asked of them; every fault in one message."""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from bandpo.errors import UserError
from bandpo.rollout.servers import Server, ServerLost

log = logging.getLogger(__name__)

GENERATE = "/inference/v1/generate"
_LOCAL = "serve the trainer's model with --model {}, or set rollout.engine.model={}"


@dataclass(frozen=True)
class Requirements:
    """The properties that every server must have.

    A server that was lost while it took weights may be paused: taking weights resumes it.
    """

    model: str
    dtype: str
    max_model_len: int
    transfer: str
    may_be_paused: bool = False


def normalised(urls: Sequence[str]) -> list[str]:
    """The URLs without trailing slashes; raises UserError for a malformed or repeated one.

    Warns of addresses that the whole internet may reach: vLLM asks for no key where weights are
    replaced.
    """
    if isinstance(urls, str) or not urls:
        raise UserError("rollout.engine.urls: give a list, as in [http://127.0.0.1:8000]")
    cleaned = [url.rstrip("/") for url in urls]
    for url in cleaned:
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise UserError(f"rollout.engine.urls: {url}: {error}") from None
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise UserError(f"rollout.engine.urls: {url} is not like http://127.0.0.1:8000")
        if cleaned.count(url) > 1:
            raise UserError(f"rollout.engine.urls: {url} is listed twice")
        if _is_public(parsed.host):
            log.warning(
                "%s is not a private address: anyone who reaches it can replace its weights, "
                "since vLLM's API key does not protect these endpoints",
                url,
            )
    return cleaned


def _is_public(host: str) -> bool:
    try:
        found = socket.getaddrinfo(host, None)
    except OSError:
        return False  # reported by the check that connects
    return not all(ipaddress.ip_address(str(entry[4][0])).is_private for entry in found)


async def check_servers(servers: Sequence[Server], required: Requirements) -> None:
    """Sets each server's slots; raises UserError with the faults of all servers."""
    faults = [
        f"{server.url}: {fault}"
        for server in servers
        for fault in await faults_of(server, required)
    ]
    if faults:
        raise UserError.join(
            "rollout.engine.urls: the servers must be started as docs/servers.md describes", faults
        )


async def faults_of(server: Server, required: Requirements) -> list[str]:
    """The faults of a server, each with its remedy; sets the server's slots."""
    try:
        models = await server.request("GET", "/v1/models")
        if models.status_code == 401:
            return ["wants an API key: set VLLM_API_KEY to the server's"]
        if models.is_error:
            return [f"is not a vLLM server: /v1/models answers {models.status_code}"]
        settings = await server.request("GET", "/server_info", params={"config_format": "json"})
        weights = await server.request("GET", "/weight_info")
        if settings.is_error or weights.is_error:
            return ["was started without VLLM_SERVER_DEV_MODE=1 in its environment"]
        paused = (await server.request("GET", "/is_paused")).json()["is_paused"]
        generate = await server.request("POST", GENERATE, json={})
        config = settings.json()["vllm_config"]
        server.slots = config["scheduler_config"]["max_num_seqs"]
        return [
            *_unfit_model(models.json()["data"][0], required),
            *_unfit_settings(config, required),
            *_unfit_transfer(settings.json(), required),
            *_unfit_state(paused and not required.may_be_paused, generate.status_code),
        ]
    except ServerLost as loss:
        return [f"does not answer ({loss}); start it, see docs/servers.md"]
    except (ValueError, KeyError) as error:  # whatever else listens there
        return [f"does not answer as vLLM does ({type(error).__name__}: {error})"]


def _unfit_model(card: dict[str, Any], required: Requirements) -> Iterator[str]:
    names = {card["id"], card["root"]}
    if required.model not in names and _resolved(required.model) not in map(_resolved, names):
        hint = _LOCAL.format(required.model, card["id"])
        yield f"serves {card['id']}, not {required.model}: {hint}"
    if card["max_model_len"] < required.max_model_len:
        yield (
            f"takes {card['max_model_len']} tokens, prompt and completion need "
            f"{required.max_model_len}: start it with --max-model-len {required.max_model_len}"
        )


def _resolved(name: str) -> str:
    return str(Path(name).expanduser().resolve())


def _unfit_settings(config: dict[str, Any], required: Requirements) -> Iterator[str]:
    model, scheduler = config["model_config"], config["scheduler_config"]
    if model["logprobs_mode"] != "processed_logprobs":
        yield (
            f"reports {model['logprobs_mode']}: start it with --logprobs-mode processed_logprobs"
        )
    if model["dtype"].removeprefix("torch.") != required.dtype:
        yield f"computes in {model['dtype']}: start it with --dtype {required.dtype}"
    if model["skip_tokenizer_init"]:
        yield "cannot find stop strings: start it without --skip-tokenizer-init"
    if config["device_config"]["device"] == "cpu" and scheduler["enable_chunked_prefill"]:
        yield "cannot seed samples on a CPU: start it with --no-enable-chunked-prefill"


def _unfit_transfer(info: dict[str, Any], required: Requirements) -> Iterator[str]:
    if required.transfer == "folder":
        return
    backend = (info["vllm_config"]["weight_transfer_config"] or {}).get("backend")
    if backend != required.transfer:
        wanted = f"""--weight-transfer-config '{{"backend": "{required.transfer}"}}'"""
        yield f"takes weights from {backend or 'folders alone'}: start it with {wanted}"
    if required.transfer == "ipc" and not info["vllm_env"]["VLLM_ALLOW_INSECURE_SERIALIZATION"]:
        yield "was started without VLLM_ALLOW_INSECURE_SERIALIZATION=1 in its environment"


def _unfit_state(paused: bool, generate_status: int) -> Iterator[str]:
    if paused:
        yield "is paused, as by a run that was killed while it sent weights: restart it"
    if generate_status == 403:
        yield f"keeps {GENERATE} closed: start it with --enable-scale-out"
    if generate_status == 404:
        yield f"has no {GENERATE}: its vLLM is too old"
