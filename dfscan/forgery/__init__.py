"""Fakes made from real faces, and the degradation that video goes through."""
