"""Encryption as values: LUKS headers, key slots and ciphers; nothing here opens a file."""
