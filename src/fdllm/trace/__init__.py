"""Seeing it decode: one document, block by block, step by step."""
