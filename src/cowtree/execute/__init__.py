"""Carrying out plans offline: reading, copying, writing, flushing. Nothing here decides anything."""
