"""Data sets of face crops: sources, crops, splits and manifests."""
