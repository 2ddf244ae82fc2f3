"""A user of EAP whose gateway shows a certificate: is it revoked? Before that is known, no word."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.ike.conftest import Pair
from tests.ike.test_certificates import ISSUING, ROOT, bundle, certified
from tests.ike.test_eap import answered_eap, failures, policies
from tests.ike.test_inquiries import BY_LIST, ROOT_CRL, octets, shown
from tests.pki.chains import Entity
from tests.pki.test_revocation import crl
from xfrmpy.ike.outputs import AskStatus
from xfrmpy.ike.states import IkeSaState
from xfrmpy.pki.sources import Source
from xfrmpy.pki.verdicts import Strictness


def _pair(leaf: Entity) -> Pair:
    """Moon is the user, and strict."""
    moon, sun = policies()
    strict: dict[str, Any] = {
        "remote_key": None,
        "remote_authorities": replace(bundle(ROOT), crl=ROOT_CRL),
        "revocation": Strictness.STRICT,
    }
    return Pair(replace(moon, **strict), certified(sun, leaf, ISSUING, remote_authorities=None))


def _asked(pair: Pair) -> Source:
    (source,) = (source for each in pair.moon.reports(AskStatus) for source in each.sources)
    return source


def test_a_user_answers_when_the_gateway_is_known_to_be_good(sealing: Any) -> None:
    pair = _pair(shown(BY_LIST))
    pair.up()
    assert pair.moon.ike_sa.state is IkeSaState.AUTHENTICATING
    assert not answered_eap(sealing)
    pair.moon.endpoint.handle_status(_asked(pair), octets(crl(ISSUING)), pair.now)
    pair.deliver()
    pair.assert_up()
    assert str(pair.sun.ike_sa.remote_id) == "eap:carol"


def test_no_eap_answer_to_a_gateway_that_is_revoked(sealing: Any) -> None:
    leaf = shown(BY_LIST)
    pair = _pair(leaf)
    pair.up()
    pair.moon.endpoint.handle_status(_asked(pair), octets(crl(ISSUING, [leaf])), pair.now)
    pair.deliver()
    pair.assert_down()
    assert not answered_eap(sealing)
    assert [failure.code for failure in failures(pair.moon)] == ["XF2115"]


def test_no_eap_answer_to_a_gateway_of_which_nobody_tells(sealing: Any) -> None:
    pair = _pair(shown(BY_LIST))
    pair.up()
    pair.moon.endpoint.handle_status(_asked(pair), "no answer within 5 s", pair.now)
    pair.deliver()
    pair.assert_down()
    assert not answered_eap(sealing)
    assert [failure.code for failure in failures(pair.moon)] == ["XF2116"]
