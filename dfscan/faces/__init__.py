"""Detect faces in frames, crop them and link them into tracks: detect, crop, descriptor, track."""
