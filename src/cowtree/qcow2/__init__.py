"""The qcow2 format: bytes into frozen values and back. Nothing here opens a file."""
