"""A loopback Hub and what is served from it."""
