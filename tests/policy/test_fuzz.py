"""Whatever stands in a file, loading it gives tunnels or errors and never raises."""

from __future__ import annotations

import tempfile
from pathlib import Path

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from xfrmpy.failures import CATALOGUE
from xfrmpy.policy.load import LoadedPolicy, load_files
from xfrmpy.policy.schema.file import PolicyFile
from xfrmpy.policy.schema.protection import IkeSettings
from xfrmpy.policy.schema.tunnel import Retransmit, Tunnel

WORDS = sorted(
    {*PolicyFile.model_fields, *Tunnel.model_fields, *IkeSettings.model_fields}
    | {*Retransmit.model_fields, "auto", "off", "compat", "secret:key", "file:/dev/null"}
    | {"10.1.0.0/16", "::/0", "192.0.2.1", "a.example", "aes256gcm16", "30s", "%any", "[key]"}
)
_scalars = (
    st.sampled_from(WORDS)
    | st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=10)
)
_structures = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


def load_octets(data: bytes) -> LoadedPolicy:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "t.yaml")
        path.write_bytes(data)
        loaded = load_files([path], secrets=[Path(directory)])
    for error in loaded.errors:
        assert error.code in CATALOGUE
        assert str(error).isprintable()
        assert len(str(error)) < 1000
    return loaded


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_any_octets(data: bytes) -> None:
    load_octets(data)


@given(_structures)
@settings(max_examples=150, deadline=None)
def test_any_structure(value: object) -> None:
    load_octets(yaml.safe_dump(value, allow_unicode=True).encode(errors="replace"))


@given(st.dictionaries(st.sampled_from(list(Tunnel.model_fields)), _structures, max_size=5))
@settings(max_examples=150, deadline=None)
def test_any_values_of_the_keys_of_a_tunnel(keys: dict[str, object]) -> None:
    good: dict[str, object] = {"peer": "192.0.2.1", "local": "10.1.0.0/16", "remote": "10.2.0.0/16"}
    loaded = load_octets(yaml.safe_dump(good | keys).encode())
    assert loaded.errors  # there is no secret that could be read
    assert not loaded.tunnels


@given(st.sampled_from(list(Tunnel.model_fields)), _structures)
@settings(max_examples=150, deadline=None)
def test_any_value_of_a_key_in_the_defaults(key: str, value: object) -> None:
    file = {"defaults": {key: value}, "tunnels": {"a": {"peer": "192.0.2.1"}, "b": {}}}
    assert load_octets(yaml.safe_dump(file).encode()).errors


GOOD = """\
defaults: {psk: secret:key, local: 10.1.0.0/16, dpd: 5s}
tunnels:
  a: {peer: 192.0.2.1, remote: [10.2.0.0/16, "10.3.0.1[tcp/443]"], ike: compat}
  b:
    peer_id: keyid:b
    children: {lan: {local: "::1/128", remote: 2001:db8::/32}}
    esp: {proposals: aes256-sha256, replay_window: 64}
"""


@given(
    st.integers(0, len(GOOD) - 1), st.integers(0, 3), st.text(max_size=3) | st.sampled_from(WORDS)
)
@settings(max_examples=150, deadline=None)
def test_a_good_file_with_a_few_characters_changed(at: int, taken: int, put: str) -> None:
    load_octets((GOOD[:at] + put + GOOD[at + taken :]).encode(errors="replace"))
