"""cowtree manages trees of copy-on-write disk images of virtual machines."""

__version__ = "0.1.0"
