"""Recorded training steps as programs: how one is seen, described, changed, checked and run."""
