"""The scan itself: pipeline, verdict, ledger, outputs and bench."""
