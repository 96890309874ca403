"""Caspi: fine-tune speech-recognition models in reproducible rounds."""

__version__ = "0.1.0"
