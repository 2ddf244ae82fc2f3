"""EAP and its methods, sans-IO: octets in, octets out, for the peer and for the server."""
