"""Sharing a failure: made as small as it goes, without its data, or as a test."""
