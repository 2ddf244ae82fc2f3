"""xfrmpy: an IPsec gateway for Linux; `docs/architecture.md` draws its rooms."""

__version__ = "0.1.0"
