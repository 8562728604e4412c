"""Metrics, calibration, evaluation of checkpoints, and plots."""
