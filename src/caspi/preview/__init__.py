"""What training hears: some utterances of a round as they are, and as one epoch changes them."""

from caspi.preview.page import write_preview

__all__ = ["write_preview"]
