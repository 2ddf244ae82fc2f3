"""Name constraints (RFC 5280 section 4.2.1.10): which names an authority may certify.

DNS names, e-mail addresses, IP addresses and directory names are compared. Of other forms of name
there must be none where an authority above restricts them, for nobody here can compare them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from cryptography import x509
from cryptography.x509.oid import NameOID

from xfrmpy.ipsec.distinguished_name import comparable
from xfrmpy.pki.certificate import Certificate
from xfrmpy.pki.verdicts import CertificateRefused, Problem

_COMPARED = (x509.DNSName, x509.RFC822Name, x509.IPAddress, x509.DirectoryName)


def check_names(certificate: Certificate, authority: Certificate) -> None:
    """Raises `CertificateRefused` unless `authority` may certify every name of `certificate`."""
    constraints = authority.name_constraints
    if constraints is None:
        return
    excluded = constraints.excluded_subtrees or []
    permitted = constraints.permitted_subtrees or []
    for name in _names(certificate):
        if not _is_allowed(name, _alike(name, permitted), _alike(name, excluded)):
            raise CertificateRefused(
                Problem.NAME_NOT_PERMITTED,
                f"{authority} may not certify {_shown(name)}",
                (
                    *certificate.evidence,
                    ("permitted", ", ".join(map(_shown, permitted)) or "all"),
                    ("excluded", ", ".join(map(_shown, excluded)) or "none"),
                ),
            )


def _names(certificate: Certificate) -> Iterator[x509.GeneralName]:
    yield from certificate.alternative_names
    subject = certificate.library.subject
    if subject.rdns:
        yield x509.DirectoryName(subject)
    if not any(isinstance(n, x509.RFC822Name) for n in certificate.alternative_names):
        for attribute in subject.get_attributes_for_oid(NameOID.EMAIL_ADDRESS):
            yield _mailbox(str(attribute.value), certificate)


def _mailbox(text: str, certificate: Certificate) -> x509.RFC822Name:
    try:
        return x509.RFC822Name(text)
    except ValueError as error:
        summary = f"the mailbox in the subject of {certificate} is none"
        raise CertificateRefused(Problem.MALFORMED, summary, certificate.evidence) from error


def _alike(name: x509.GeneralName, bases: Iterable[x509.GeneralName]) -> list[x509.GeneralName]:
    return [base for base in bases if type(base) is type(name)]


def _is_allowed(
    name: x509.GeneralName, permitted: list[x509.GeneralName], excluded: list[x509.GeneralName]
) -> bool:
    """Both are of the form of `name`; without any, that form is not restricted."""
    if not permitted and not excluded:
        return True
    return (
        isinstance(name, _COMPARED)
        and not any(_is_within(name, base) for base in excluded)
        and (not permitted or any(_is_within(name, base) for base in permitted))
    )


def _is_within(name: x509.GeneralName, base: x509.GeneralName) -> bool:
    match name, base:
        case x509.DNSName(), x509.DNSName():
            return is_in_domain(name.value, base.value)
        case x509.RFC822Name(), x509.RFC822Name():
            return _is_mailbox_within(name.value, base.value)
        case x509.IPAddress(), x509.IPAddress():
            return _is_in_network(name.value, base.value)
        case x509.DirectoryName(), x509.DirectoryName():
            above = comparable(base.value)
            return comparable(name.value)[: len(above)] == above
    return False


def _is_in_network(address: object, network: object) -> bool:
    return any(
        isinstance(network, network_type)
        and isinstance(address, address_type)
        and address in network
        for address_type, network_type in ((IPv4Address, IPv4Network), (IPv6Address, IPv6Network))
    )


def is_in_domain(name: str, domain: str) -> bool:
    """`domain` itself and whatever has labels added at its left; an empty one is all."""
    name, domain = (text.rstrip(".").lower() for text in (name, domain))
    return not domain or name == domain.lstrip(".") or name.endswith("." + domain.lstrip("."))


def _is_mailbox_within(mailbox: str, base: str) -> bool:
    """One mailbox, all of one host, or with a leading dot all of the hosts below."""
    user, _, host = mailbox.rpartition("@")
    base_user, at, base_host = base.rpartition("@")
    if at:
        return (user, host.lower()) == (base_user, base_host.lower())
    if base.startswith("."):
        return host.lower().endswith(base.lower())
    return not base or host.lower() == base.lower()


def _shown(name: x509.GeneralName) -> str:
    value = name.value
    return ascii(value.rfc4514_string() if isinstance(value, x509.Name) else str(value))[1:-1]
