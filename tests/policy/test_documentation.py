"""The documentation says what the code does: reference, examples, JSON schema."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.keypairs import key_pair
from xfrmpy.crypto.signatures import KeyKind
from xfrmpy.failures import CATALOGUE
from xfrmpy.policy.document import compose_document
from xfrmpy.policy.errors import Findings
from xfrmpy.policy.load import LoadedPolicy, load_policy
from xfrmpy.policy.reference import reference_markdown
from xfrmpy.policy.schema.file import PolicyFile, json_schema
from xfrmpy.policy.schema.keys import Keys, is_future, nested
from xfrmpy.policy.schema.tunnel import Tunnel
from xfrmpy.policy.schema.validation import validate

Load = Callable[..., LoadedPolicy]
Lines = Callable[[LoadedPolicy], list[str]]

PAGE = (Path(__file__).parents[2] / "docs" / "policy.md").read_text()
EXAMPLES = re.findall(
    r"^```yaml\n# /etc/xfrmpy/conf\.d/(\S+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL
)


def test_the_reference_page_is_up_to_date() -> None:
    _, _, rest = PAGE.partition("<!-- reference -->\n")
    assert rest.partition("<!-- /reference -->")[0] == reference_markdown()


def test_every_example_of_the_page_has_a_file_name() -> None:
    assert len(EXAMPLES) == PAGE.count("```yaml") > 4


@pytest.mark.parametrize(("name", "text"), EXAMPLES)
def test_the_examples_of_the_page_load(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "secrets").mkdir()
    text = text.replace("file:/etc/xfrmpy", f"file:{tmp_path}/secrets")
    (tmp_path / "conf.d" / name).write_text(text)
    for secret in {*re.findall(r"secret:([\w.-]+)", text), "field-unit-9.key"}:
        is_private = f"key: secret:{secret}" in text
        octets = key_pair(KeyKind.ED25519).pkcs8() if is_private else b"x" * 32
        (tmp_path / "secrets" / secret).write_bytes(octets)
        (tmp_path / "secrets" / secret).chmod(0o600)
    loaded = load_policy([tmp_path / "conf.d"])
    assert loaded.errors == ()
    is_weak = "3des" in text
    assert {warning.code for warning in loaded.warnings} == ({"XF1020"} if is_weak else set())
    assert loaded.tunnels or loaded.shunts


def test_the_error_that_the_page_shows_is_the_one_that_is_given(load: Load) -> None:
    text = dict(EXAMPLES)["office.yaml"].replace("psk:", "pks:")
    (error,) = load(**{"office.yaml": text}).errors
    assert f"office.yaml:3:1: {str(error).split(': ', 1)[1]}\n" in PAGE


def _models(model: type[Keys]) -> list[type[Keys]]:
    inner = [nested(field)[0] for field in model.model_fields.values()]
    return [model, *(m for part in inner if part is not None for m in _models(part))]


@pytest.mark.parametrize("model", dict.fromkeys(_models(PolicyFile)))
def test_every_key_is_described_and_its_example_is_right(model: type[Keys]) -> None:
    for name, field in model.model_fields.items():
        if is_future(field):
            continue
        assert (field.description or "").endswith(".")
        (example,) = field.examples or []
        findings = Findings(file="f")
        node = compose_document(yaml.safe_dump({name: example}), findings)
        assert node is not None
        assert validate(model, node, findings) is not None, findings.errors


def test_the_json_schema_has_the_keys_that_can_be_given_and_no_others() -> None:
    schema = json_schema()
    assert json.loads(json.dumps(schema)) == schema
    for model in (Tunnel, PolicyFile):
        definition = schema["$defs"][model.__name__]
        known = [name for name, field in model.model_fields.items() if not is_future(field)]
        assert list(definition["properties"]) == known
        assert definition["additionalProperties"] is False
    assert '"null"' not in json.dumps(schema)


def test_the_codes_of_the_page_are_in_the_catalogue() -> None:
    assert set(re.findall(r"XF\d{4}", PAGE)) <= CATALOGUE.keys()


DESIGN = """\
tunnels:
  office:                        # five keys are enough
    peer: vpn.example.org
    id: gw1.example.net
    psk: secret:key
    local: 10.1.0.0/16
    remote: 10.2.0.0/16
  dc-east:                       # route-based
    peer: 203.0.113.7
    id: 198.51.100.4
    psk: secret:key
    interface: 169.254.10.1/30
  db-pair:                       # transport mode for one service
    peer: 192.0.2.20
    peer_id: db2.example.net
    cert: db1
    ca: corp-root
    mode: transport
    traffic: tcp/5432
  grown:
    peer: [vpn1.example.org, vpn2.example.org]
    auth: {local: {cert: gw1}, remote: {ca: corp-root, id: "CN=sun, O=Example"}}
    ike: {profile: cnsa, lifetime: 4h, reauth: 24h}
    children:
      lan:   {local: 10.1.0.0/16, remote: 10.2.0.0/16}
      voice: {local: 10.1.9.0/24, remote: 10.2.9.0/24, lifetime: 30m}
    start: auto
    on_down: block
"""


def test_what_is_planned_is_refused_as_not_supported_and_as_nothing_else(
    load: Load, lines: Lines
) -> None:
    loaded = load(**{"d.yaml": DESIGN})
    assert {error.code for error in loaded.errors} == {"XF1011"}
    assert [line.removeprefix("d.yaml:").replace(" XF1011:", "") for line in lines(loaded)] == [
        "19:5: 'traffic' is not supported yet",
        "23:20: 'profile' cannot be cnsa yet",
    ]


def test_the_first_planned_tunnel_loads_alone(load: Load) -> None:
    loaded = load(**{"d.yaml": DESIGN.partition("  dc-east")[0]})
    assert ([tunnel.name for tunnel in loaded.tunnels], loaded.errors) == (["office"], ())
