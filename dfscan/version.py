"""Version of dfscan."""

__version__ = "0.1.0"
