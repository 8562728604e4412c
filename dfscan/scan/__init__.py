"""The stages wired: pipeline, verdict, ledger, bench."""
