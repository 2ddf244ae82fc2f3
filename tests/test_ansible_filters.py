"""The collection's filters: meshes, and the other end of a tunnel for other makers' gateways."""

from __future__ import annotations

import ast
import base64
import importlib.util
import re
import runpy
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError

from xfrmpy.policy.keys import host_key
from xfrmpy.policy.load import load_policy
from xfrmpy.policy.profiles import PROFILES

COLLECTION = Path(__file__).parent.parent / "ansible"
FILTERS = COLLECTION / "plugins/filter"
SHARED = COLLECTION / "plugins/plugin_utils/foreign_end.py"
RENDERING = COLLECTION.parent / "xfrmpy/policy/foreign/rendering.py"


def shared_text() -> str:
    """What the collection has of xfrmpy, for controllers without it."""
    head = "# Copyright The xfrmpy authors\n# Apache-2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)\n"
    where = "# A copy of xfrmpy/policy/foreign/rendering.py; changes here are lost.\n"
    return head + where + RENDERING.read_text()


def load_foreign() -> dict[str, Any]:
    """The filters of `foreign.py`, whose own collection is only known to Ansible."""
    package = "ansible_collections.xfrmpy.gateway.plugins.plugin_utils"
    spec = importlib.util.spec_from_file_location(f"{package}.foreign_end", SHARED)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    parents = [
        "ansible_collections.xfrmpy.gateway.plugins.plugin_utils".rsplit(".", n)[0]
        for n in range(5)
    ]
    with pytest.MonkeyPatch.context() as patch:
        for name in parents:
            patch.setitem(sys.modules, name, types.ModuleType(name))
        patch.setitem(sys.modules, spec.name, module)
        patch.setattr(sys.modules[package], "foreign_end", module, raising=False)
        spec.loader.exec_module(module)
        return runpy.run_path(str(FILTERS / "foreign.py"))


MESH = runpy.run_path(str(FILTERS / "mesh.py"))
FOREIGN = load_foreign()
REMOTE = runpy.run_path(str(FILTERS / "remote_access.py"))
mesh, mesh_secrets = MESH["mesh"], MESH["mesh_secrets"]

POLICY = {
    "peer": "192.0.2.2",
    "id": "moon.example.net",
    "psk": "secret:net",
    "local": "10.1.0.0/16",
    "remote": ["10.2.0.0/16"],
    "dpd": "10s",
}


def members(*names: str) -> list[dict[str, Any]]:
    return [
        {"name": name, "address": f"192.0.2.{n}", "subnets": [f"10.{n}.0.0/16"]}
        for n, name in enumerate(names, 1)
    ]


def test_each_pair_of_a_full_mesh_has_a_tunnel_that_one_end_begins(tmp_path: Path) -> None:
    made = mesh(members("moon", "sun", "mars"))
    assert {name: [*policy["tunnels"]] for name, policy in made["policies"].items()} == {
        "moon": ["mesh-mars", "mesh-sun"],
        "sun": ["mesh-mars", "mesh-moon"],
        "mars": ["mesh-moon", "mesh-sun"],
    }
    starts = [t["start"] for p in made["policies"].values() for t in p["tunnels"].values()]
    assert sorted(starts) == ["auto"] * 3 + ["listen"] * 3
    for name, policy in made["policies"].items():
        directory = tmp_path / name
        for path, text in {
            "conf.d/mesh.yaml": yaml.safe_dump(policy),
            **{f"secrets/{secret}": "k" * 40 for secret in made["secrets"][name]},
        }.items():
            file = directory / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            file.chmod(0o600)
        loaded = load_policy([directory / "conf.d"])
        assert (loaded.errors, len(loaded.tunnels)) == ((), 2)


def test_spokes_reach_each_other_through_the_first_hub() -> None:
    made = mesh(members("hub", "one", "two"), topology="hub", hubs=["hub"])["policies"]
    assert [*made["one"]["tunnels"]] == ["mesh-hub"]
    assert made["one"]["tunnels"]["mesh-hub"]["remote"] == ["10.1.0.0/16", "10.3.0.0/16"]
    assert made["one"]["tunnels"]["mesh-hub"]["start"] == "auto"
    assert made["hub"]["tunnels"]["mesh-one"]["local"] == ["10.1.0.0/16", "10.3.0.0/16"]
    assert made["hub"]["tunnels"]["mesh-one"]["remote"] == ["10.2.0.0/16"]


def test_who_has_no_address_is_not_called() -> None:
    given = members("moon", "sun")
    del given[1]["address"]
    made = mesh(given)["policies"]
    assert "peer" not in made["moon"]["tunnels"]["mesh-sun"]
    assert made["sun"]["tunnels"]["mesh-moon"]["start"] == "auto"


@pytest.mark.parametrize(
    ("given", "options", "words"),
    [
        (members("moon"), {}, "two members at least"),
        (members("moon", "moon"), {}, "moon is a member twice"),
        ([*members("moon"), {"name": "sun", "subnets": ["10.1.5.0/24"]}], {}, "moon and sun"),
        ([*members("moon"), {"name": "sun", "subnets": ["10.2.0.1/16"]}], {}, "host bits set"),
        ([*members("moon"), {"name": "sun", "subnets": "10.2.0.0/16"}], {}, "is a list"),
        ([*members("moon"), {"name": "sun", "subnet": []}], {}, "unknown key subnet"),
        (
            [{"name": n, "subnets": [f"10.{i}.0.0/16"]} for i, n in enumerate(("moon", "sun"))],
            {},
            "neither moon nor sun",
        ),
        (members("moon", "sun"), {"topology": "star"}, "full, hub"),
        (members("moon", "sun"), {"topology": "hub"}, "names at least one"),
        (members("moon", "sun"), {"topology": "hub", "hubs": ["mars"]}, "mars"),
        (members("moon", "sun"), {"pairs": [{"between": ["moon", "mars"], "policy": {}}]}, "mars"),
        (members("moon", "sun"), {"pairs": [{"between": "moon"}]}, "is no pair"),
        ("moon", {}, "a list of mappings"),
    ],
)
def test_a_mesh_that_cannot_be_is_refused(given: Any, options: Any, words: str) -> None:
    with pytest.raises(AnsibleFilterError, match=words):
        mesh(given, **options)


def test_a_member_whose_subnets_are_those_of_a_play_is_named() -> None:
    """Ansible shows a host's variables to others if they are of the inventory, or facts."""
    hosts = {"moon": {"mesh_subnets": ["10.1.0.0/16"]}, "sun": {"mesh_address": "192.0.2.2"}}
    with pytest.raises(AnsibleFilterError, match="sun has no `mesh_subnets` in the inventory"):
        MESH["mesh_members"]([*hosts], hosts)


PUBLIC = {
    "moon": "MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=",
    "sun": "MCowBQYDK2VwAyEAPUAXw+hDiVqStwqnTRt+vJyYLM8uxJaMwM1V8Sr0Zgw=",
}
"""RFC 8032 section 7.1, TEST 1 and 2."""


def test_with_public_keys_each_end_expects_the_others_and_the_unknown_wait(tmp_path: Path) -> None:
    made = mesh(members("moon", "sun", "mars"), keys=PUBLIC)
    assert made["waiting"] == ["mars and moon", "mars and sun"]
    assert made["secrets"] == {"moon": {}, "sun": {}, "mars": {}}
    assert [*made["pairs"]["moon"]] == ["sun"]
    assert made["pairs"]["moon"]["sun"]["keys"] == {"ours": PUBLIC["moon"], "theirs": PUBLIC["sun"]}
    assert made["policies"]["mars"] == {"tunnels": {}}
    policy = made["policies"]["moon"]
    assert policy["tunnels"]["mesh-sun"]["auth"]["remote"] == {"id": "sun", "key": PUBLIC["sun"]}
    host_key(tmp_path / "secrets")
    directory = tmp_path / "conf.d"
    directory.mkdir()
    (directory / "mesh.yaml").write_text(yaml.safe_dump(policy))
    loaded = load_policy([directory])
    assert (loaded.errors, [tunnel.name for tunnel in loaded.tunnels]) == ((), ["mesh-sun"])


def test_a_member_that_is_not_there_has_the_key_that_others_know() -> None:
    policy = yaml.safe_dump(mesh(members("moon", "sun"), keys=PUBLIC)["policies"]["moon"]).encode()
    files = {"moon": {"content": base64.b64encode(policy).decode()}, "mars": {"failed": False}}
    here = {name: {"key": PUBLIC["moon"], "changed": name == "mars"} for name in files}
    assert MESH["mesh_public_keys"](here, files) == {
        "keys": {"sun": PUBLIC["sun"], "moon": PUBLIC["moon"], "mars": PUBLIC["moon"]},
        "generated": [PUBLIC["moon"]],
    }
    unasked = MESH["mesh_public_keys"]({"mars": {"key": None, "changed": True}, "sun": {}}, {})
    assert unasked == {
        "keys": {"mars": MESH["STAND_IN"], "sun": MESH["STAND_IN"]},
        "generated": [MESH["STAND_IN"]],
    }


def test_a_pair_keeps_the_key_that_either_end_has() -> None:
    known = mesh(members("moon", "sun", "mars"))["secrets"]
    made = mesh_secrets(known, {"sun": {"mesh-moon--sun": "old"}})
    assert made["values"]["moon"]["mesh-moon--sun"] == "old"
    assert made["values"]["sun"]["mesh-moon--sun"] == "old"
    assert made["generated"]["moon"] == ["mesh-mars--moon"]
    new = made["values"]["mars"]["mesh-mars--moon"]
    assert new == made["values"]["moon"]["mesh-mars--moon"]
    assert len(bytes.fromhex(new)) == 32
    assert mesh_secrets(known, made["values"])["generated"] == {n: [] for n in known}
    rotated = mesh_secrets(known, made["values"], rotate=True)
    assert rotated["values"]["moon"]["mesh-moon--sun"] != "old"


@pytest.mark.parametrize("profile", ["modern", "compat"])
def test_a_profile_means_the_same_there(profile: str) -> None:
    """But for ML-KEM, which Debian's peers do not have."""
    classical = tuple(p for p in PROFILES[profile].ike if "-ke1_" not in p)
    assert FOREIGN["IKE"][profile] == classical
    own = {frozenset(proposal.split("-")) for proposal in PROFILES[profile].esp}
    assert {frozenset(proposal.split("-")) for proposal in FOREIGN["ESP"][profile]} <= own


def test_the_other_end_is_the_mirror_of_ours() -> None:
    policy = {**POLICY, "esp": "aes256gcm16-noesn", "start": "listen"}
    text = FOREIGN["swanctl_conf"](policy, "net", "192.0.2.1", "a key")
    for line in (
        "local_addrs = 192.0.2.2",
        "remote_addrs = 192.0.2.1",
        "id = 192.0.2.2",
        "id = moon.example.net",
        "local_ts = 10.2.0.0/16",
        "remote_ts = 10.1.0.0/16",
        "esp_proposals = aes256gcm16-noesn",
        "start_action = start",
        f"secret = 0x{b'a key'.hex()}",
    ):
        assert f"{line}\n" in text
    libreswan = FOREIGN["ipsec_conf"](policy, "net", "192.0.2.1")
    for line in (
        "left=192.0.2.2",
        "leftid=192.0.2.2",
        "right=192.0.2.1",
        "rightid=@moon.example.net",
        "leftsubnet=10.2.0.0/16",
        "rightsubnet=10.1.0.0/16",
        "esp=aes_gcm256",
        "esn=no",
        "auto=start",
    ):
        assert f"    {line}\n" in libreswan
    secrets = FOREIGN["ipsec_secrets"](policy, "net", "192.0.2.1", "a key\n")
    assert secrets == '192.0.2.2 @moon.example.net : PSK "a key"\n'


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"interface": "169.254.10.1/30"}, "interface has nothing"),
        ({"mode": "beet"}, "tunnel or transport"),
        ({"esp": {"tfc": 1280}}, "esp.tfc has nothing"),
        ({"ike": {"profile": "cnsa"}}, "no profile 'cnsa'"),
        ({"local": "10.1.0.0/16[tcp/443]"}, "prefixes alone"),
        ({"peer": None}, "peer_id"),
    ],
)
def test_what_cannot_be_said_there_is_an_error(change: dict[str, Any], words: str) -> None:
    with pytest.raises(AnsibleFilterError, match=words):
        FOREIGN["swanctl_conf"]({**POLICY, **change}, "net", "192.0.2.1", "a key")


def test_the_documentation_of_every_module_and_filter_is_read() -> None:
    for path in sorted(FILTERS.glob("*.yml")):
        written = yaml.safe_load(path.read_text())
        assert written["DOCUMENTATION"]["name"] == path.stem
    filters: set[str] = set().union(
        *(each["FilterModule"]().filters() for each in (MESH, FOREIGN, REMOTE))
    )
    assert {path.stem for path in FILTERS.glob("*.yml")} == filters


def test_modules_need_only_the_standard_library_on_the_target() -> None:
    modules = [*FILTERS.parent.glob("modules/*.py"), *FILTERS.parent.glob("module_utils/*.py")]
    assert len(modules) > 7
    for path in modules:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            tops = {name.partition(".")[0] for name in names}
            assert tops <= {"ansible", "ansible_collections", *sys.stdlib_module_names}, path


def examples() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every play or task in the documentation of the collection, by the page that it is on."""
    for page in (COLLECTION / "README.md", COLLECTION.parent / "docs/ansible.md"):
        for text in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL):
            for play in yaml.safe_load(text) if not text.startswith("# inventory") else ():
                yield from ((page.name, task) for task in play.get("tasks", ()))
    for path in (COLLECTION / "plugins/modules").glob("*.py"):
        for task in yaml.safe_load(_constant(path, "EXAMPLES")):
            yield path.name, task


def _constant(path: Path, name: str) -> str:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return str(ast.literal_eval(node.value))
    raise AssertionError(f"{path} has no {name}")


def test_examples_use_options_that_there_are() -> None:
    found = list(examples())
    assert len(found) > 10
    for place, task in found:
        for name, options in task.items():
            collection, _, module = name.rpartition(".")
            if collection == "xfrmpy.gateway":
                assert {*(options or {})} <= _documented(module), (place, task)


def _documented(module: str) -> set[str]:
    """The options of a module: its own, and those that it shares with others."""
    path = COLLECTION / f"plugins/modules/{module}.py"
    written = yaml.safe_load(_constant(path, "DOCUMENTATION"))
    fragments = runpy.run_path(str(COLLECTION / "plugins/doc_fragments/common.py"))
    names = {*written.get("options", {})}
    for fragment in written["extends_documentation_fragment"]:
        text = getattr(fragments["ModuleDocFragment"], fragment.rpartition(".")[2].upper())
        names |= {*yaml.safe_load(text).get("options", {})}
    return names


def test_the_inventory_of_the_first_mesh_is_one() -> None:
    page = (COLLECTION.parent / "docs/ansible.md").read_text()
    (text,) = re.findall(r"```yaml\n(# inventory.yml\n.*?)```", page, re.DOTALL)
    hosts = yaml.safe_load(text)["gateways"]["hosts"]
    made = mesh(MESH["mesh_members"]([*hosts], hosts))
    assert len(made["policies"]["venus"]["tunnels"]) == 3
    assert "peer" not in made["policies"]["moon"]["tunnels"]["mesh-venus"]


def test_the_end_that_the_page_renders_is_one() -> None:
    page = (COLLECTION.parent / "docs/ansible.md").read_text()
    (office,) = (
        play["vars"]["office"]
        for text in re.findall(r"```yaml\n(- .*?)```", page, re.DOTALL)
        for play in yaml.safe_load(text)
    )
    assert "203.0.113.7" in FOREIGN["swanctl_conf"](office, "office", "198.51.100.1", "a key")


CLIENTS = {
    "alice": {"address": "10.99.0.1"},
    "bob": {"address": "10.99.0.2", "id": "b@example.net"},
}


def test_a_gateway_and_its_clients_mirror_each_other(tmp_path: Path) -> None:
    made = REMOTE["remote_access"](CLIENTS, "192.0.2.1", ["10.1.0.0/16"], "gw", {"dpd": "9s"})
    ends = {
        "gateway": made["policy"],
        **{n: {"tunnels": {n: t}} for n, t in made["clients"].items()},
    }
    loaded = {}
    for end, policy in ends.items():
        directory = tmp_path / end
        for path, text in {
            "conf.d/a.yaml": yaml.safe_dump(policy),
            **{f"secrets/{secret}": "k" * 40 for secret in made["secrets"]},
        }.items():
            file = directory / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            file.chmod(0o600)
        loaded[end] = load_policy([directory / "conf.d"])
        assert loaded[end].errors == ()
    for ours in loaded["gateway"].tunnels:
        (theirs,) = loaded[ours.name.removeprefix("client-")].tunnels
        assert (ours.local_id, ours.remote_id) == (theirs.remote_id, theirs.local_id)
        assert ours.children[0].local == theirs.children[0].remote
        assert ours.children[0].remote == theirs.children[0].local
        assert (ours.peers, theirs.peers) == ((), ("192.0.2.1",))


@pytest.mark.parametrize(
    ("clients", "subnets", "fault"),
    [
        (["alice"], ["10.1.0.0/16"], "a mapping, by name"),
        ({"../alice": {"address": "10.99.0.1"}}, ["10.1.0.0/16"], "cannot be a client's name"),
        ({"alice": None}, ["10.1.0.0/16"], "is no client"),
        ({"alice": {"adress": "10.99.0.1"}}, ["10.1.0.0/16"], "unknown key adress"),
        ({"alice": {}}, ["10.1.0.0/16"], "`address` is its inner address"),
        ({"alice": {"address": "10.99.0.0/24"}}, ["10.1.0.0/16"], "10.99.0.0/24"),
        ({"alice": {"address": "10.1.0.9"}}, ["10.1.0.0/16"], "in what it is to reach"),
        ({**CLIENTS, "carol": {"address": "10.99.0.1"}}, ["10.1.0.0/16"], "carol and alice"),
        (CLIENTS, "10.1.0.0/16", "is a list"),
        (CLIENTS, ["10.1.0.0/33"], "10.1.0.0/33"),
    ],
)
def test_clients_that_cannot_be_are_refused(clients: Any, subnets: Any, fault: str) -> None:
    with pytest.raises(AnsibleFilterError, match=re.escape(fault)):
        REMOTE["remote_access"](clients, "192.0.2.1", subnets, "gw")


def test_the_collection_renders_as_xfrmpy_does() -> None:
    assert SHARED.read_text() == shared_text()


if __name__ == "__main__":
    SHARED.write_text(shared_text())
