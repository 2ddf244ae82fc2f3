"""Keys that never leave their token: PKCS #11, by the extra `hsm`."""
