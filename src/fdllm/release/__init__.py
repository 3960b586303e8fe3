"""Sharing: a folder that stands by itself, and records as data frames."""
