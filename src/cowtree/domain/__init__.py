"""Libvirt's XML as values: guests, moments, and the words that ask for them."""
