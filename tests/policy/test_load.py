"""Which files count, and that no file, directory or secret can do harm."""

from __future__ import annotations

import base64
import os
import pwd
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.policy.conftest import key_of
from xfrmpy.failures import CATALOGUE
from xfrmpy.policy import custody
from xfrmpy.policy.load import (
    DEFAULT_LAYERS,
    MAX_FILE,
    LoadedPolicy,
    config_path,
    load_files,
    load_policy,
)

Load = Callable[..., LoadedPolicy]
Lines = Callable[[LoadedPolicy], list[str]]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")


def tunnel(remote: str = "10.2.0.0/16", psk: str = "secret:key") -> str:
    return f"{{peer: 192.0.2.1, psk: '{psk}', local: 10.1.0.0/16, remote: {remote}}}\n"


def names(loaded: LoadedPolicy) -> list[str]:
    return [tunnel.name for tunnel in loaded.tunnels]


@pytest.fixture
def layers(tmp_path: Path) -> tuple[Path, ...]:
    """Three layers, lowest first, each with a secret `key` that says whose it is."""
    made = tuple(tmp_path / layer / "conf.d" for layer in ("lib", "etc", "run"))
    for layer in made:
        layer.mkdir(parents=True)
        (layer.parent / "secrets").mkdir()
        secret(layer, "key", f"the key of the layer {layer.parent.name}")
    return made


def secret(layer: Path, name: str, content: str) -> Path:
    path = layer.parent / "secrets" / name
    path.write_text(content)
    path.chmod(0o600)
    return path


def test_a_higher_layer_hides_the_file_of_the_same_name(layers: tuple[Path, ...]) -> None:
    for layer, third in zip(layers, (1, 2, 3), strict=True):
        (layer / "a.yaml").write_text(tunnel(f"10.{third}.9.0/24"))
    (layers[0] / "b.yaml").write_text(tunnel("10.9.0.0/16"))
    loaded = load_policy(layers)
    assert not loaded.errors
    assert [(t.name, str(t.children[0].remote[0])) for t in loaded.tunnels] == [
        ("a", "10.3.9.0/24"),
        ("b", "10.9.0.0/16"),
    ]


def test_an_empty_file_or_a_link_to_the_null_device_takes_a_tunnel_away(
    layers: tuple[Path, ...],
) -> None:
    for name in ("a.yaml", "b.yaml"):
        (layers[0] / name).write_text(tunnel())
    (layers[1] / "a.yaml").write_text("# not here\n")
    (layers[1] / "b.yaml").symlink_to("/dev/null")
    loaded = load_policy(layers)
    assert (names(loaded), loaded.errors) == ([], ())


def test_the_secret_of_the_highest_layer_that_has_it_counts(layers: tuple[Path, ...]) -> None:
    (layers[0] / "a.yaml").write_text(tunnel())
    assert key_of(load_policy(layers).tunnels[0]).octets == b"the key of the layer run"
    (layers[2].parent / "secrets" / "key").unlink()
    assert key_of(load_policy(layers).tunnels[0]).octets == b"the key of the layer etc"


def test_only_visible_yaml_files_are_read_and_yml_is_warned_of(layers: tuple[Path, ...]) -> None:
    for name in (".#a.yaml", "a.yaml~", "README", "a.yml", "a.yaml.rpmsave"):
        (layers[1] / name).write_text("this is nothing")
    loaded = load_policy(layers)
    assert (loaded.tunnels, loaded.errors) == ((), ())
    (warning,) = loaded.warnings
    assert "a.yml is not read" in warning.message


def test_a_tunnel_defined_twice_names_both_places_and_the_first_stays(
    load: Load, lines: Lines
) -> None:
    loaded = load(
        **{
            "a.yaml": tunnel(),
            "b.yaml": f"tunnels:\n  a: {tunnel('10.9.0.0/16')}  z: {tunnel('10.8.0.0/16')}",
        }
    )
    assert lines(loaded) == ["b.yaml:2:3: XF1006: tunnel 'a' is defined already at a.yaml:1:1"]
    assert names(loaded) == ["a"]


def test_a_file_with_an_error_is_left_out_as_a_whole_and_others_load(load: Load) -> None:
    bad = f"tunnels:\n  x: {tunnel('10.9.0.0/16')}  y: {{peer: 192.0.2.1}}\n"
    loaded = load(**{"a.yaml": tunnel(), "b.yaml": bad})
    assert names(loaded) == ["a"]
    assert {error.code for error in loaded.errors} == {"XF1005"}


def test_the_errors_of_all_files_are_found_at_once(load: Load, lines: Lines) -> None:
    loaded = load(
        **{
            "a.yaml": "peer: [",
            "b.yaml": tunnel().replace("psk", "pks"),
            "c.yaml": tunnel("10.2.0.1/16"),
        }
    )
    assert [line.split(":")[0] for line in lines(loaded)] == ["a.yaml", "b.yaml", "c.yaml"]


def test_a_directory_that_is_missing_is_an_empty_layer(tmp_path: Path) -> None:
    loaded = load_policy([tmp_path / "none" / "conf.d"])
    assert loaded == LoadedPolicy(tunnels=(), errors=(), warnings=())


def test_a_layer_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "conf.d").write_text("")
    (error,) = load_policy([tmp_path / "conf.d"]).errors
    assert error.code == "XF1012"
    assert error.message == "the directory cannot be read: Not a directory"


def test_what_is_no_regular_file_is_an_error_and_is_not_opened(layers: tuple[Path, ...]) -> None:
    os.mkfifo(layers[1] / "fifo.yaml")  # opening it would wait for a writer for ever
    (layers[1] / "directory.yaml").mkdir()
    (layers[1] / "loop.yaml").symlink_to("loop.yaml")
    (layers[1] / "nowhere.yaml").symlink_to("/nonexistent")
    (layers[1] / "zero.yaml").symlink_to("/dev/zero")
    errors = load_policy(layers).errors
    assert {Path(error.file).name: (error.code, error.message) for error in errors} == {
        "directory.yaml": ("XF1012", "the file cannot be read: it is not a regular file"),
        "fifo.yaml": ("XF1012", "the file cannot be read: it is not a regular file"),
        "loop.yaml": ("XF1012", "the file cannot be read: Too many levels of symbolic links"),
        "nowhere.yaml": ("XF1012", "the file cannot be read: No such file or directory"),
        "zero.yaml": ("XF1012", "the file cannot be read: it is not a regular file"),
    }


def test_a_file_that_is_too_long_is_not_parsed(load: Load, lines: Lines) -> None:
    loaded = load(**{"a.yaml": b"#" * (MAX_FILE + 1)})
    assert lines(loaded) == [
        f"a.yaml:1:1: XF1012: the file cannot be read: it is longer than {MAX_FILE} octets"
    ]


@pytest.mark.parametrize(
    "bomb",
    [
        "a: &a [x]\n" + "".join(f"a{n}: &b{n} [*a, *a, *a, *a]\n" for n in range(20)),
        "[" * 100_000,
        "{a: " * 100_000,
        "- " * 100_000,
        "? " * 100_000,
        "a" * 1_000_000,
        "&a " * 100_000,
    ],
    ids=["laughs", "lists", "maps", "items", "keys", "word", "anchors"],
)
def test_a_bomb_is_an_error(load: Load, bomb: str) -> None:
    loaded = load(**{"a.yaml": bomb})
    assert loaded.errors
    assert loaded.tunnels == ()


def test_of_countless_errors_the_first_hundred_are_kept(load: Load) -> None:
    text = "".join(f"key{n}: 1\n" for n in range(3_000))
    loaded = load(**{"a.yaml": text, "b.yaml": "".join("x: 1\n" for n in range(3_000))})
    assert len(loaded.errors) == 200


def test_odd_file_names_are_shown_on_one_printable_line(layers: tuple[Path, ...]) -> None:
    for name in (b"\x1b[31m\n.yaml", b"\xff.yaml"):
        Path(os.fsdecode(os.fsencode(layers[1]) + b"/" + name)).write_text(tunnel())
    shown = [Path(error.file).name for error in load_policy(layers).errors]
    assert shown == ["\\x1b[31m\\n.yaml", "\\xff.yaml"]


def test_load_files_takes_files_of_any_ending_and_directories(layers: tuple[Path, ...]) -> None:
    (layers[1] / "a.yaml").write_text(tunnel())
    other = layers[2] / "b.draft"
    other.write_text(tunnel("10.9.0.0/16"))
    loaded = load_files([other, layers[1], layers[1] / "a.yaml"], secrets=[layers[0].parent])
    assert [error.code for error in loaded.errors] == ["XF1008", "XF1008"]
    loaded = load_files([other, layers[1]], secrets=[layers[0].parent / "secrets"])
    assert (names(loaded), loaded.errors) == (["a", "b"], ())


def test_load_files_names_what_is_not_there(tmp_path: Path) -> None:
    loaded = load_files([tmp_path / "none.yaml", Path("a\0b")], secrets=[])
    assert [error.message for error in loaded.errors] == [
        "the file cannot be read: No such file or directory",
        "the file cannot be read: embedded null byte",
    ]


def test_the_environment_names_the_layers() -> None:
    assert config_path({}) == DEFAULT_LAYERS
    assert config_path({"XFRMPY_CONFIG_PATH": ""}) == DEFAULT_LAYERS
    assert config_path({"XFRMPY_CONFIG_PATH": "/a:/b::"}) == (Path("/a"), Path("/b"))


KEY = bytes(range(32))


@pytest.mark.parametrize(
    ("content", "octets"),
    [
        (b"correct horse battery staple\n", b"correct horse battery staple"),
        (b"correct horse battery staple\r\n", b"correct horse battery staple"),
        (b"correct horse battery staple\n\n", b"correct horse battery staple\n"),
        (b" correct horse battery staple ", b" correct horse battery staple "),
        (b"0x" + KEY.hex().encode() + b"\n", KEY),
        (b"0x" + KEY.hex().upper().encode(), KEY),
        (b"0s" + base64.b64encode(KEY) + b"\n", KEY),
        (KEY, KEY),
    ],
)
def test_a_secret_is_read_as_it_is_meant(load: Load, content: bytes, octets: bytes) -> None:
    loaded = load(**{"a.yaml": tunnel(), "../secrets/key": content})
    assert loaded.errors == loaded.warnings == ()
    assert key_of(loaded.tunnels[0]).octets == octets


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is empty"),
        (b"\n", "it is empty"),
        (b"0x\n", "it is empty"),
        (b"0xabc\n", "it begins as hex but goes on otherwise"),
        (b"0xhunter2!\n", "it begins as hex but goes on otherwise"),
        (b"0shunter2!\n", "it begins as base64 but goes on otherwise"),
        (b"x" * 5000, "it is longer than 4096 octets"),
    ],
)
def test_a_secret_that_means_nothing_is_an_error(
    load: Load, lines: Lines, content: bytes, why: str
) -> None:
    loaded = load(**{"a.yaml": tunnel(), "../secrets/key": content})
    assert lines(loaded) == [f"a.yaml:1:24: XF1008: the secret secrets/key cannot be read: {why}"]


def test_a_short_secret_is_a_warning(load: Load) -> None:
    loaded = load(**{"a.yaml": tunnel(), "../secrets/key": "hunter2hunter22\n"})
    assert names(loaded) == ["a"]
    (warning,) = loaded.warnings
    assert (warning.code, warning.line, warning.column) == ("XF1015", 1, 24)
    assert warning.code in CATALOGUE
    assert "hunter" not in str(warning)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o601])
def test_a_secret_with_rights_for_others_is_refused(layers: tuple[Path, ...], mode: int) -> None:
    (layers[2] / "a.yaml").write_text(tunnel())
    secret(layers[2], "key", "x" * 32).chmod(mode)
    (error,) = load_policy(layers).errors
    assert error.code == "XF1009"
    assert error.hint.startswith("chmod 600 ")


@needs_root
def test_a_secret_of_another_user_is_refused(layers: tuple[Path, ...]) -> None:
    (layers[2] / "a.yaml").write_text(tunnel())
    os.chown(secret(layers[2], "key", "x" * 32), 12345, 12345)
    (error,) = load_policy(layers).errors
    assert (error.code, "uid 12345" in error.message) == ("XF1009", True)


@needs_root
def test_a_secret_may_belong_to_the_daemons_own_user(
    layers: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """He is found by his name; others read his files no more than root's."""
    nobody = pwd.getpwnam("nobody")
    monkeypatch.setattr(custody, "DAEMON_USER", nobody.pw_name)
    (layers[2] / "a.yaml").write_text(tunnel())
    path = secret(layers[2], "key", "x" * 32)
    os.chown(path, nobody.pw_uid, nobody.pw_gid)
    path.chmod(0o400)
    assert load_policy(layers).errors == ()
    path.chmod(0o440)
    assert [error.code for error in load_policy(layers).errors] == ["XF1009"]
    os.chown(path, 12345, 12345)
    (error,) = load_policy(layers).errors
    assert error.hint == f"chown nobody {path}"


def test_a_secret_that_is_no_regular_file_is_refused(layers: tuple[Path, ...]) -> None:
    (layers[2] / "a.yaml").write_text(tunnel(psk="secret:fifo"))
    os.mkfifo(layers[2].parent / "secrets" / "fifo")
    (error,) = load_policy(layers).errors
    assert error.code == "XF1008"
    assert error.message.endswith("it is not a regular file")


def test_a_secret_by_its_path_is_read(layers: tuple[Path, ...]) -> None:
    path = secret(layers[0], "elsewhere", "x" * 32)
    (layers[2] / "a.yaml").write_text(tunnel(psk=f"file:{path}"))
    loaded = load_policy(layers)
    assert loaded.errors == ()
    assert key_of(loaded.tunnels[0]).origin == str(path)


UNPRIVILEGED = """
import os, sys
from pathlib import Path
from xfrmpy.policy.load import load_policy
os.setgid(65534); os.setuid(65534)
for error in load_policy([Path(sys.argv[1])]).errors:
    print(error.code, error.message)
"""


@needs_root
def test_an_unprivileged_user_is_told_that_the_secret_cannot_be_read() -> None:
    with tempfile.TemporaryDirectory() as name:  # where others may go, unlike tmp_path
        root = Path(name)
        root.chmod(0o755)
        (root / "conf.d").mkdir()
        (root / "secrets").mkdir(mode=0o700)
        (root / "conf.d" / "a.yaml").write_text(tunnel())
        (root / "secrets" / "key").write_text("x" * 32)
        command = [sys.executable, "-c", UNPRIVILEGED, str(root / "conf.d")]
        shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (
        shown.stdout == f"XF1008 the secret {root}/secrets/key cannot be read: Permission denied\n"
    )


def test_no_secret_is_in_anything_that_can_be_shown(load: Load) -> None:
    loaded = load(**{"a.yaml": tunnel(), "../secrets/key": "correct horse battery staple"})
    assert len(loaded.tunnels) == 1
    assert "correct" not in repr(loaded)
    assert b"correct".hex() not in repr(loaded)


def test_an_inline_secret_is_in_no_error(load: Load) -> None:
    forms = ["hunter2", "{hunter2: hunter2}", "[hunter2]", "!hunter2 x", "!hunter2!x y", "*hunter2"]
    forms += ["&hunter2 x", "secret:hunter2!", "file:hunter2", "'hunter2", "hunter2: hunter2"]
    files = {f"{n}.yaml": f"peer: a.example\npsk: {form}\n" for n, form in enumerate(forms)}
    loaded = load(**files)
    assert {Path(error.file).name for error in loaded.errors} == files.keys()
    assert not [str(error) for error in loaded.errors if "hunter2" in str(error)]


def test_the_model_alone_needs_neither_pydantic_nor_yaml() -> None:
    code = "import sys, xfrmpy.policy.model; print({'pydantic', 'yaml'} & sys.modules.keys())"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "set()\n"
