"""From frames to face crops and tracks: detect, crop, appearance, track."""
