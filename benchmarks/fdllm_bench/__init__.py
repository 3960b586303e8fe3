"""How fast decoding is, always beside what it cannot be faster than."""
