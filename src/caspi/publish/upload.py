"""A trained model to the Hugging Face hub, through the real client, as one commit with its card.

The local model is only read. The token comes from the environment (HF_TOKEN) and goes nowhere but to the hub.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from caspi.errors import CaspiError, StageFailed, UserError
from caspi.files import file_digest
from caspi.publish.card import model_card, model_files
from caspi.records.round_dir import RoundDir

ATTEMPTS = 5
PAUSE_SECONDS = 1.0
"""Before the second attempt; doubled for each later one."""
AGAIN = {408, 409, 412, 429}
"""Answers below 500 that pass by themselves: too slow, too many, another commit at the same time."""
MAIN = "main"

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Pushed:
    """Where the model is now."""

    url: str
    commit: str
    changed: bool
    """False when the hub had all of it already: there is no new commit then."""


def push(round_dir: RoundDir, repository: str, private: bool = False, branch: str = MAIN) -> Pushed:
    """Publish the model of a round as `repository` (owner/name), which is made where there is none.

    UserError when there is no such model, or the hub does not let us; StageFailed when the network gives up. Either
    way the local model stays as it is, and the same command goes on: files that the hub has are not sent twice.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repository):
        raise UserError(f'--to "{repository}": write a repository as owner/name')
    if not re.fullmatch(r"[A-Za-z0-9][\w./-]*", branch):
        raise UserError(f'--revision "{branch}": that is no name of a branch')
    token = os.environ.get("HF_TOKEN")
    if not token:
        raise UserError(
            "HF_TOKEN is not set: make a token with write access on https://huggingface.co/settings/tokens, then "
            "export HF_TOKEN=..."
        )
    card = model_card(round_dir, repository)
    names = _checked(round_dir)
    return _Hub(token, repository, round_dir).commit(names, card, private, branch)


def _checked(round_dir: RoundDir) -> list[str]:
    """The files of the model, each as training left it."""
    files = model_files(round_dir.succeeded("train"))
    where = str(round_dir.model)
    if not files:
        raise UserError(
            "the record of train lists no model; delete train/record.json and run the round again", where=where
        )
    problems = []
    for name, sha in sorted(files.items()):
        path = round_dir.model / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif file_digest(path) != sha:
            problems.append(f"{name} is not what training wrote (its sha256 differs from the record)")
    if problems:
        raise UserError(
            *problems,
            "nothing was pushed: delete train/record.json and run the round again, it ends quickly",
            where=where,
        )
    return sorted(files)


class _Hub:
    """One repository of the hub."""

    def __init__(self, token: str, repository: str, round_dir: RoundDir) -> None:
        from huggingface_hub import HfApi
        from huggingface_hub.utils.tqdm import disable_progress_bars

        # What the client has to say is said in one line of our own.
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        if not sys.stderr.isatty():
            disable_progress_bars()
        self.api = HfApi(token=token)
        self.token, self.repository, self.round_dir = token, repository, round_dir

    def commit(self, names: list[str], card: str, private: bool, branch: str) -> Pushed:
        self._asked(lambda: self.api.create_repo(self.repository, private=private, exist_ok=True))
        if private and not self._asked(lambda: self.api.model_info(self.repository)).private:
            raise UserError(
                f"{self.repository}: is there already, and public; make it private there, or push elsewhere"
            )
        if branch != MAIN:
            self._asked(lambda: self.api.create_branch(self.repository, branch=branch, exist_ok=True))
        before = self._head(branch)
        spec = self.round_dir.spec
        self._asked(
            lambda: self.api.create_commit(
                self.repository,
                operations=self._operations(names, card),  # anew: a lost answer must not be committed twice
                commit_message=f"Round {spec.round}, sha256:{spec.digest[:12]}",
                revision=branch,
            )
        )
        after = self._head(branch)
        return Pushed(f"{self.api.endpoint}/{self.repository}/tree/{branch}", after, changed=after != before)

    def _head(self, branch: str) -> str:
        return str(self._asked(lambda: self.api.model_info(self.repository, revision=branch)).sha)

    def _operations(self, names: list[str], card: str) -> list[Any]:
        from huggingface_hub import CommitOperationAdd

        files: Mapping[str, Any] = {name: str(self.round_dir.model / name) for name in names}
        return [CommitOperationAdd(name, content) for name, content in {**files, "README.md": card.encode()}.items()]

    def _asked(self, call: Callable[[], Answer]) -> Answer:
        """The answer of the hub. What passes by itself is tried again, more and more slowly."""
        why = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(PAUSE_SECONDS * 2 ** (attempt - 1))
            try:
                return call()
            except (OSError, RuntimeError, ValueError) as error:
                why = self._passing(error)
        raise StageFailed(
            f"{self.repository}: {self.api.endpoint} can't take it ({why}, {ATTEMPTS} times); the model in "
            f"{self.round_dir.model} is as it was. Check the network, HTTPS_PROXY and HF_ENDPOINT, then run the same "
            "command again: what the hub has is not sent twice"
        )

    def _passing(self, error: Exception) -> str:
        """Why it may work the next time; raises what will not."""
        status = next((code for each in _chain(error) if (code := _status(each))), None)
        if status is not None and status < 500 and status not in AGAIN:
            raise self._refused(status, error) from None
        if status is not None:
            return f"it answers {status}"
        if any(isinstance(each, OSError) for each in _chain(error)) or not isinstance(error, ValueError):
            last = list(_chain(error))[-1]
            return type(last).__name__
        raise UserError(f"{self.repository}: the hub refuses it: {self._line(str(error))}") from None

    def _refused(self, status: int, error: Exception) -> CaspiError:
        said = {
            401: "the hub does not know HF_TOKEN (401): it is mistyped, expired or revoked; export a valid one",
            403: "HF_TOKEN may not write there (403): take a token with write access, and an owner that is you or your "
            "organisation",
            404: "there is no such owner or repository, or HF_TOKEN may not see it (404); check --to",
        }
        line = said.get(status) or f"the hub refuses it ({status}): {self._line(str(error))}"
        return UserError(f"{self.repository}: {line}. The local model is as it was")

    def _line(self, text: str) -> str:
        return " ".join(text.replace(self.token, "***").split())[:200]


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came from: the client wraps failures of an upload."""
    at: BaseException | None = error
    while at is not None:
        yield at
        at = at.__cause__ or at.__context__


def _status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    return getattr(response, "status_code", None)
