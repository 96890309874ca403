"""The first files of a new round, for people to edit: from a template, or from the command of another script."""

from caspi.starter.first import write_starter
from caspi.starter.from_sft import Converted, write_from_sft

__all__ = ["Converted", "write_from_sft", "write_starter"]
