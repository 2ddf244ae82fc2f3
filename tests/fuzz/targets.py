"""The targets by name: what runs an input, what inputs to begin with, and how they are changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.certificates import decode_pki, pki_seeds
from tests.fuzz.decoders import decode_control, decode_policy, decode_wire
from tests.fuzz.eap import eap_seeds, play_eap
from tests.fuzz.endpoint import play
from tests.fuzz.findings import limited_cpu
from tests.fuzz.seeds import control_seeds, decoder_seeds, endpoint_seeds, policy_seeds

CORPUS = Path(__file__).parent / "corpus"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """`run` raises for a finding; `seeds` are made from valid values; `max_size` is in octets."""

    name: str
    run: Callable[[bytes], object]
    seeds: Callable[[], dict[str, bytes]]
    max_size: int
    is_script: bool = False

    def execute(self, data: bytes) -> None:
        """Run one input; whatever leaves this is a finding."""
        with limited_cpu():
            self.run(data)

    @property
    def kept(self) -> Path:
        return CORPUS / f"{self.name}.hex"

    def inputs(self) -> Iterator[tuple[str, bytes]]:
        """The seeds, and what fuzzing has found worth keeping: one input a line, in hex."""
        yield from self.seeds().items()
        lines = self.kept.read_text().split() if self.kept.exists() else []
        yield from ((f"kept-{number}", bytes.fromhex(line)) for number, line in enumerate(lines, 1))


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(name="wire", run=decode_wire, seeds=decoder_seeds, max_size=2048),
        Target(name="endpoint", run=play, seeds=endpoint_seeds, max_size=4096, is_script=True),
        Target(name="policy", run=decode_policy, seeds=policy_seeds, max_size=1024),
        Target(name="pki", run=decode_pki, seeds=pki_seeds, max_size=4096),
        Target(name="eap", run=play_eap, seeds=eap_seeds, max_size=1024),
        Target(name="control", run=decode_control, seeds=control_seeds, max_size=2048),
    )
}
