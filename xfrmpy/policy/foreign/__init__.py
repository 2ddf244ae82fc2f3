"""The configuration files of other makers' gateways: read into policies, and written from them."""
