"""The git repository that rounds and charts lie in. Reads only, by the git program."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from caspi.errors import UserError


class NotThere(Exception):
    """A commit, or a file at a commit, that this clone does not have."""


@dataclass(frozen=True, slots=True)
class Repository:
    """A working tree."""

    top: Path

    def head(self) -> str:
        """The commit that is checked out."""
        try:
            return self._text("rev-parse", "--verify", "HEAD^{commit}").strip()
        except NotThere:
            raise UserError("nothing is committed yet; a lock names a commit", where=str(self.top)) from None

    def changed(self) -> list[str]:
        """Paths that differ from HEAD or are new; what git ignores is left out."""
        fields = self._text("status", "--porcelain=v1", "-z", "--untracked-files=all", "--no-renames").split("\0")
        return [field[3:] for field in fields if field]

    def commit(self, reference: str) -> str:
        """The commit of a branch, a tag or a digest. Raises NotThere."""
        return self._text("rev-parse", "--verify", "--quiet", "--end-of-options", f"{reference}^{{commit}}").strip()

    def holds(self, commit: str, inner: str) -> bool:
        """Whether the history of `commit` has `inner`."""
        return self._run("merge-base", "--is-ancestor", inner, commit).returncode == 0

    def is_shallow(self) -> bool:
        return self._text("rev-parse", "--is-shallow-repository").strip() == "true"

    def files(self, commit: str) -> list[str]:
        """Every path of a commit. Raises NotThere."""
        return [name for name in self._text("ls-tree", "-r", "-z", "--name-only", commit).split("\0") if name]

    def text(self, commit: str, path: str) -> str:
        """A file of a commit. Raises NotThere."""
        return self._text("cat-file", "blob", f"{commit}:{path}")

    def last(self, commit: str, path: str) -> str | None:
        """The newest text that a file had in the history of `commit`; None when it was never there."""
        asked = ["log", "-n1", "--full-history", "--diff-filter=AM", "--format=%H", commit, "--", path]
        found = self._text(*asked).strip()
        return self.text(found, path) if found else None

    def export(self, commit: str, folder: str, to: Path) -> None:
        """Write a folder of a commit below `to`. Raises NotThere."""
        done = self._run("archive", "--format=tar", commit, "--", folder)
        if done.returncode != 0:
            raise NotThere(done.stderr.decode(errors="replace").strip())
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            archive.extractall(to, filter="data")

    def inside(self, path: Path) -> str:
        """A path as the repository calls it. UserError when it lies outside."""
        try:
            return path.resolve().relative_to(self.top).as_posix()
        except ValueError:
            raise UserError(
                f"lies outside of the repository {self.top}; a lock is made of committed files", where=str(path)
            ) from None

    def _text(self, *arguments: str) -> str:
        done = self._run(*arguments)
        if done.returncode != 0:
            raise NotThere(done.stderr.decode(errors="replace").strip())
        return done.stdout.decode(errors="surrogateescape")

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        return _git(self.top, arguments)


def find_repository(folder: Path) -> Repository:
    """The repository that a folder is in. UserError when it is in none."""
    done = _git(folder, ["rev-parse", "--show-toplevel"])
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        if said and "not a git repository" not in said[0]:
            raise UserError(f"git refuses: {said[0]}", where=str(folder))
        raise UserError(
            "not in a git repository; a lock names the commit that its round, cluster file and chart are in",
            where=str(folder),
        )
    return Repository(Path(done.stdout.decode().rstrip("\n")).resolve())


def _git(folder: Path, arguments: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
    try:
        english = {**os.environ, "LC_ALL": "C"}  # what it says is looked at
        return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, check=False, env=english)
    except FileNotFoundError:
        raise UserError("git not found; install it") from None
