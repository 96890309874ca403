"""What can go wrong, and the exit code that says so. docs/exit-codes.md is the table for users."""

from __future__ import annotations


class CaspiError(Exception):
    """Base of every error that is shown as lines, without a traceback."""

    exit_code = 1


class UserError(CaspiError):
    """Bad input: a spec, a file, an argument. Each problem is one line: what, where, the way out."""

    exit_code = 2

    def __init__(self, *problems: str, where: str = "") -> None:
        assert problems, "a UserError says what is wrong"
        self.problems = problems
        self.where = where
        super().__init__(self.render())

    def render(self) -> str:
        if len(self.problems) == 1:
            return f"{self.where}: {self.problems[0]}" if self.where else self.problems[0]
        head = f"{self.where}: {len(self.problems)} problems" if self.where else f"{len(self.problems)} problems"
        return "\n".join([head, *(f"  {problem}" for problem in self.problems)])


class GateRefused(CaspiError):
    """The audit's decision does not allow training (STOP, or CAUTION without an approval)."""

    exit_code = 3


class StageFailed(CaspiError):
    """A stage ran and failed; its record says why."""

    exit_code = 4


class Diverged(CaspiError):
    """Training stopped by itself: NaN, loss or WER out of bounds. A retry would do the same."""

    exit_code = 5


class OutOfBudget(CaspiError):
    """Training stopped at the cost limit of the round. The best checkpoint is kept."""

    exit_code = 6


class Preempted(CaspiError):
    """SIGTERM (a checkpoint was saved), or another training process is gone (the last one is whole): run the same
    command again to go on (EX_TEMPFAIL)."""

    exit_code = 75


class Unanswered(CaspiError):
    """Another training process hangs, or no other node came: the same command may do better (EX_UNAVAILABLE)."""

    exit_code = 69
