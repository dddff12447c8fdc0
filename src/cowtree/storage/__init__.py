"""Bytes: local files, memory, locks, and the wrappers that make them fail on purpose."""
