"""An endpoint's address and key, and requests that are repeated until they are answered."""

from __future__ import annotations

import asyncio
import ipaddress
import math
import os
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx

from bandpo.errors import UserError
from bandpo.redaction import HIDDEN, redact
from bandpo.rollout.servers import Server, ServerLost

FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
LONGEST_REQUESTED_WAIT_S = 900.0
"""An endpoint that asks for a longer one, as at the end of a day's quota, is not waited for."""

# Of replies, besides those of 500 and above: that may be another one a little later.
_PASSING = {408, 409, 425, 429}
# Of 429: what no waiting helps with.
_SPENT = "insufficient_quota"
# Parts of URLs that users copy from examples of requests.
_CALLS = re.compile(r"/(chat/completions|completions|responses|models)/?$")

T = TypeVar("T")


@dataclass(frozen=True)
class Address:
    """An endpoint's URL without its query, which goes with every request, and the key to it."""

    url: str
    query: Mapping[str, str] = field(default_factory=dict)
    key: str | None = field(default=None, repr=False)
    key_env: str = "OPENAI_API_KEY"

    @classmethod
    def of(cls, url: str | None, key_env: str) -> Address:
        """The address that a user's URL means; `https://host` is `https://host/v1`.

        Raises UserError where it is none, or the key is not where it belongs.
        """
        if not url:
            raise UserError(
                "rollout.engine.url: name the endpoint, as in "
                "rollout.engine.url=https://api.openai.com/v1"
            )
        try:
            parsed = httpx.URL(url.strip())
        except httpx.InvalidURL as error:
            raise UserError(f"rollout.engine.url={redact(url)}: {error}") from None
        if parsed.userinfo:
            raise UserError(
                "rollout.engine.url holds a password: put the key into the environment variable "
                f"{key_env} instead"
            )
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise UserError(f"rollout.engine.url={url} is not like https://api.openai.com/v1")
        path = _CALLS.sub("", parsed.path).rstrip("/") or "/v1"
        base = parsed.copy_with(path=path, query=None, fragment=None)
        return cls(str(base), dict(parsed.params), _key(key_env), key_env)

    def shown(self, text: str) -> str:
        """The text on one line, at most 500 characters of it, without the key."""
        hidden = text.replace(self.key, HIDDEN) if self.key else text
        return redact(" ".join(hidden.split())[:500])


def _key(variable: str) -> str | None:
    if not re.fullmatch(r"[A-Za-z_]\w*", variable):  # not shown: it may be the key itself
        raise UserError(
            "rollout.engine.key_env takes the name of an environment variable, not the key itself"
        )
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"{variable}: the key in this variable has characters that no key has")
    return key or None


class Refused(Exception):
    """The endpoint has answered that it will not; the message is its own."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


class _Failed(Exception):
    """A request had no usable answer, which it may have later."""

    def __init__(self, reason: str, wait_s: float | None = None, limited: bool = False) -> None:
        super().__init__(reason)
        self.wait_s, self.limited = wait_s, limited


class Endpoint:
    """Sends at most `concurrency` requests at a time, and each again up to `retries` times.

    Repeated are requests without a whole, readable reply within `timeout_s`, and those answered
    with 408, 409, 425, 429 or 5xx: after the time that the endpoint names (Retry-After), for which
    all requests wait, or else after 1, 2, 4, … 60 s. A rate limit that lets other requests through
    uses up none of the retries.
    """

    def __init__(
        self, address: Address, *, concurrency: int, retries: int, timeout_s: float
    ) -> None:
        self.address = address
        self._retries, self._timeout_s = retries, timeout_s
        proxies = not _is_near(httpx.URL(address.url).host)
        self._server = Server(address.url, address.key, timeout_s, through_proxies=proxies)
        self._slots = asyncio.Semaphore(concurrency)
        self._opens_at = 0.0
        self._answered = 0
        self._random = random.Random()  # nobody else's: samples must not depend on it

    async def ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        read: Callable[[Any], T] = lambda reply: reply,
    ) -> T:
        """The value of `read` for the reply's JSON.

        `read` raises an error of Python's for a reply that is not as it should be,
        which is asked for again. Raises Refused where the endpoint refuses, UserError where it has
        not answered after all retries.
        """
        failures = 0
        while True:
            answered = self._answered
            try:
                async with self._slots:
                    await self._opening()
                    found = read(await self._reply(method, path, body))
                self._answered += 1
                return found
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                failure = _Failed(f"a reply that cannot be read ({type(error).__name__}: {error})")
            except _Failed as failed:
                failure = failed
            among_others = failure.limited and self._answered > answered
            failures = 1 if among_others else failures + 1
            if failures > self._retries:
                raise UserError(
                    f"{self.address.url}{path}: no answer in {failures} attempts, the last: "
                    f"{self.address.shown(str(failure))}. What has been sampled is kept: repeat "
                    "the command to continue"
                )
            await asyncio.sleep(self._wait(failures, failure))

    async def _opening(self) -> None:
        """Waits for as long as the endpoint has asked for."""
        while (left := self._opens_at - time.monotonic()) > 0:
            await asyncio.sleep(left)

    def _wait(self, failures: int, failure: _Failed) -> float:
        """Seconds until the next attempt, spread so that waiting requests do not come at once."""
        backoff = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(failures - 1, 30))
        if failure.wait_s is None:
            return backoff * self._random.uniform(0.5, 1.0)
        if failure.wait_s > LONGEST_REQUESTED_WAIT_S:
            raise UserError(
                f"{self.address.url}: asks to wait {failure.wait_s:.0f} s "
                f"({self.address.shown(str(failure))}). What has been sampled is kept: repeat the "
                "command then to continue"
            )
        self._opens_at = max(self._opens_at, time.monotonic() + failure.wait_s)
        return failure.wait_s + backoff * self._random.uniform(0.0, 0.5)

    async def _reply(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        """The JSON of a successful reply; raises ValueError where it is none."""
        query = dict(self.address.query)
        try:
            async with asyncio.timeout(self._timeout_s):
                reply = await self._server.request(method, path, json=body, params=query)
        except TimeoutError:
            raise _Failed(f"no whole reply within {self._timeout_s:g} s") from None
        except ServerLost as lost:
            raise _Failed(str(lost)) from None
        if reply.is_redirect:
            place = self.address.shown(reply.headers.get("location", "elsewhere"))
            raise Refused(reply.status_code, f"moved to {place}: set rollout.engine.url to that")
        content = _content(reply)
        status, message, code = _fault(reply, content)
        if status is None:
            return content
        if code != _SPENT and (status in _PASSING or status >= 500):
            wait_s = requested_wait(reply.headers)
            raise _Failed(f"{status} {message}", wait_s, limited=status == 429)
        raise Refused(status, message, code)

    def error(self, path: str, refused: Refused) -> UserError:
        """The end of an evaluation that the endpoint refuses."""
        message = self.address.shown(str(refused))
        return UserError(
            f"{self.address.url}{path}: {refused.status} {message}{_remedy(refused, self.address)}"
        )

    async def close(self) -> None:
        """Closes the connections."""
        await self._server.close()


def _is_near(host: str) -> bool:
    """Whether no proxy is on the way: this machine, or an address of a private network."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_private
    except ValueError:
        return False


def _content(reply: httpx.Response) -> Any:
    try:
        return reply.json()
    except ValueError:
        if reply.is_success:
            raise ValueError(f"no JSON: {reply.text[:200]!r}") from None
        return None


def _fault(reply: httpx.Response, content: Any) -> tuple[int | None, str, str]:
    """Status, message and code of a reply that is an error; a status of None where it is none.

    Gateways also wrap another server's error into a reply of status 200.
    """
    error = content.get("error") if isinstance(content, Mapping) else None
    if reply.is_success and (not error or content.get("choices")):
        return None, "", ""
    details = error if isinstance(error, Mapping) else {}
    told = [details.get("message"), error if isinstance(error, str) else None]
    if isinstance(content, Mapping):
        told += [content.get("message"), content.get("detail")]
    message = next((str(text) for text in told if text), reply.text)
    code = str(details.get("code") or details.get("type") or "")
    if not reply.is_success:
        return reply.status_code, message, code
    return (int(code) if code.isdecimal() and int(code) >= 400 else 500), message, code


def requested_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that a reply asks to wait: Retry-After, a number or a date; None without it."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit
        except (KeyError, ValueError):
            continue
        return max(0.0, seconds) if math.isfinite(seconds) else None
    try:
        date = parsedate_to_datetime(headers["retry-after"])
    except (KeyError, ValueError, TypeError):
        return None
    at = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())


def _remedy(refused: Refused, address: Address) -> str:
    """The setting that a refusal is about, as far as its words tell."""
    text = str(refused).lower()
    if refused.status in (401, 403):
        wanted = "holds no key" if address.key is None else "must hold a key that it takes"
        return f" (the environment variable {address.key_env} {wanted}; rollout.engine.key_env)"
    if refused.status == 404:
        return " (is rollout.engine.url the endpoint's, and the model's name as it knows it?)"
    if "max_completion_tokens" in text:
        return " (set rollout.engine.limit_field=max_completion_tokens)"
    if "context" in text or "maximum" in text:
        return " (lower eval.max_tokens)"
    if names := [name for name in ("temperature", "top_p", "seed") if name in text]:
        return f" (rollout.engine.omit=[{','.join(names)}] sends no such field)"
    return ""


@dataclass(frozen=True)
class Served:
    """The endpoint's own list of models: all names, and its entry of one, where it has them."""

    names: tuple[str, ...] = ()
    card: Mapping[str, Any] | None = None


# The parts of an entry that stay; `created` is the time of the reply with some servers.
_CARD = ("id", "root", "parent", "owned_by", "max_model_len", "context_length")


def served(address: Address, model: str) -> Served:
    """The entry of this name in the endpoint's list of models; nothing where it keeps no list.

    Raises UserError where it does not answer, or does not take the key.
    """
    return asyncio.run(_served(address, model))


async def _served(address: Address, model: str) -> Served:
    endpoint = Endpoint(address, concurrency=1, retries=2, timeout_s=60.0)
    try:
        entries = await endpoint.ask("GET", "/models", read=_entries)
    except Refused as refused:
        if refused.status == 401:
            raise endpoint.error("/models", refused) from None
        return Served()
    finally:
        await endpoint.close()
    cards = [entry for entry in entries if entry["id"] == model][:1]
    card = {key: cards[0][key] for key in _CARD if cards[0].get(key) is not None} if cards else None
    return Served(tuple(str(entry["id"]) for entry in entries), card)


def _entries(reply: Any) -> list[Mapping[str, Any]]:
    """The models of a reply, whether in `data`, as OpenAI has them, or as a bare list."""
    found = reply["data"] if isinstance(reply, Mapping) else reply
    return [entry for entry in found if isinstance(entry, Mapping) and "id" in entry]
