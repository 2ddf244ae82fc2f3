"""Proposals: read, chosen, checked, trimmed and turned into suites."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xfrmpy.ipsec.algorithms import CIPHERS, GROUPS, INTEGRITY, PRFS
from xfrmpy.ipsec.proposals import (
    TRANSFORMS_BY_NAME,
    Proposal,
    Transform,
    answers,
    child_suite,
    choose_proposal,
    esp_suite,
    ike_suite,
    parse_proposal,
    supported_part,
    without_algorithms,
)
from xfrmpy.registry import ProtocolId, TransformType

IKE, ESP, AH = ProtocolId.IKE, ProtocolId.ESP, ProtocolId.AH
ENCR, PRF, INTEG = TransformType.ENCR, TransformType.PRF, TransformType.INTEG
KE, ESN = TransformType.KE, TransformType.ESN
WITH_NONE = (INTEG, KE, *map(TransformType, range(6, 13)))  # RFC 9370: ADDKE1 to ADDKE7
NO_INTEG, NO_KE = Transform(type=INTEG, id=0), Transform(type=KE, id=0)


def esp(text: str, number: int = 1, spi: bytes = b"") -> Proposal:
    return replace(parse_proposal(text, ESP), number=number, spi=spi)


def ike(text: str) -> Proposal:
    return parse_proposal(text, IKE)


def plus(proposal: Proposal, *transforms: Transform) -> Proposal:
    return replace(proposal, transforms=proposal.transforms + transforms)


# Reading.


@pytest.mark.parametrize(
    ("text", "protocol", "full"),
    [
        ("aes256gcm16", ESP, "aes256gcm16-esn"),
        ("aes256gcm16-noesn", ESP, "aes256gcm16-noesn"),
        ("aes256gcm16-esn-noesn", ESP, "aes256gcm16-esn-noesn"),
        ("aes128-sha256", ESP, "aes128-sha256-esn"),
        ("x25519-sha512-aes256", ESP, "aes256-sha512-x25519-esn"),
        (" AES128GCM16-ChaCha20Poly1305 ", ESP, "aes128gcm16-chacha20poly1305-esn"),
        ("aes256gcm16-prfsha384-ecp384", IKE, "aes256gcm16-prfsha384-ecp384"),
        ("aes128-sha256-modp2048", IKE, "aes128-prfsha256-sha256-modp2048"),
        ("aes128-sha256-sha512-x25519", IKE, "aes128-prfsha256-prfsha512-sha256-sha512-x25519"),
        ("aes128-sha256-prfsha384-x25519", IKE, "aes128-prfsha384-sha256-x25519"),
    ],
)
def test_a_proposal_is_read_completed_and_ordered(
    text: str, protocol: ProtocolId, full: str
) -> None:
    proposal = parse_proposal(text, protocol)
    assert str(proposal) == full
    assert proposal.protocol == protocol
    assert parse_proposal(full, protocol) == proposal


@pytest.mark.parametrize(
    ("text", "protocol", "sentence"),
    [
        ("", ESP, "unknown algorithm ''"),
        ("aes257", ESP, "unknown algorithm 'aes257'"),
        ("des-md5", ESP, "unknown algorithm 'des'"),
        ("null", ESP, "the cipher needs an integrity algorithm"),
        ("null-sha256-x25519", IKE, "null: not for IKE"),
        ("aes128gmac-prfsha256-x25519", IKE, "aes128gmac: not for IKE"),
        ("chacha20poly1305iiv-prfsha256-x25519", IKE, "chacha20poly1305iiv: not for IKE"),
        ("aes256gcm16", AH, "aes256gcm16: AH encrypts nothing"),
        ("prfsha256-sha256", AH, "prfsha256: an AH proposal has no PRF"),
        ("noesn", AH, "AH needs an integrity algorithm, e.g. sha256"),
        ("aes128-aes128-sha256", ESP, "'aes128' is named twice"),
        ("sha256", ESP, "no cipher is named, e.g. aes256gcm16"),
        ("aes128", ESP, "the cipher needs an integrity algorithm, e.g. sha256"),
        ("aes128gcm16-sha256", ESP, "sha256: an AEAD cipher takes no integrity algorithm"),
        ("aes128gcm16-aes128-sha256", ESP, "ciphers with and without built-in integrity need"),
        ("aes128gcm16-prfsha256", ESP, "prfsha256: an ESP proposal has no PRF"),
        ("aes128-sha256-x25519-esn", IKE, "esn: an IKE proposal has no sequence numbers"),
        ("aes128gcm16-x25519", IKE, "no PRF is named, e.g. prfsha256"),
        ("aes128-sha256", IKE, "no key exchange method is named, e.g. x25519"),
        ("prfsha256-x25519", IKE, "no cipher is named"),
        ("aes128gcm16-sha256-x25519", IKE, "sha256: an AEAD cipher takes no integrity algorithm"),
    ],
)
def test_what_is_no_proposal_is_refused_with_a_sentence(
    text: str, protocol: ProtocolId, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        parse_proposal(text, protocol)


@given(
    st.lists(st.sampled_from(sorted(TRANSFORMS_BY_NAME)), min_size=1, max_size=6),
    st.sampled_from([IKE, ESP, AH]),
)
@settings(deadline=None)
def test_any_words_give_a_proposal_of_whole_suites_or_a_value_error(
    words: list[str], protocol: ProtocolId
) -> None:
    try:
        proposal = parse_proposal("-".join(words), protocol)
    except ValueError:
        return
    assert parse_proposal(str(proposal), protocol) == proposal
    for chosen in choices(proposal):
        if protocol == IKE:
            assert str(ike_suite(chosen)).startswith(str(chosen.of_type(ENCR)[0]))
        else:
            assert child_suite(chosen).esn == (chosen.of_type(ESN)[0].id == 1)
            assert child_suite(chosen).protocol == protocol


def choices(proposal: Proposal) -> list[Proposal]:
    """Every way to pick one transform of each type."""
    kinds = dict.fromkeys(t.type for t in proposal.transforms)
    return [
        replace(proposal, transforms=picked)
        for picked in product(*(proposal.of_type(kind) for kind in kinds))
    ]


@pytest.mark.parametrize(
    ("transform", "name"),
    [
        (Transform(type=ENCR, id=20, key_bits=256), "aes256gcm16"),
        (Transform(type=ENCR, id=20), "ENCR:20"),
        (Transform(type=ENCR, id=3), "3des"),
        (Transform(type=ENCR, id=3, key_bits=192), "ENCR:3_192"),
        (Transform(type=ENCR, id=7), "ENCR:7"),
        (Transform(type=ENCR, id=12, key_bits=512), "ENCR:12_512"),
        (Transform(type=ENCR, id=20, key_bits=256, unknown_attributes=(18,)), "ENCR:20_256?"),
        (Transform(type=TransformType.ADDKE1, id=36), "ke1_mlkem768"),
        (Transform(type=TransformType.ADDKE7, id=0), "ke7_none"),
        (Transform(type=TransformType.ADDKE2, id=35), "ADDKE2:35"),
        (Transform(type=TransformType(200), id=7), "UNKNOWN_200:7"),
    ],
)
def test_a_transform_is_shown_by_its_name_or_its_numbers(transform: Transform, name: str) -> None:
    assert str(transform) == name


# Choosing.


@pytest.mark.parametrize(
    ("offered", "ours", "chosen"),
    [
        (["aes128gcm16"], ["aes128gcm16"], (1, "aes128gcm16-esn")),
        (["aes128gcm16"], ["aes256gcm16"], None),
        (["aes128gcm16-aes256gcm16"], ["aes256gcm16-aes128gcm16"], (1, "aes256gcm16-esn")),
        (["aes128gcm16", "aes256gcm16"], ["aes256gcm16", "aes128gcm16"], (2, "aes256gcm16-esn")),
        (["aes128-sha256", "aes256gcm16"], ["aes256gcm16"], (2, "aes256gcm16-esn")),
        (["aes128-sha256-sha512"], ["aes128-sha512-sha256"], (1, "aes128-sha512-esn")),
        (["aes128gcm16-noesn"], ["aes128gcm16-esn"], None),
        (["aes128gcm16-esn-noesn"], ["aes128gcm16-noesn"], (1, "aes128gcm16-noesn")),
        (["aes128gcm16-esn-noesn"], ["aes128gcm16-noesn-esn"], (1, "aes128gcm16-noesn")),
        (["aes128gcm16-x25519"], ["aes128gcm16"], None),
        (["aes128gcm16"], ["aes128gcm16-x25519"], None),
        (["aes128gcm16-x25519"], ["aes128gcm16-ecp256-x25519"], (1, "aes128gcm16-x25519-esn")),
        ([], ["aes128gcm16"], None),
        (["aes128gcm16"], [], None),
    ],
)
def test_our_first_proposal_that_meets_an_offer_is_chosen(
    offered: list[str], ours: list[str], chosen: tuple[int, str] | None
) -> None:
    offers = [esp(text, number, bytes([number] * 4)) for number, text in enumerate(offered, 1)]
    answer = choose_proposal(iter(offers), iter([esp(text) for text in ours]))
    if chosen is None:
        assert answer is None
    else:
        assert answer is not None
        assert (answer.number, str(answer), answer.spi) == (*chosen, bytes([chosen[0]] * 4))


@pytest.mark.parametrize(
    ("offered", "ours", "chosen"),
    [
        ("x25519-ke1_mlkem768", "x25519-ke1_mlkem768", "x25519-ke1_mlkem768"),
        ("x25519-ke1_mlkem768", "x25519", None),
        ("x25519", "x25519-ke1_mlkem768", None),
        ("x25519", "x25519-ke1_mlkem768-ke1_none", "x25519"),
        ("x25519-ke1_mlkem768-ke1_none", "x25519", "x25519-ke1_none"),
        ("x25519-ke1_none-ke1_mlkem768", "x25519-ke1_mlkem768", "x25519-ke1_mlkem768"),
        # "the same key exchange method" is not used twice, whoever prefers it.
        ("x25519-ecp256-ke1_x25519", "x25519-ecp256-ke1_x25519", "ecp256-ke1_x25519"),
        (
            "x25519-ke1_mlkem768-ke1_mlkem1024-ke2_mlkem768",
            "x25519-ke1_mlkem768-ke1_mlkem1024-ke2_mlkem768",
            "x25519-ke1_mlkem1024-ke2_mlkem768",
        ),
        ("x25519-ke7_mlkem768", "x25519-ke1_mlkem768", None),
    ],
)
def test_further_key_exchanges_are_chosen(offered: str, ours: str, chosen: str | None) -> None:
    offer, mine, wanted = (
        None if text is None else parse_proposal(f"aes128gcm16-prfsha256-{text}", IKE)
        for text in (offered, ours, chosen)
    )
    assert offer is not None
    assert mine is not None
    assert choose_proposal([offer], [mine]) == wanted
    assert wanted is None or answers(wanted, [offer])


def test_an_answer_with_one_method_twice_is_none() -> None:
    offer = parse_proposal("aes128gcm16-prfsha256-x25519-ecp256-ke1_x25519", IKE)
    kept = tuple(t for t in offer.transforms if str(t) != "ecp256")
    assert not answers(replace(offer, transforms=kept), [offer])


@pytest.mark.parametrize(
    ("text", "protocol", "why"),
    [
        ("aes128gcm16-prfsha256-x25519-ke1_x25519", IKE, "cannot be used twice"),
        ("aes128gcm16-ke1_mlkem768", ProtocolId.ESP, "there is no first key exchange"),
        ("aes128gcm16-prfsha256-x25519-ke8_mlkem768", IKE, "unknown algorithm"),
        ("aes128gcm16-prfsha256-x25519-ke1_mlkem512", IKE, "unknown algorithm"),
    ],
)
def test_further_key_exchanges_that_make_no_sense_are_refused(
    text: str, protocol: ProtocolId, why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        parse_proposal(text, protocol)


def test_a_method_that_fails_here_is_left_out_wherever_it_stands() -> None:
    hybrid = parse_proposal("aes128gcm16-prfsha256-x25519-ke1_mlkem768-ke1_mlkem1024", IKE)
    left = without_algorithms(hybrid, frozenset({"mlkem768"}))
    assert str(left) == "aes128gcm16-prfsha256-x25519-ke1_mlkem1024"
    assert without_algorithms(hybrid, frozenset({"mlkem768", "mlkem1024"})) is None


GCM = esp("aes256gcm16")


@pytest.mark.parametrize(
    "offer",
    [
        GCM.without(ESN),
        GCM.without(ENCR),
        replace(GCM, protocol=AH),
        replace(GCM, transforms=()),
        replace(GCM.without(ENCR), transforms=(Transform(type=ENCR, id=20), *GCM.of_type(ESN))),
        plus(GCM.without(ENCR), Transform(type=ENCR, id=20, key_bits=512)),
        plus(GCM.without(ENCR), Transform(type=ENCR, id=28, key_bits=256)),
        plus(
            GCM.without(ENCR),
            Transform(type=ENCR, id=20, key_bits=256, unknown_attributes=(18,)),
        ),
        plus(GCM, Transform(type=INTEG, id=0, unknown_attributes=(18,))),
        plus(GCM, Transform(type=INTEG, id=0, key_bits=128)),
        plus(GCM, Transform(type=INTEG, id=12)),
        plus(GCM, Transform(type=KE, id=31)),
        plus(GCM, Transform(type=PRF, id=0)),
        plus(GCM, Transform(type=TransformType(200), id=0)),
        plus(GCM, Transform(type=TransformType.KWA, id=0)),
        plus(GCM.without(ESN), Transform(type=ESN, id=2)),
    ],
    ids=str,
)
def test_an_odd_offer_is_not_chosen(offer: Proposal) -> None:
    ours = [GCM, esp("chacha20poly1305"), esp("aes256-sha256")]
    assert choose_proposal([offer], ours) is None
    assert choose_proposal([offer, replace(GCM, number=2)], ours) == replace(GCM, number=2)


@pytest.mark.parametrize(
    "none", [(NO_INTEG,), (NO_KE,), (NO_INTEG, NO_KE), (Transform(type=TransformType(6), id=0),)]
)
def test_none_is_answered_where_it_is_offered(none: tuple[Transform, ...]) -> None:
    """RFC 7296 section 2.7: "exactly one transform of each type included in the proposal"."""
    answer = choose_proposal([plus(GCM, *none)], [GCM])
    assert answer is not None
    assert set(answer.transforms) == {*GCM.transforms, *none}
    assert answers(answer, [plus(GCM, *none)])
    assert str(esp_suite(answer)) == "aes256gcm16-esn"


def test_an_aead_cipher_is_told_from_the_others_of_a_mixed_offer() -> None:
    offer = plus(esp("aes128-sha256"), *GCM.of_type(ENCR), NO_INTEG)
    gcm = choose_proposal([offer], [GCM])
    cbc = choose_proposal([offer], [esp("aes128-sha256")])
    assert gcm is not None
    assert cbc is not None
    assert str(esp_suite(gcm)) == "aes256gcm16-esn"
    assert str(esp_suite(cbc)) == "aes128-sha256-esn"


OUR_PROPOSALS = st.lists(
    st.sampled_from(
        [
            "aes256gcm16-aes128gcm16",
            "chacha20poly1305-x25519",
            "aes128gcm16-esn-noesn",
            "aes128-aes256-sha256-sha512",
            "aes256-sha384-ecp256-modp2048-noesn",
        ]
    ).map(esp),
    min_size=1,
    max_size=3,
    unique=True,
)
KNOWN = st.sampled_from(sorted(TRANSFORMS_BY_NAME)).map(lambda name: TRANSFORMS_BY_NAME[name])
ODD = st.builds(
    Transform,
    type=st.sampled_from([ENCR, INTEG, KE, ESN]) | st.integers(0, 255).map(TransformType),
    id=st.sampled_from([0, 1, 12, 20, 28, 31]) | st.integers(0, 0xFFFF),
    key_bits=st.none() | st.sampled_from([0, 128, 256, 257]),
    unknown_attributes=st.sampled_from([(), (), (18,)]),
)


@st.composite
def offers(draw: st.DrawFn) -> list[Proposal]:
    """What peers might send: proposals like ours, with transforms put in, out and about."""
    found = []
    for number in range(1, draw(st.integers(1, 3)) + 1):
        kept = draw(OUR_PROPOSALS)[0].transforms
        if draw(st.booleans()):
            kept = tuple(t for t in kept if draw(st.integers(0, 7)))
        extra = draw(st.lists(KNOWN | ODD | st.sampled_from([NO_INTEG, NO_KE]), max_size=2))
        transforms = draw(st.permutations([*kept, *extra]))
        found.append(Proposal(protocol=ESP, transforms=tuple(transforms), number=number, spi=b"me"))
    return found


@given(offers(), OUR_PROPOSALS)
@settings(max_examples=200, deadline=None)
def test_a_choice_is_within_both_offers_and_one_of_each_type(
    offered: list[Proposal], ours: list[Proposal]
) -> None:
    chosen = choose_proposal(offered, ours)
    if chosen is None:
        return
    (offer,) = [o for o in offered if o.number == chosen.number]
    kinds = [t.type for t in chosen.transforms]
    assert len(set(kinds)) == len(kinds)
    assert set(chosen.transforms) <= set(offer.transforms)
    assert set(kinds) == {t.type for t in offer.transforms}
    none = [t for t in chosen.transforms if t.type in WITH_NONE and t.id == 0]
    assert any(set(chosen.transforms) <= {*mine.transforms, *none} for mine in ours)
    assert not any(t.unknown_attributes for t in chosen.transforms)
    assert answers(chosen, offered)
    suite = esp_suite(chosen)
    assert suite.cipher in CIPHERS
    assert suite.integrity in (None, *INTEGRITY)
    assert (suite.integrity is None) == suite.cipher.is_aead


@given(OUR_PROPOSALS, OUR_PROPOSALS)
@settings(deadline=None)
def test_a_choice_is_found_where_there_is_one(
    offered: list[Proposal], ours: list[Proposal]
) -> None:
    """The twin tries every suite of every pair of proposals, in the order of our preference."""
    common = [
        picked
        for mine, offer in product(ours, offered)
        for picked in choices(mine)
        if {t.type for t in mine.transforms} == {t.type for t in offer.transforms}
        and set(picked.transforms) <= set(offer.transforms)
    ]
    chosen = choose_proposal(offered, ours)
    assert (chosen is None) == (not common)
    if chosen is not None:
        assert chosen.transforms == common[0].transforms


# The answer that an initiator gets.


OFFER = [esp("aes128gcm16-aes256gcm16"), esp("aes128-sha256-sha512", number=2)]


@pytest.mark.parametrize(
    "answer", [esp("aes256gcm16"), esp("aes128-sha512", number=2, spi=b"1234")], ids=str
)
def test_an_answer_picks_out_of_one_proposal(answer: Proposal) -> None:
    assert answers(answer, iter(OFFER))


@pytest.mark.parametrize(
    "answer",
    [
        esp("aes256gcm16", number=2),
        esp("aes256gcm16", number=3),
        esp("aes256gcm16-noesn"),
        esp("chacha20poly1305"),
        esp("aes128gcm16-aes256gcm16"),
        esp("aes128-sha384", number=2),
        esp("aes128gcm16").without(ESN),
        esp("aes128-sha256", number=2).without(INTEG),
        plus(esp("aes128gcm16"), NO_INTEG),
        plus(esp("aes128gcm16"), Transform(type=ESN, id=1)),
        plus(esp("aes128gcm16"), Transform(type=KE, id=31)),
        replace(esp("aes128gcm16"), protocol=AH),
        replace(esp("aes128gcm16"), transforms=()),
    ],
    ids=str,
)
def test_what_was_not_offered_is_no_answer(answer: Proposal) -> None:
    assert not answers(answer, OFFER)


@given(offers(), OUR_PROPOSALS)
@settings(deadline=None)
def test_an_answer_is_one_of_all_that_could_be_chosen(
    offered: list[Proposal], ours: list[Proposal]
) -> None:
    numbered = [replace(mine, number=number) for number, mine in enumerate(ours, 1)]
    possible = {(c.number, frozenset(c.transforms)) for mine in numbered for c in choices(mine)}
    for answer in (*offered, *choices(offered[0])):
        is_one = (answer.number, frozenset(answer.transforms)) in possible
        is_once = len(set(answer.transforms)) == len(answer.transforms)
        assert answers(answer, numbered) == (is_one and is_once)


# Suites.


def test_the_suites_of_esp_have_their_sizes() -> None:
    suite = esp_suite(esp("aes256-sha384-noesn"))
    assert (str(suite), suite.icv, suite.esn) == ("aes256-sha384", 24, False)
    suite = esp_suite(GCM)
    assert (str(suite), suite.icv, suite.esn) == ("aes256gcm16-esn", 16, True)


def test_the_suites_of_ike_are_shown_with_every_part() -> None:
    assert str(ike_suite(ike("aes128-sha256-ecp256"))) == "aes128-sha256-prfsha256-ecp256"
    assert str(ike_suite(ike("aes256gcm16-prfsha512-x25519"))) == "aes256gcm16-prfsha512-x25519"


@pytest.mark.parametrize(
    "chosen",
    [
        GCM.without(ENCR),
        GCM.without(ESN),
        plus(GCM.without(ESN), Transform(type=ESN, id=2)),
        plus(GCM, Transform(type=ENCR, id=28)),
        plus(GCM, Transform(type=INTEG, id=12)),
        plus(GCM, NO_INTEG, Transform(type=INTEG, id=12)),
        esp("aes128-sha256").without(INTEG),
        plus(esp("aes128-sha256").without(INTEG), NO_INTEG),
        esp("aes128-sha256-sha512"),
        plus(GCM.without(ENCR), Transform(type=ENCR, id=20)),
        plus(GCM.without(ENCR), Transform(type=ENCR, id=11)),
    ],
    ids=str,
)
def test_what_is_no_suite_of_esp_is_a_key_error(chosen: Proposal) -> None:
    with pytest.raises(KeyError):
        esp_suite(chosen)


IKE_CBC = ike("aes128-sha256-x25519")


@pytest.mark.parametrize(
    "chosen",
    [
        *(IKE_CBC.without(kind) for kind in (ENCR, PRF, INTEG, KE)),
        plus(IKE_CBC, Transform(type=PRF, id=6)),
        plus(IKE_CBC.without(PRF), Transform(type=PRF, id=1)),
        plus(IKE_CBC.without(ENCR), Transform(type=ENCR, id=11)),
        plus(IKE_CBC.without(INTEG), NO_INTEG),
        plus(IKE_CBC.without(KE), NO_KE),
        plus(IKE_CBC.without(KE), Transform(type=KE, id=2)),
    ],
    ids=str,
)
def test_what_is_no_suite_of_ike_is_a_key_error(chosen: Proposal) -> None:
    with pytest.raises(KeyError):
        ike_suite(chosen)


@given(
    st.integers(0, 0xFFFF),
    st.none() | st.sampled_from([128, 192, 256]) | st.integers(0, 0xFFFF),
    st.integers(0, 0xFFFF),
    st.integers(0, 0xFFFF),
    st.integers(0, 0xFFFF),
)
@settings(deadline=None)
def test_no_number_reaches_a_suite_but_through_the_table(
    encr: int, key_bits: int | None, prf: int, integ: int, ke: int
) -> None:
    transforms = (
        Transform(type=ENCR, id=encr, key_bits=key_bits),
        Transform(type=PRF, id=prf),
        Transform(type=INTEG, id=integ),
        Transform(type=KE, id=ke),
        Transform(type=ESN, id=1),
    )
    for protocol, suite in ((IKE, ike_suite), (ESP, esp_suite)):
        try:
            found = suite(Proposal(protocol=protocol, transforms=transforms))
        except KeyError:
            continue
        assert found.cipher in CIPHERS
        assert found.integrity in (None, *INTEGRITY)
        assert getattr(found, "prf", PRFS[0]) in PRFS
        assert getattr(found, "group", GROUPS[0]) in GROUPS


# Trimming to what can be done.


ALL_SUITES = frozenset(
    c.name if i is None else f"{c.name}-{i.name}"
    for c in CIPHERS
    for i in ((None,) if c.is_aead else INTEGRITY)
)


@given(OUR_PROPOSALS, st.frozensets(st.sampled_from(sorted(ALL_SUITES))), st.booleans())
@settings(deadline=None)
def test_every_choice_of_the_supported_part_is_supported(
    ours: list[Proposal], suites: frozenset[str], esn: bool
) -> None:
    whole = ours[0]
    possible = [
        suite
        for suite in map(esp_suite, choices(whole))
        if str(replace(suite, esn=False)) in suites and (esn or not suite.esn)
    ]
    part = supported_part(whole, suites, esn=esn)
    if part is None:
        assert not possible
        return
    left = [esp_suite(chosen) for chosen in choices(part)]
    assert set(left) <= set(possible)
    assert left[0] == possible[0], "the first preference that is supported stays the first"
    assert part.of_type(KE) == whole.of_type(KE)
    kept = iter(whole.transforms)
    assert all(transform in kept for transform in part.transforms), "the order is kept"


@pytest.mark.parametrize("name", sorted(ALL_SUITES))
def test_all_is_left_where_all_is_supported(name: str) -> None:
    whole = esp(f"{name}-esn-noesn-x25519")
    assert supported_part(whole, ALL_SUITES, esn=True) == whole
    assert supported_part(whole, ALL_SUITES - {name}, esn=True) is None
    assert str(supported_part(whole, ALL_SUITES, esn=False)) == f"{name}-x25519-noesn"


def test_a_pair_that_is_not_supported_cannot_be_picked_from_what_is_left() -> None:
    part = supported_part(
        esp("aes128-aes256-sha256-sha512"),
        frozenset({"aes128-sha256", "aes256-sha512", "aes256-sha256"}),
        esn=True,
    )
    assert str(part) == "aes128-aes256-sha256-esn"


@given(OUR_PROPOSALS, st.frozensets(st.sampled_from(sorted(TRANSFORMS_BY_NAME))))
@settings(deadline=None)
def test_without_algorithms_leaves_the_others_or_nothing(
    ours: list[Proposal], names: frozenset[str]
) -> None:
    whole = ours[0]
    left = without_algorithms(whole, names)
    others = tuple(t for t in whole.transforms if str(t) not in names)
    if left is None:
        assert {t.type for t in others} < {t.type for t in whole.transforms}
    else:
        assert left == replace(whole, transforms=others)
        assert {t.type for t in others} == {t.type for t in whole.transforms}


def test_of_type_and_without_part_a_proposal() -> None:
    proposal = esp("aes128-aes256-sha256")
    assert [str(t) for t in proposal.of_type(ENCR)] == ["aes128", "aes256"]
    assert str(proposal.without(ENCR)) == "sha256-esn"
    assert proposal.of_type(PRF) == ()
