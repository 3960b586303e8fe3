"""A check-up: what is ready for a run, what is not, and what to do about it."""
