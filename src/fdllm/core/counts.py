"""What a row cost: forwards and layer calls, by phase. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields

from fdllm.core.cost import Cost
from fdllm.core.reuse import LayerPlan
from fdllm.core.schedule import Phase


@dataclass
class PhaseCount:
    """One phase's share.

    Attributes:
        forwards: forward passes this row took part in.
        computed: layer calls made, in whole or in part.
        reused: layer calls saved; ``computed + reused`` is forwards times layers.
        trimmed: layer calls saved inside those made in part, in shares of a call: one that
            computes 2 of its 8 columns counts 0.75; one that leaves out the feed-forward alone
            counts its share of the layer's weights.
        tokens: columns fed to the network.
        shared: columns that were not fed, because another request had computed the same ones.
        flops: as :class:`~fdllm.core.cost.Cost` has them, and so the others.
        weight_bytes: of weights.
        kv_bytes: of keys and values.
        stored_bytes: of stored layer outputs.
        drafting: of the forwards, those that only drafted a state.
        drafted: of the forwards, those of a drafted state, in one with the state at hand: they read
            no weights of their own.
    """

    forwards: int = 0
    computed: int = 0
    reused: int = 0
    trimmed: float = 0.0
    tokens: int = 0
    shared: int = 0
    flops: int = 0
    weight_bytes: int = 0
    kv_bytes: int = 0
    stored_bytes: int = 0
    drafting: int = 0
    drafted: int = 0

    def __add__(self, other: PhaseCount) -> PhaseCount:
        return PhaseCount(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __repr__(self) -> str:
        told = ", ".join(f"{name}={value:.6g}" for name, value in asdict(self).items() if value)
        return f"PhaseCount({told})"


def _zero() -> dict[Phase, PhaseCount]:
    return {phase: PhaseCount() for phase in Phase}


@dataclass
class Counts:
    """Forwards and layer calls of one row, or of many added up."""

    by_phase: dict[Phase, PhaseCount] = field(default_factory=_zero)

    def add(
        self,
        phase: Phase,
        plan: LayerPlan,
        num_tokens: int,
        cost: Cost,
        *,
        feed_forward: float = 1.0,
        drafting: bool = False,
        drafted: bool = False,
    ) -> None:
        """Count one forward; ``feed_forward`` is its share of a layer's weights."""
        count = self.by_phase[phase]
        count.drafting += drafting
        count.drafted += drafted
        count.forwards += 1
        count.computed += plan.num_computed
        count.reused += plan.num_reused
        count.trimmed += plan.trimmed(num_tokens, feed_forward)
        count.tokens += num_tokens
        count.flops += cost.flops
        count.weight_bytes += cost.weight_bytes
        count.kv_bytes += cost.kv_bytes
        count.stored_bytes += cost.stored_bytes

    def share(self, phase: Phase, num_tokens: int) -> None:
        """Count columns that sharing saved."""
        self.by_phase[phase].shared += num_tokens

    def __getitem__(self, phase: Phase | str) -> PhaseCount:
        return self.by_phase[phase if isinstance(phase, Phase) else Phase(phase.lower())]

    def __add__(self, other: Counts) -> Counts:
        return Counts({phase: self[phase] + other[phase] for phase in Phase})

    def __repr__(self) -> str:
        told = [f"{p.value}={self[p]}" for p in Phase if self[p] != PhaseCount()]
        return f"Counts({', '.join(told)})".replace("PhaseCount", "")

    @property
    def forwards(self) -> int:
        """Forwards of all phases."""
        return sum(count.forwards for count in self.by_phase.values())

    @property
    def computed(self) -> int:
        """Layer calls made, all phases."""
        return sum(count.computed for count in self.by_phase.values())

    @property
    def reused(self) -> int:
        """Layer calls saved, all phases."""
        return sum(count.reused for count in self.by_phase.values())

    @property
    def trimmed(self) -> float:
        """Layer calls saved inside those made in part, all phases."""
        return sum(count.trimmed for count in self.by_phase.values())

    @property
    def drafted(self) -> int:
        """Drafted states that were computed, all phases."""
        return sum(count.drafted for count in self.by_phase.values())

    @property
    def rounds(self) -> int:
        """Forwards that unmasked something: REFRESH and DENOISE, those of drafts apart."""
        counts = [self.by_phase[phase] for phase in (Phase.REFRESH, Phase.DENOISE)]
        return sum(one.forwards - one.drafting - one.drafted for one in counts)

    @property
    def tokens(self) -> int:
        """Columns fed to the network, all phases."""
        return sum(count.tokens for count in self.by_phase.values())

    @property
    def shared(self) -> int:
        """Columns that sharing saved, all phases."""
        return sum(count.shared for count in self.by_phase.values())

    def as_dict(self) -> dict[str, dict[str, int | float]]:
        """JSON form, keyed by the phase's name in lower case."""
        return {phase.value: asdict(count) for phase, count in self.by_phase.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Mapping[str, int]]) -> Counts:
        """Read what :meth:`as_dict` wrote."""
        return cls({phase: PhaseCount(**data.get(phase.value, {})) for phase in Phase})
