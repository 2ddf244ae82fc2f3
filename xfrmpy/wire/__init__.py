"""IKEv2 messages as octets and as values (RFC 7296 section 3)."""
