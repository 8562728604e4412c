"""The network, its checkpoint, its runtimes and its heat maps."""
