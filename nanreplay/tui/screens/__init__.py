"""Screens: an open capture, the list of captures, and what opens above them."""
