"""Everything that can go wrong for an operator, each with a stable code.

The code is the contract: it is the same in the command's output, `status`, the log and the metrics,
and is never given to anything else. XF1xxx: the policy; XF2xxx: the peer; XF3xxx: the datapath;
XF4xxx: this host and the daemon; XF5xxx: the command line. Standard library only: policy (floor 2),
the daemon (floor 6) and the command line (floor 7) all speak of failures.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class ExitCode(IntEnum):
    """What the commands exit with."""

    DONE = 0
    FAILED = 1
    CHANGES_PENDING = 2
    NOT_UP = 3
    TIMED_OUT = 4
    PEER_REFUSED = 5
    USAGE = 64
    BAD_POLICY = 65
    DAEMON_UNREACHABLE = 69
    NO_PERMISSION = 77
    HOST_CANNOT = 78


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureKind:
    """A row of the catalogue: the likely causes in their order, and what to do next."""

    title: str
    exit_code: ExitCode
    causes: tuple[str, ...] = ()
    fixes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One failure that happened. `evidence` pairs a label ("we offered") with what was seen."""

    code: str
    summary: str
    evidence: tuple[tuple[str, str], ...] = ()

    @property
    def kind(self) -> FailureKind:
        return CATALOGUE[self.code]


class OperatorError(Exception):
    """Something that the operator asked for, wrote or runs on cannot be; carries its `failure`."""

    def __init__(self, code: str, summary: str, evidence: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(f"{code}: {summary}")
        self.failure = Failure(code=code, summary=summary, evidence=evidence)


_POLICY = ExitCode.BAD_POLICY

CATALOGUE: dict[str, FailureKind] = {
    "XF1001": FailureKind(
        title="the file is not valid YAML",
        exit_code=_POLICY,
        fixes=("correct the place named; `xfrmpy check FILE` reads it without touching anything",),
    ),
    "XF1002": FailureKind(
        title="a key is unknown",
        exit_code=_POLICY,
        fixes=("use the key suggested, or remove the line",),
    ),
    "XF1003": FailureKind(
        title="a key is given twice",
        exit_code=_POLICY,
        fixes=("keep one of the two",),
    ),
    "XF1004": FailureKind(
        title="a value has the wrong form",
        exit_code=_POLICY,
        fixes=("write it as the message says",),
    ),
    "XF1005": FailureKind(
        title="a key that is needed is missing",
        exit_code=_POLICY,
        fixes=("add the key under the place named",),
    ),
    "XF1006": FailureKind(
        title="a tunnel is defined twice",
        exit_code=_POLICY,
        fixes=("rename or remove one of the two places named",),
    ),
    "XF1007": FailureKind(
        title="two tunnels would carry the same traffic",
        exit_code=_POLICY,
        causes=("their local and remote selectors overlap",),
        fixes=("narrow `local` or `remote` of one of them",),
    ),
    "XF1008": FailureKind(
        title="a secret cannot be read",
        exit_code=_POLICY,
        causes=("the file is not there", "the file belongs to another user"),
        fixes=(
            "put the secret into the file named: `install -m 600 /dev/stdin FILE`",
            "where the daemon has a user of its own, the file must be his: `chown xfrmpy FILE`",
        ),
    ),
    "XF1009": FailureKind(
        title="a secret can be read by others",
        exit_code=_POLICY,
        fixes=("`chmod 600` the file named",),
    ),
    "XF1010": FailureKind(
        title="a secret stands in the policy itself",
        exit_code=_POLICY,
        causes=("policy files are shown, copied and kept in version control; secrets must not be",),
        fixes=("put it into a file and refer to it with `secret:NAME` or `file:/PATH`",),
    ),
    "XF1011": FailureKind(
        title="the policy asks for what this version cannot do",
        exit_code=_POLICY,
        fixes=("see `Not supported` in the README",),
    ),
    "XF1012": FailureKind(
        title="a policy file cannot be read",
        exit_code=_POLICY,
        fixes=("check that the file is there and that its owner may read it",),
    ),
    "XF1013": FailureKind(
        title="there is no tunnel of that name",
        exit_code=ExitCode.USAGE,
        fixes=("`xfrmpy status` lists the tunnels that the daemon knows",),
    ),
    "XF1014": FailureKind(
        title="the tunnel has no peer to call",
        exit_code=ExitCode.USAGE,
        causes=("its policy names no `peer`, so it waits for the peer to begin",),
        fixes=("add `peer:` to the policy, or bring the tunnel up from the other end",),
    ),
    "XF1015": FailureKind(
        title="a secret is short enough to be guessed",
        exit_code=_POLICY,
        causes=("an attacker who answers in the peer's place can try keys at leisure",),
        fixes=("`openssl rand -base64 32` makes a good one; put it into both ends",),
    ),
    "XF1018": FailureKind(
        title="two tunnels would have the same interface",
        exit_code=_POLICY,
        causes=("`name` or `if_id` of their `interface` are the same",),
        fixes=("leave them out, or give each tunnel its own",),
    ),
    "XF1020": FailureKind(
        title="a weak algorithm",
        exit_code=_POLICY,
        causes=("a peer that knows nothing better", "a proposal copied from an old gateway"),
        fixes=(
            "name a better one at both ends, or leave `proposals` out",
            "`profile: compat` beside `proposals` allows it, with a warning",
        ),
    ),
    "XF1030": FailureKind(
        title="a key cannot be used",
        exit_code=_POLICY,
        causes=(
            "the file holds something else, or is encrypted with another passphrase",
            "an RSA key of fewer than 2048 bits or with a small exponent, or another curve",
        ),
        fixes=("`openssl genpkey -algorithm ed25519` makes a private key",),
    ),
    "XF1031": FailureKind(
        title="a certificate cannot be used",
        exit_code=_POLICY,
        causes=(
            "the file is not there, or holds something else",
            "others may change it, who could add an authority of theirs",
            "an authority's certificate in place of our own, or the other way round",
        ),
        fixes=("`xfrmpy cert show FILE` shows what is in it",),
    ),
    "XF1032": FailureKind(
        title="a key is not that of the certificate",
        exit_code=_POLICY,
        causes=("one of the two was renewed without the other", "our own is not the first"),
        fixes=("put both files there again, as they were issued",),
    ),
    "XF1033": FailureKind(
        title="our identity is not in our certificate",
        exit_code=_POLICY,
        fixes=("use one of those shown as `id`, or leave `id` out", "issue another certificate"),
    ),
    "XF1034": FailureKind(
        title="a certificate is not valid at the moment",
        exit_code=_POLICY,
        causes=("it was not renewed in time", "the clock of this host is wrong"),
        fixes=("renew it: peers refuse it, and so do we",),
    ),
    "XF1035": FailureKind(
        title="a certificate expires soon",
        exit_code=_POLICY,
        causes=("less than 14 days are left",),
        fixes=("renew it, and `xfrmpy apply`: tunnels that are up stay up",),
    ),
    "XF1036": FailureKind(
        title="a list of revoked certificates is too old",
        exit_code=_POLICY,
        causes=("its authority has not renewed it, or the new one was not put here",),
        fixes=("`xfrmpy cert revoke` renews it; then `xfrmpy apply`",),
    ),
    "XF1037": FailureKind(
        title="a list of users cannot be used",
        exit_code=_POLICY,
        causes=("a line is not `NAME: PASSWORD`", "a user is there twice"),
        fixes=("correct the line whose number is shown",),
    ),
    "XF1040": FailureKind(
        title="a configuration of another daemon cannot be read",
        exit_code=_POLICY,
        causes=("it is of another kind: `--from` says of which",),
        fixes=("correct the place named, or give `--from`",),
    ),
    "XF1041": FailureKind(
        title="nothing of a configuration could be carried over",
        exit_code=_POLICY,
        causes=("its connections need what is not there, or not carried over: certificates",),
        fixes=("see the reasons above, and docs/migrating.md",),
    ),
    "XF1042": FailureKind(
        title="the other end of a tunnel cannot be written",
        exit_code=_POLICY,
        causes=(
            "the policy leaves out what the other end must know",
            "the other daemon has nothing that stands for a key of the policy",
        ),
        fixes=(
            "give what the message names, such as `--address`",
            "write it by hand: docs/README.md has a page for each peer",
        ),
    ),
    "XF1043": FailureKind(
        title="a file is there already",
        exit_code=ExitCode.USAGE,
        fixes=(
            "`import`: name another directory with `--into`, or remove the file",
            "`join`: have the other end invite you by another name, or remove the file",
        ),
    ),
    "XF1044": FailureKind(
        title="the policy needs an extra that is not installed",
        exit_code=_POLICY,
        causes=("xfrmpy was installed without extras; the Debian package has all of them",),
        fixes=("install it where xfrmpy is, as the message says: `pip install 'xfrmpy[radius]'`",),
    ),
    "XF1045": FailureKind(
        title="a key on a token cannot be used",
        exit_code=_POLICY,
        causes=(
            "the module is not there, or others may change it",
            "the token is not there, or several are called so",
            "the PIN is wrong or missing",
            "the key is not there, or its public half is not",
        ),
        fixes=(
            "`pkcs11-tool --module MODULE --list-token-slots` lists tokens, `--list-objects` keys",
            "correct the URI as the message says; docs/tokens.md has examples",
        ),
    ),
    "XF2001": FailureKind(
        title="the peer does not answer",
        exit_code=ExitCode.TIMED_OUT,
        causes=(
            "no IKE daemon runs at that address",
            "UDP ports 500 and 4500 are filtered on the way",
            "the address is not the peer's",
        ),
        fixes=("`ping` the peer", "ask the peer's operator whether our packets arrive"),
    ),
    "XF2002": FailureKind(
        title="no IKE proposal in common",
        exit_code=ExitCode.PEER_REFUSED,
        causes=("the two ends' IKE algorithms do not overlap",),
        fixes=("give both ends one `ike: {proposals: ...}` in common",),
    ),
    "XF2003": FailureKind(
        title="no ESP proposal in common",
        exit_code=ExitCode.PEER_REFUSED,
        causes=("the two ends' ESP algorithms do not overlap", "one end insists on ESN"),
        fixes=("give both ends one `esp: {proposals: ...}` in common",),
    ),
    "XF2004": FailureKind(
        title="no traffic selectors in common",
        exit_code=ExitCode.PEER_REFUSED,
        causes=("our `local` is not the peer's remote, or our `remote` not its local",),
        fixes=("make the two ends mirror each other",),
    ),
    "XF2005": FailureKind(
        title="the peer refused our authentication",
        exit_code=ExitCode.PEER_REFUSED,
        causes=(
            "the shared keys differ",
            "the peer expects another identity of us than our `id`",
            "the peer calls itself otherwise than our `peer_id`",
            "the post-quantum preshared keys (`ppk`) differ, or the peer requires another",
        ),
        fixes=("compare both ends' key and identities; the peer's log names the step",),
    ),
    "XF2006": FailureKind(
        title="the peer did not prove that it knows the shared key",
        exit_code=ExitCode.PEER_REFUSED,
        causes=("the shared keys differ", "somebody else answers in the peer's place"),
        fixes=("put the same key into both ends",),
    ),
    "XF2007": FailureKind(
        title="the peer is somebody else",
        exit_code=ExitCode.PEER_REFUSED,
        causes=("the peer's identity is not the one our policy expects",),
        fixes=("set `peer_id` to the identity shown, if that is the peer that you mean",),
    ),
    "XF2008": FailureKind(
        title="the peer broke the protocol",
        exit_code=ExitCode.PEER_REFUSED,
        causes=("a defect of the peer's IKE, or of ours",),
        fixes=("report it with the evidence and both versions",),
    ),
    "XF2009": FailureKind(
        title="the peer refused with an error of its own",
        exit_code=ExitCode.PEER_REFUSED,
        fixes=("the peer's log says why",),
    ),
    "XF2010": FailureKind(
        title="no key exchange method in common",
        exit_code=ExitCode.PEER_REFUSED,
        causes=("the peer asks for a key exchange method that we did not offer",),
        fixes=("add the method shown to `ike: {proposals: ...}`, or change the peer",),
    ),
    "XF2011": FailureKind(
        title="the peer ended the tunnel",
        exit_code=ExitCode.PEER_REFUSED,
        causes=("an operator or a restart at the other end",),
        fixes=("`xfrmpy up TUNNEL` brings it back",),
    ),
    "XF2012": FailureKind(
        title="the peer's name cannot be resolved",
        exit_code=ExitCode.FAILED,
        causes=("the name is misspelt", "this host has no working DNS"),
        fixes=("`getent ahosts NAME`", "write the address in place of the name"),
    ),
    "XF2013": FailureKind(
        title="there is no route to the peer",
        exit_code=ExitCode.FAILED,
        fixes=("`ip route get ADDRESS`",),
    ),
    "XF2014": FailureKind(
        title="an SA reached its hard lifetime",
        exit_code=ExitCode.FAILED,
        causes=("it carried more, or lived longer, than its keys may",),
        fixes=("`xfrmpy up TUNNEL` makes new keys",),
    ),
    "XF2015": FailureKind(
        title="an SA could not be replaced",
        exit_code=ExitCode.PEER_REFUSED,
        causes=(
            "the two ends have other key exchange methods for perfect forward secrecy",
            "the peer does not rekey, or has other lifetimes and proposals than it had",
        ),
        fixes=(
            "compare the `esp` proposals of both ends, key exchange methods included",
            "`xfrmpy rekey TUNNEL` tries it at any time",
        ),
    ),
    "XF2016": FailureKind(
        title="the peer cannot do what is asked, for minutes",
        exit_code=ExitCode.PEER_REFUSED,
        causes=("the two ends do not agree any more on the SAs that they have",),
        fixes=("`xfrmpy up TUNNEL` begins anew", "look at the peer's log"),
    ),
    "XF2017": FailureKind(
        title="a Child SA carried nothing for too long",
        exit_code=ExitCode.FAILED,
        causes=("the policy's `inactivity`",),
        fixes=("`xfrmpy up TUNNEL` brings it back", "take `inactivity` out of the policy"),
    ),
    "XF2020": FailureKind(
        title="the two ends want different modes",
        exit_code=ExitCode.PEER_REFUSED,
        causes=(
            "one end has `mode: transport`, `beet` or `iptfs`, the other a tunnel",
            "the peer is another host's",
        ),
        fixes=("give both ends the same `mode`",),
    ),
    "XF2021": FailureKind(
        title="transport mode cannot carry what the policy names",
        exit_code=ExitCode.FAILED,
        causes=("`local` or `remote` leaves out the address of that end of the IKE SA",),
        fixes=(
            "leave `local` and `remote` out, or write `0.0.0.0/0[tcp/5432]` for one service",
            "`mode: tunnel` carries the traffic of other hosts",
        ),
    ),
    "XF2022": FailureKind(
        title="redirected to another gateway",
        exit_code=ExitCode.PEER_REFUSED,
        causes=(
            "the peer is not to serve this tunnel, by its policy or for maintenance",
            "gateways that redirect to one another",
        ),
        fixes=(
            "`redirect: yes` follows; at most five redirects are followed in five minutes",
            "ask the peer's operator which gateway serves the tunnel",
        ),
    ),
    "XF2023": FailureKind(
        title="the IKE SA stayed without a Child SA",
        exit_code=ExitCode.PEER_REFUSED,
        causes=("the peer began without one, and made none in the time that it has for it",),
        fixes=("the peer's log says why it made none",),
    ),
    "XF2024": FailureKind(
        title="the peer has an IKE SA with us already",
        exit_code=ExitCode.PEER_REFUSED,
        causes=("`unique: keep`, and an earlier IKE SA of the peer's that we still hold",),
        fixes=("`xfrmpy down TUNNEL` ends it; `unique: no` lets both be",),
    ),
    "XF2025": FailureKind(
        title="a ticket of the peer's was refused",
        exit_code=ExitCode.PEER_REFUSED,
        causes=(
            "our daemon was started anew: its tickets ended with it",
            "the policy has changed since the ticket was given",
            "somebody repeats what the peer has sent",
        ),
        fixes=("none is needed: the peer goes on with a full exchange",),
    ),
    "XF2026": FailureKind(
        title="the peer lost its state",
        exit_code=ExitCode.PEER_REFUSED,
        causes=("its daemon or its host was started anew without a word to us",),
        fixes=("`xfrmpy up TUNNEL` brings the tunnel back; `start: auto` does so by itself",),
    ),
    "XF2030": FailureKind(
        title="AH cannot pass a NAT",
        exit_code=ExitCode.PEER_REFUSED,
        causes=(
            "there is a NAT between the two ends, and AH protects the addresses that it changes",
            "the peer asks for ESP in UDP whether there is a NAT or not",
        ),
        fixes=(
            "`esp: {proposals: null-sha256, profile: compat}` authenticates as much, and passes",
        ),
    ),
    "XF2031": FailureKind(
        title="no post-quantum key exchange in common",
        exit_code=ExitCode.PEER_REFUSED,
        causes=(
            "our policy says `post_quantum: require`, or names post-quantum proposals only",
            "the peer knows no ML-KEM, or no IKE_INTERMEDIATE (RFC 9242, RFC 9370)",
        ),
        fixes=(
            "offer x25519 with ML-KEM-768 at the other end",
            "`post_quantum: prefer` accepts a peer without it",
        ),
    ),
    "XF2032": FailureKind(
        title="the peer wants more Child SAs of one traffic than our policy has",
        exit_code=ExitCode.PEER_REFUSED,
        causes=(
            "the peer has more workers, or CPUs, than our `per_resource` allows",
            "`per_resource` is off here and was on when the IKE SA was made",
        ),
        fixes=("`per_resource: auto`, or a greater number; what is there goes on without",),
    ),
    "XF2033": FailureKind(
        title="no post-quantum preshared key in common",
        exit_code=ExitCode.PEER_REFUSED,
        causes=(
            "one end requires one (`ppk: {required: yes}`), and the other has none of that `id`",
            "the peer knows nothing of them (RFC 8784, RFC 9867)",
        ),
        fixes=(
            "give both ends the same secret under the same `ppk: {id: ...}`",
            "without `required: yes` a peer that has none is accepted",
        ),
    ),
    "XF2034": FailureKind(
        title="the post-quantum preshared keys differ",
        exit_code=ExitCode.PEER_REFUSED,
        causes=("the two ends have different secrets under the same `ppk: {id: ...}`",),
        fixes=("put the same secret into both ends",),
    ),
    "XF2040": FailureKind(
        title="our key cannot sign in a way that the peer verifies",
        exit_code=ExitCode.PEER_REFUSED,
        causes=(
            "the peer does not know RFC 7427, or none of the hashes that the key goes with",
            "an RSA key, and a peer so old that only SHA-1 is left",
        ),
        fixes=(
            "give us a key of another kind: ECDSA goes with old peers, too",
            "`ike: {profile: compat}` lets an RSA key sign with SHA-1",
        ),
    ),
    "XF2041": FailureKind(
        title="the peer did not prove that it has the key we expect of it",
        exit_code=ExitCode.PEER_REFUSED,
        causes=(
            "`auth.remote.key` is not the public half of the key that the peer signs with",
            "the peer authenticates by a shared key",
            "somebody else answers in the peer's place",
        ),
        fixes=("`xfrmpy key show` at the peer shows its public key: put that into our policy",),
    ),
    "XF2042": FailureKind(
        title="the peer shows another public key than the one in our policy",
        exit_code=ExitCode.PEER_REFUSED,
        causes=("the peer has got a new key", "somebody else answers in the peer's place"),
        fixes=("ask who runs the peer for its fingerprint; then put its key into our policy",),
    ),
    "XF2043": FailureKind(
        title="the peer does not authenticate by NULL, as our policy has it",
        exit_code=ExitCode.PEER_REFUSED,
        causes=("the peer has a key or a shared key, and our policy `null_auth` for it",),
        fixes=("write in `auth.remote` how the peer proves itself, or `null_auth` at its end too",),
    ),
    "XF2044": FailureKind(
        title="our token does not sign",
        exit_code=ExitCode.FAILED,
        causes=(
            "the token is not there any more, or the key is gone from it",
            "its PIN is another now, or locked after too many wrong ones",
            "its module is not allowed what it needs: files and sockets that the unit hides",
        ),
        fixes=(
            "`xfrmpy check` tries the token as root; docs/tokens.md says what the unit must allow",
            "`xfrmpy apply` when it is mended: a PIN that was wrong is not tried again before",
        ),
    ),
    "XF2050": FailureKind(
        title="EAP did not come to an end with the peer",
        exit_code=ExitCode.PEER_REFUSED,
        causes=(
            "the password is wrong, or the user is unknown to the peer",
            "the peer takes part in none of our `methods`",
        ),
        fixes=("compare `auth: {local: {eap: ...}}` with what the peer's administrator has given",),
    ),
    "XF2051": FailureKind(
        title="the peer asks who we are and does not prove who it is",
        exit_code=ExitCode.PEER_REFUSED,
        causes=(
            "the peer expects EAP alone (RFC 5998)",
            "somebody answers in the peer's place to collect passwords",
        ),
        fixes=(
            "have the peer prove itself by a certificate or a key, as RFC 7296 section 2.16 asks",
            "`alone: yes` allows EAP alone, with methods that prove the peer, too",
        ),
    ),
    "XF2052": FailureKind(
        title="the peer did not prove by EAP who it is",
        exit_code=ExitCode.PEER_REFUSED,
        causes=(
            "the password is wrong, or the user is unknown here",
            "the peer takes part in none of the `methods`",
        ),
        fixes=("compare the user shown with those of `auth: {remote: {eap: {users: ...}}}`",),
    ),
    "XF2053": FailureKind(
        title="the user may not use the tunnel",
        exit_code=ExitCode.PEER_REFUSED,
        causes=("the user is none of the `identities`, or in none of the groups, of the policy",),
        fixes=("add the user to `auth: {remote: {eap: {identities: ...}}}`, if it may",),
    ),
    "XF2054": FailureKind(
        title="AUTH is not by the key that EAP has made",
        exit_code=ExitCode.PEER_REFUSED,
        causes=(
            "somebody stands between the peer and who knows the password",
            "a peer that derives the key in another way",
        ),
        fixes=("try another of the `methods`; report it with the evidence and both versions",),
    ),
    "XF2055": FailureKind(
        title="the AAA server could not be asked",
        exit_code=ExitCode.PEER_REFUSED,
        causes=("it does not run, or does not know us", "the secret between it and us differs"),
        fixes=("the evidence has the server; its log says whether it was asked",),
    ),
    "XF2056": FailureKind(
        title="the peer has broken EAP off",
        exit_code=ExitCode.PEER_REFUSED,
        causes=(
            "the user's password is wrong: with some methods the peer is the first to know",
            "the peer does not believe our proof, and trusts another authority, key or name",
        ),
        fixes=("the peer's log names the step; compare its password, and whom it trusts",),
    ),
    "XF2057": FailureKind(
        title="the ends do not agree on how often each proves itself",
        exit_code=ExitCode.PEER_REFUSED,
        causes=(
            "one end has more rounds of authentication (`auth: {then: ...}`) than the other",
            "the peer does not know of several rounds (RFC 4739)",
        ),
        fixes=("give both ends the same rounds, in the same order; strongSwan's are `round = N`",),
    ),
    "XF2058": FailureKind(
        title="the peer has broken off between two rounds of authentication",
        exit_code=ExitCode.PEER_REFUSED,
        causes=("the peer does not believe our proof, and trusts another authority, key or name",),
        fixes=("the peer's log names the step; compare whom it trusts in that round",),
    ),
    "XF2101": FailureKind(
        title="a certificate is malformed",
        exit_code=ExitCode.PEER_REFUSED,
        causes=("it is of another version, damaged, or made by a defective program",),
        fixes=("`xfrmpy cert show FILE` reads it; have its authority issue another",),
    ),
    "XF2102": FailureKind(
        title="too many or too large certificates",
        exit_code=ExitCode.PEER_REFUSED,
        causes=(
            "somebody tries how much we bear",
            "a peer that sends its whole store",
        ),
        fixes=("have the peer send its certificate and the intermediates only",),
    ),
    "XF2103": FailureKind(
        title="no trusted authority has issued the certificate",
        exit_code=ExitCode.PEER_REFUSED,
        causes=(
            "`ca` names another authority",
            "the peer does not send an intermediate certificate, and we do not have it",
        ),
        fixes=(
            "put the certificate shown as missing into `ca`, if it is to be trusted",
            "put the intermediates into the peer's certificate file, behind its own",
        ),
    ),
    "XF2104": FailureKind(
        title="the signature on a certificate is wrong",
        exit_code=ExitCode.PEER_REFUSED,
        causes=(
            "an authority was made anew under its old name",
            "a forged certificate",
        ),
        fixes=("compare the fingerprints of both ends' authority: `xfrmpy cert show FILE`",),
    ),
    "XF2105": FailureKind(
        title="a certificate is not valid yet",
        exit_code=ExitCode.PEER_REFUSED,
        causes=("the clock of this host or of the issuing one is wrong",),
        fixes=("compare the clock shown: `timedatectl`",),
    ),
    "XF2106": FailureKind(
        title="a certificate has expired",
        exit_code=ExitCode.PEER_REFUSED,
        causes=(
            "it was not renewed in time",
            "the clock of this host is wrong",
        ),
        fixes=("renew the certificate shown at the end that it belongs to",),
    ),
    "XF2107": FailureKind(
        title="a certificate was issued by what is no authority",
        exit_code=ExitCode.PEER_REFUSED,
        causes=(
            "a peer's certificate signed another one",
            "an intermediate without CA in its basic constraints, or without keyCertSign",
        ),
        fixes=("have it issued by an authority",),
    ),
    "XF2108": FailureKind(
        title="a path of certificates is too long",
        exit_code=ExitCode.PEER_REFUSED,
        causes=("an authority that may have none, or fewer, below it",),
        fixes=("have the certificate issued by an authority further up",),
    ),
    "XF2109": FailureKind(
        title="an authority may not certify a name",
        exit_code=ExitCode.PEER_REFUSED,
        causes=("the name constraints of the authority shown",),
        fixes=("use a name that it may certify, or another authority",),
    ),
    "XF2110": FailureKind(
        title="an unknown critical extension in a certificate",
        exit_code=ExitCode.PEER_REFUSED,
        causes=("an authority that restricts certificate policies, which we do not process",),
        fixes=("have it issued without the extension shown, or with it not critical",),
    ),
    "XF2111": FailureKind(
        title="an authority's certificate in a peer's place",
        exit_code=ExitCode.PEER_REFUSED,
        causes=(
            "the file has the certificates in the wrong order: the peer's own comes first",
            "a certificate made with CA in its basic constraints",
        ),
        fixes=("issue one for the peer: `xfrmpy cert issue`",),
    ),
    "XF2112": FailureKind(
        title="a certificate is meant for something else",
        exit_code=ExitCode.PEER_REFUSED,
        causes=(
            "a key usage without digitalSignature",
            "an extended key usage that names neither ipsecIKE nor any (RFC 4945 section 5.1.3.12)",
        ),
        fixes=(
            "issue one with the extended key usage ipsecIKE (1.3.6.1.5.5.7.3.17), or with none",
        ),
    ),
    "XF2113": FailureKind(
        title="a certificate is too weak",
        exit_code=ExitCode.PEER_REFUSED,
        causes=("an RSA key below 2048 bits, another curve, SHA-1 or MD5",),
        fixes=("renew it with ECDSA P-256, Ed25519 or RSA of 2048 bits and more",),
    ),
    "XF2114": FailureKind(
        title="a certificate is not that of the identity",
        exit_code=ExitCode.PEER_REFUSED,
        causes=("the identity is not among the subject alternative names, nor the whole subject",),
        fixes=("claim one of the identities shown, or issue a certificate that has it",),
    ),
    "XF2115": FailureKind(
        title="a certificate is revoked",
        exit_code=ExitCode.PEER_REFUSED,
        causes=("its authority took it back, for the reason shown",),
        fixes=("have another one issued",),
    ),
    "XF2116": FailureKind(
        title="it is not known whether a certificate is revoked",
        exit_code=ExitCode.PEER_REFUSED,
        causes=(
            "`revocation: strict`, and none of the sources shown has an answer to be believed",
            "the list beside `ca` is missing, old, or another authority's",
        ),
        fixes=(
            "ask what is shown by hand: `curl -v URL`, or `openssl ocsp`",
            "renew the list: `xfrmpy cert revoke`; put it beside the authority, and `xfrmpy apply`",
            "`revocation: soft` refuses only what is known to be revoked",
        ),
    ),
    "XF2117": FailureKind(
        title="the peer sent no certificate",
        exit_code=ExitCode.PEER_REFUSED,
        causes=(
            "it has none, and authenticates in another way",
            "it has none of the authorities that we ask for, or was told to send none",
        ),
        fixes=("have it send one always: strongSwan's `send_cert = always`",),
    ),
    "XF2118": FailureKind(
        title="a certificate was not to be had where the peer says that it is",
        exit_code=ExitCode.PEER_REFUSED,
        causes=(
            "the server does not answer, or has another file there: hash and URL are shown",
            "the URL is not of http, or of a host that `hash_and_url` does not name",
        ),
        fixes=(
            "fetch it by hand: `curl -v URL | sha1sum`",
            "publish the certificate anew, or have the peer send it: `hash_and_url` off at its end",
            "add the host, with its port, to `auth.remote.hash_and_url`",
        ),
    ),
    "XF3001": FailureKind(
        title="this host cannot move the packets as the policy asks",
        exit_code=ExitCode.HOST_CANNOT,
        causes=("the kernel lacks ESP or an algorithm",),
        fixes=("`datapath: auto` lets the userspace datapath take over",),
    ),
    "XF3002": FailureKind(
        title="the datapath refused an SA or a policy",
        exit_code=ExitCode.FAILED,
        causes=("another IPsec daemon holds the same entry", "the kernel lacks an algorithm"),
        fixes=("`ip xfrm state` and `ip xfrm policy` show what is in the kernel",),
    ),
    "XF3003": FailureKind(
        title="the userspace datapath ended by itself, again and again",
        exit_code=ExitCode.FAILED,
        causes=("its worker was killed, or ran out of memory", "a defect of ours"),
        fixes=("start the daemon again; the log and `dmesg` may say why the worker ended",),
    ),
    "XF3004": FailureKind(
        title="traffic cannot be kept from going in clear",
        exit_code=ExitCode.HOST_CANNOT,
        causes=(
            "the kernel has no nf_tables, or not its `fib`, `meta` and `rt` expressions",
            "CAP_NET_ADMIN is missing",
        ),
        fixes=("`nft list tables` shows whether the kernel has nf_tables", "`on_down: clear`"),
    ),
    "XF3005": FailureKind(
        title="what was applied is not in force",
        exit_code=ExitCode.FAILED,
        causes=(
            "another program changes SAs, policies, routes or devices of ours at the same time",
            "the way to a peer, or a device, is down",
        ),
        fixes=("`xfrmpy log` tells what was found and done; `ip monitor` who else is at it",),
    ),
    "XF3009": FailureKind(
        title="the interface of a tunnel cannot be had",
        exit_code=ExitCode.HOST_CANNOT,
        causes=(
            "a network device of another kind, or another program's, has its name",
            "its VRF or its network namespace is not there",
            "an address or a route of it is taken",
        ),
        fixes=(
            "`ip -d link show` tells what has the name; give the interface another `name`",
            "make the VRF or the namespace: the interface follows by itself",
        ),
    ),
    "XF3010": FailureKind(
        title="a datapath does not take the shunts",
        exit_code=ExitCode.HOST_CANNOT,
        causes=(
            "another program has a policy of the same selector in the kernel's SPD",
            "a bypass, and a drop in user space, tells no ICMP types and is not between tunnels",
            "`default` is the kernel's from Linux 5.15 on, and never with tunnels in user space",
        ),
        fixes=("`ip xfrm policy` shows the kernel's; see `Shunts` in docs/policy.md",),
    ),
    "XF4001": FailureKind(
        title="the daemon is not running",
        exit_code=ExitCode.DAEMON_UNREACHABLE,
        fixes=("`systemctl start xfrmpyd`, or `xfrmpy daemon` by hand",),
    ),
    "XF4002": FailureKind(
        title="a UDP port is taken",
        exit_code=ExitCode.HOST_CANNOT,
        causes=("another IKE daemon runs on this host",),
        fixes=("stop the process named; `ss -ulpn` lists who listens",),
    ),
    "XF4003": FailureKind(
        title="no permission",
        exit_code=ExitCode.NO_PERMISSION,
        causes=("the command needs root, or CAP_NET_ADMIN and CAP_NET_BIND_SERVICE",),
        fixes=("run it with sudo",),
    ),
    "XF4004": FailureKind(
        title="a daemon runs already",
        exit_code=ExitCode.FAILED,
        fixes=("use it, or stop it first; another one needs a runtime directory of its own",),
    ),
    "XF4005": FailureKind(
        title="this host lacks what the command needs",
        exit_code=ExitCode.HOST_CANNOT,
        fixes=("install or enable what is named",),
    ),
    "XF4006": FailureKind(
        title="something failed inside xfrmpy",
        exit_code=ExitCode.FAILED,
        causes=("a defect of ours",),
        fixes=("report it with the daemon's log",),
    ),
    "XF4007": FailureKind(
        title="timed out",
        exit_code=ExitCode.TIMED_OUT,
        fixes=("`xfrmpy status TUNNEL` shows how far it got",),
    ),
    "XF4008": FailureKind(
        title="the daemon is stopping",
        exit_code=ExitCode.DAEMON_UNREACHABLE,
        fixes=("start it again",),
    ),
    "XF4009": FailureKind(
        title="another command took the tunnel down",
        exit_code=ExitCode.FAILED,
        fixes=("`xfrmpy up TUNNEL` again, if that was not meant",),
    ),
    "XF4010": FailureKind(
        title="the tunnel is not up",
        exit_code=ExitCode.NOT_UP,
        fixes=("`xfrmpy up TUNNEL` brings it up", "`xfrmpy status TUNNEL` says how it failed"),
    ),
    "XF4011": FailureKind(
        title="too many callers of the daemon",
        exit_code=ExitCode.DAEMON_UNREACHABLE,
        causes=("programs that keep many connections to the control socket open",),
        fixes=("`ss -xp` shows who they are", "try again"),
    ),
    "XF4021": FailureKind(
        title="another change of policy is being made",
        exit_code=ExitCode.FAILED,
        causes=("somebody else applies a policy", "one that was applied waits to be confirmed"),
        fixes=("`xfrmpy confirm` or `xfrmpy rollback`, then try again",),
    ),
    "XF4022": FailureKind(
        title="the change would cut the session that it is made from",
        exit_code=ExitCode.FAILED,
        causes=("the traffic of this session is, or is to be, a tunnel's that goes down first",),
        fixes=(
            "`xfrmpy apply --confirm 120s`: it is taken back unless confirmed",
            "`xfrmpy apply --accept-cut`, if there is another way to this host",
        ),
    ),
    "XF4023": FailureKind(
        title="there is nothing to confirm or to take back",
        exit_code=ExitCode.FAILED,
        causes=("it was not confirmed in time, and was taken back", "nothing was applied"),
        fixes=("`xfrmpy plan` shows how what is in force differs from the files",),
    ),
    "XF4024": FailureKind(
        title="the policy is in force, and its files could not be kept",
        exit_code=ExitCode.FAILED,
        causes=("the directory cannot be written",),
        fixes=("put the files named into their directory; the next start reads them there",),
    ),
    "XF4025": FailureKind(
        title="a file cannot be written",
        exit_code=ExitCode.FAILED,
        fixes=(
            "run it with sudo, or name another directory",
            "move what is there already out of the way",
        ),
    ),
    "XF4030": FailureKind(
        title="a certificate or its key cannot be used",
        exit_code=ExitCode.FAILED,
        causes=("the file is missing, damaged or another one", "what the code in brackets says"),
        fixes=("`xfrmpy cert show FILE` shows what is in it",),
    ),
    "XF5001": FailureKind(title="the command was not understood", exit_code=ExitCode.USAGE),
    "XF5002": FailureKind(
        title="a token cannot be used",
        exit_code=ExitCode.USAGE,
        causes=("it was not copied as a whole", "it has served already, or is another host's"),
        fixes=("`xfrmpy invite` makes another",),
    ),
}
