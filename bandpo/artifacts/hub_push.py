"""The trained policy on the Hugging Face hub: the right to push at the start, the push at the end.

A push is one commit of the files of a checkpoint's `hf/`, the model card among them, and of
nothing else: neither the learner's state nor samples.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bandpo.artifacts.checkpoint import Checkpoint
from bandpo.config.schema import Config
from bandpo.errors import UserError
from bandpo.redaction import redact

logger = logging.getLogger(__name__)

BEST = "best"
"""The branch that has the best checkpoint's policy."""


@dataclass(frozen=True)
class Push:
    """A checkpoint's `hf/` to be committed to a branch of a repository."""

    repository: str
    private: bool
    checkpoint: Checkpoint
    message: str
    branch: str | None = None

    @property
    def folder(self) -> Path:
        """The files."""
        return self.checkpoint.folder / "hf"

    @property
    def command(self) -> str:
        """The command line that pushes by hand."""
        words = ["hf", "upload", self.repository, str(self.folder), "."]
        words += ["--private"] if self.private else []
        words += ["--revision", self.branch] if self.branch else []
        return shlex.join([*words, "--commit-message", self.message])

    def run(self) -> str:
        """Makes the commit and returns its address; raises whatever the hub's client raises."""
        from huggingface_hub import CommitOperationAdd, HfApi

        api = HfApi()
        _make_repository(api, self.repository, self.private)
        if self.branch:
            api.create_branch(self.repository, branch=self.branch, exist_ok=True)
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        if not files:
            raise FileNotFoundError(f"{self.folder} is missing")
        commit = api.create_commit(
            self.repository,
            [CommitOperationAdd(str(path.relative_to(self.folder)), path) for path in files],
            commit_message=self.message,
            revision=self.branch,
        )
        return str(commit.commit_url)


def pushes(config: Config) -> Iterator[Push]:
    """Yields the last checkpoint of a finished run, then the best if it is another with `hf/`."""
    run, folder = config.run, Path(config.run.dir) / "checkpoints"
    if run.push_to_hub is None:
        return
    last = Checkpoint((folder / "latest").resolve())
    yield Push(run.push_to_hub, run.hub_private, last, f"{run.name}, step {last.step}")
    best = Checkpoint((folder / BEST).resolve())
    if config.trainer.keep_best and best != last and (best.folder / "hf").is_dir():
        message = f"{run.name}, step {best.step}, best {config.trainer.keep_best}"
        yield Push(run.push_to_hub, run.hub_private, best, message, BEST)


def push_policies(config: Config, say: Callable[..., None]) -> None:
    """Pushes a finished run's policies and reports it, or the command that pushes where it failed.

    A failure does no harm: everything is in the checkpoints.
    """
    for push in pushes(config):
        step = push.checkpoint.step
        try:
            say(f"pushed step {step}: {push.run()}", wrap=False)
        except Exception as error:  # of the network, the hub or its client
            logger.debug("the push failed", exc_info=True)
            reason = f"step {step} was not pushed to {push.repository}: {_reason(error)}"
            say(f"{reason}. Nothing is lost; this pushes it:")
            say(f"  {push.command}", wrap=False)


def check_hub(config: Config, resumed: bool = False) -> list[str]:
    """Makes the repository of `run.push_to_hub` and returns notes for the user.

    Raises UserError where the token at hand cannot push there, where HF_HUB_OFFLINE is set, and
    where the repository is public in spite of `run.hub_private`. A hub that does not answer is an
    error as well, except for a run that is `resumed`, which nobody may be watching.
    """
    name = config.run.push_to_hub
    if name is None:
        return []
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HFValidationError

    setting = f"run.push_to_hub={name}"
    otherwise = "or set run.push_to_hub=null to train without"
    if constants.HF_HUB_OFFLINE:
        raise UserError(
            f"{setting}: HF_HUB_OFFLINE is set, so nothing can be pushed: unset it, {otherwise}"
        )
    if get_token() is None:
        raise UserError(
            f"{setting}: there is no token for {constants.ENDPOINT}: set HF_TOKEN or run "
            f"`hf auth login`, {otherwise}"
        )
    try:
        user = _user(HfApi())
        private = _make_repository(HfApi(), name, config.run.hub_private)
    except (UserError, HFValidationError) as error:
        raise UserError(f"{setting}: {error}") from None
    except Exception as error:  # of the network, the hub or its client
        if _is_refusal(error):
            raise UserError(
                f"{setting}: {constants.ENDPOINT} does not let this token push there "
                f"({_reason(error)}): use one that may write, {otherwise}"
            ) from None
        problem = f"{setting}: {constants.ENDPOINT} does not answer ({_reason(error)})"
        if not resumed:
            raise UserError(f"{problem}: try again later, {otherwise}") from None
        return [f"{problem}; the push after the last step is tried nevertheless"]
    kind = "private" if private else "public"
    return [f"after the last step hf/ is pushed to {name} ({kind}), as {user}"]


def _user(api: Any) -> str:
    """The owner of the token; raises what the client raises unless the hub is asked too often."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return str(api.whoami()["name"])
    except HfHubHTTPError as error:
        if _status(error) == 429:  # by the runs of a sweep, say, which does not refute the token
            return "the token's owner"
        raise


def _make_repository(api: Any, name: str, private: bool) -> bool:
    """Makes the repository unless there is one that may be written to; whether it is private.

    Raises UserError for a public one where it should be private, and what the client raises.
    """
    from huggingface_hub.errors import HfHubHTTPError

    api.create_repo(name, private=private, exist_ok=True)
    try:
        api.auth_check(name, write=True)
    except TypeError:  # a client that cannot ask yet
        pass
    except HfHubHTTPError as error:
        if _status(error) in (401, 403):  # a hub may not know the question
            raise
    is_private = bool(api.model_info(name).private)
    if private and not is_private:
        raise UserError(
            f"{name} is public: choose another name, or set run.hub_private=false to push there"
        )
    return is_private


def _is_refusal(error: Exception) -> bool:
    """Whether the hub has answered that this will not do, however often it is asked."""
    status = _status(error)
    return status is not None and 400 <= status < 500 and status not in (408, 429)


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _reason(error: Exception) -> str:
    """The first line of an error's message, with its type where it has none."""
    lines = [line for line in redact(str(error)).splitlines() if line.strip()]
    return " ".join(lines[0].split()) if lines else type(error).__name__
