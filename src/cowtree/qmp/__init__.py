"""QEMU's monitor protocol: its vocabulary as tables, and a thin shell around a socket."""
