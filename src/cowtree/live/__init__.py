"""Disks that are served while they are read, written and changed below."""
