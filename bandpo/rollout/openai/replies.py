"""Replies of an endpoint: read into samples, and kept since they were paid for."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from bandpo.errors import UserError

# An endpoint's words for the token limit; every other end is the model's own, or the endpoint's.
_LIMIT = {"length", "max_tokens", "max_output_tokens"}
_ENDS = {"stop", "eos", "eos_token", "stop_sequence", "end_turn"}
_CUT = {"abort", "error"}


@dataclass(frozen=True)
class Choice:
    """A sample as an endpoint reports it.

    `tokens` are those that the endpoint counts, None where it counts none; with several samples in
    a reply, whose tokens it counts together, each has its share by its length in characters.
    """

    text: str
    finish_reason: str | None
    tokens: int | None
    token_ids: tuple[int, ...] = ()

    @property
    def truncated(self) -> bool:
        """Whether the token limit ended it."""
        return self.finish_reason in _LIMIT

    @property
    def odd_end(self) -> str | None:
        """The reason of an end that is neither the model's own nor the token limit."""
        usual = self.truncated or self.finish_reason in _ENDS
        return None if usual else self.finish_reason or "no reason given"


def choices_of(reply: Any) -> list[Choice]:
    """The samples of a reply, in order; raises an error of Python's where it is not one."""
    found = sorted(reply["choices"], key=lambda choice: choice.get("index") or 0)
    if not found:
        raise ValueError("no choices")
    texts = [_text(choice) for choice in found]
    reasons = [choice.get("finish_reason") for choice in found]
    if cut := _CUT.intersection(filter(None, reasons)):
        raise ValueError(f"a sample ended by {min(cut)}")
    total = (reply.get("usage") or {}).get("completion_tokens")
    ids = [tuple(choice.get("token_ids") or ()) for choice in found]
    if all(ids):
        counts: Sequence[int | None] = [len(tokens) for tokens in ids]
    else:
        counts = _shares(total, [len(text) for text in texts])
    return [Choice(*parts) for parts in zip(texts, reasons, counts, ids, strict=True)]


def _shares(total: int | None, lengths: Sequence[int]) -> list[int | None]:
    """A total in whole parts that add up to it, in proportion to the lengths."""
    if total is None:
        return [None] * len(lengths)
    weights = [length + 1 for length in lengths]
    ends = [round(total * part / sum(weights)) for part in accumulate(weights, initial=0)]
    return [end - begin for begin, end in pairwise(ends)]


def _text(choice: Mapping[str, Any]) -> str:
    """A sample's text, with the thinking that the endpoint has split off in its place before it.

    Thinking that the token limit cut off is not closed: no answer follows it.
    """
    if "message" not in choice:
        return choice["text"] or ""
    message = choice["message"]
    thinking = message.get("reasoning_content") or message.get("reasoning") or ""
    said = message.get("content") or message.get("refusal") or ""
    if not isinstance(said, str):
        thinking, said = thinking or _parts(said, "thinking"), _parts(said, "text")
    if not thinking or "<think>" in said:
        return said
    opened = "<think>\n" + thinking.strip("\n")
    unfinished = not said and choice.get("finish_reason") in _LIMIT
    return opened if unfinished else f"{opened}\n</think>\n\n{said}"


def _parts(content: Any, kind: str) -> str:
    """The text of all parts of a kind, for content that is a list of parts."""
    found = [part[kind] for part in content if part.get("type") == kind]
    return "".join(text if isinstance(text, str) else _parts(text, "text") for text in found)


@dataclass
class Usage:
    """Counts over replies, of all parts of an evaluation: it is what was paid for.

    `models` and `fingerprints` are the names that the endpoint gave itself; `odd_ends` counts
    samples by the reason of their end, where that is neither the model's own nor the token limit.
    """

    requests: int = 0
    samples: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    uncounted_requests: int = 0
    models: Counter[str] = field(default_factory=Counter)
    fingerprints: Counter[str] = field(default_factory=Counter)
    odd_ends: Counter[str] = field(default_factory=Counter)

    def add(self, reply: Mapping[str, Any]) -> None:
        """Counts a reply."""
        choices, usage = choices_of(reply), reply.get("usage") or {}
        details = usage.get("completion_tokens_details") or {}
        self.requests += 1
        self.samples += len(choices)
        self.prompt_tokens += usage.get("prompt_tokens") or 0
        self.completion_tokens += usage.get("completion_tokens") or 0
        self.reasoning_tokens += details.get("reasoning_tokens") or 0
        self.uncounted_requests += usage.get("completion_tokens") is None
        self.models.update(filter(None, [reply.get("model")]))
        self.fingerprints.update(filter(None, [reply.get("system_fingerprint")]))
        self.odd_ends.update(choice.odd_end for choice in choices if choice.odd_end)

    def settings(self) -> dict[str, Any]:
        """The counts as JSON."""
        return {k: dict(v) if isinstance(v, Counter) else v for k, v in vars(self).items()}

    def lines(self) -> list[str]:
        """Lines for the user: the tokens used, and what is odd about the replies."""
        thought = f" ({self.reasoning_tokens:,} of them thinking)" if self.reasoning_tokens else ""
        lines = [
            f"{self.requests:,} requests for {self.samples:,} samples used {self.prompt_tokens:,} "
            f"prompt tokens and {self.completion_tokens:,} completion tokens{thought}"
        ]
        if self.uncounted_requests:
            lines.append(
                f"! {self.uncounted_requests:,} replies report no tokens: their samples count as "
                "of length 0"
            )
        if len(self.models) > 1:
            lines.append(f"! answered by more than one model: {', '.join(sorted(self.models))}")
        if self.odd_ends:
            ends = ", ".join(f"{reason} {count:,}" for reason, count in self.odd_ends.items())
            lines.append(f"! samples that neither the model nor the token limit ended: {ends}")
        return lines


class Replies:
    """Every reply that was paid for, a line of `replies.jsonl`, so that none is asked for twice.

    A sample is identified by a key, that of its prompt and settings, and its index. Without a
    folder nothing is kept. Each rank writes a file of its own and reads all of them.
    """

    def __init__(self, folder: Path | None, rank: int = 0) -> None:
        self._folder = folder
        self._own = folder and folder / _name(rank)
        self._found: dict[str, dict[int, Choice]] = defaultdict(dict)
        for line in self._lines():
            choices = choices_of(line["reply"])[: line["count"]]
            self._found[line["key"]].update(enumerate(choices, line["first"]))

    def take(self, key: str) -> dict[int, Choice]:
        """The samples of this key that earlier parts of the evaluation got, by index."""
        return self._found.pop(key, {})

    def add(self, key: str, first: int, count: int, reply: Mapping[str, Any]) -> None:
        """Keeps a reply whose samples are the `count` from `first`; on the disk when it returns.

        Raises UserError where the disk refuses.
        """
        if self._own is None:
            return
        line = json.dumps({"key": key, "first": first, "count": count, "reply": reply}) + "\n"
        try:
            with self._own.open("ab", buffering=0) as file:
                before = os.fstat(file.fileno()).st_size
                data = line.encode("ascii")
                if file.write(data) != len(data):
                    file.truncate(before)
                    raise OSError("could not write a whole line; is the disk full?")
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(
                f"{self._own}: {error.strerror or error}; make room and repeat the command to "
                "continue"
            ) from None

    def usage(self) -> Usage:
        """The counts of all replies of all ranks."""
        usage = Usage()
        for line in self._lines():
            usage.add(line["reply"])
        return usage

    def _lines(self) -> Iterator[Mapping[str, Any]]:
        """The whole lines of all ranks; what a kill has torn is cut off this rank's own file."""
        for path in files_of(self._folder) if self._folder else ():
            with path.open("rb") as file:
                for line in file:
                    if not line.endswith(b"\n"):
                        if path == self._own:
                            os.truncate(path, path.stat().st_size - len(line))
                        break
                    yield json.loads(line)


def _name(rank: int) -> str:
    return f"replies.rank{rank}.jsonl" if rank else "replies.jsonl"


def files_of(folder: Path) -> list[Path]:
    """The files of all ranks in a folder."""
    return sorted([*folder.glob("replies.jsonl"), *folder.glob("replies.rank*.jsonl")])
