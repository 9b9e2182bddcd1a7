"""Widgets that screens and panes share."""
