"""The values of IPsec (RFC 4301) that every room shares: selectors, proposals, SAD and SPD."""
