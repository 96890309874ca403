"""A round's model for others: its card, and the push to the Hugging Face hub."""

from caspi.publish.upload import Pushed, push

__all__ = ["Pushed", "push"]
