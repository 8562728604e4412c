"""Bundles: a report with everything that belongs to it in one zip file, and the check of such a file."""
