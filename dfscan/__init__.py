"""Batch video forensics: find videos with manipulated faces and report how certain each verdict is."""

__version__ = "0.1.0"
