"""Network block devices: the protocol as tables and events, and thin shells around sockets."""
