"""ESP packets (RFC 4303), octets in and octets out: no sockets, no clock, no SPD."""
