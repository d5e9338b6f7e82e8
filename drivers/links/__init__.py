"""What a device hangs on: serial lines, UDP sockets, HTTP streams, and the inbox of a reading thread."""
