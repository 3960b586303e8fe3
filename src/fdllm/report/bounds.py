"""What a table's savings are worth: by the oracle's, by the controls', and where they come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fdllm.profiling.record import Profile, read_beside
from fdllm.record import measure
from fdllm.record.paths import Layout
from fdllm.record.summary import InvalidRecordError
from fdllm.report.agreement import agree, tolerance_of
from fdllm.report.alternative import Alternative, Control, at_equal_saving
from fdllm.report.grid import same_computation
from fdllm.report.made import Made, made_by, made_on
from fdllm.report.records import Record, SampleKey
from fdllm.report.times import command


@dataclass(frozen=True)
class Bound:
    """One config's saving."""

    config: str  # the config
    changed: int  # documents that it answers otherwise than the baseline does
    num_documents: int  # that both answered
    made: Made  # what it made by what the baseline made
    # what it saved by what the oracle saved, both of the baseline's layer calls on the profile's
    # documents; None where no oracle was asked, or it was asked about another decoding
    of_oracle: float | None


@dataclass(frozen=True)
class Oracle:
    """What a profile says of skipping with foresight, see :mod:`fdllm.profiling.oracle`."""

    saved: float  # share of the baseline's layer calls
    in_denoise: float  # of the saved ones, the share in DENOISE
    equal_texts: int  # documents whose text stays when its plan is run
    num_documents: int  # of the profile


@dataclass(frozen=True)
class Bounds:
    """A table beside its bounds and controls."""

    rows: tuple[Bound, ...] = ()  # each config but the baseline and its twins
    oracle: Oracle | None = None  # None where no profile says it
    controls: tuple[Alternative, ...] = ()  # that could be compared, for as few layer calls
    notes: tuple[str, ...] = ()  # what could not be, and why
    left_out: tuple[str, ...] = ()  # records of controls that cannot be read


def find_bounds(
    layout: Layout, table: Sequence[Record], baseline: Record | None, controls: Sequence[Control]
) -> Bounds:
    """What stands beside each config's saving: the oracle's, and those of the controls."""
    others = [] if baseline is None else [c for c in table if not same_computation(c, baseline)]
    left_out = tuple(line for control in controls for line in control.left_out)
    if baseline is None or not others:
        return Bounds(left_out=left_out)
    profile, note = _profile(layout, baseline)
    oracle = None if profile is None else _oracle(profile)
    keys = () if profile is None else profile.documents
    notes = [note] if note else []
    if apart := [control.note for control in controls if control.note]:
        notes.append(f"Not held against every control: {'; '.join(apart)}.")
    return Bounds(
        rows=tuple(_bound(cell, baseline, oracle, keys) for cell in others),
        oracle=oracle,
        controls=tuple(
            one for control in controls if (one := at_equal_saving(control, table, baseline)).cells
        ),
        notes=tuple(notes),
        left_out=left_out,
    )


def _oracle(profile: Profile) -> Oracle | None:
    found = profile.oracle
    if found is None:
        return None
    saved = found.layer_calls_saved / found.layer_calls_whole
    return Oracle(saved, found.denoise_share, found.equal_texts, profile.num_documents)


def _bound(
    cell: Record, baseline: Record, oracle: Oracle | None, profiled: Sequence[SampleKey]
) -> Bound:
    shared = [key for key in cell.by_key if key in baseline.by_key]
    tolerance = tolerance_of((cell.summary, baseline.summary))
    same = sum(agree(baseline.by_key[key], cell.by_key[key], tolerance) for key in shared)
    decoding = {one.summary.fingerprint.fields.get("decoding") for one in (cell, baseline)}
    part = None
    # A cell that ended early may lack a document; one that decodes otherwise has another oracle.
    if oracle and oracle.saved and len(decoding) == 1 and {*profiled} <= cell.by_key.keys():
        calls = made_on(cell, baseline, profiled).layer_calls
        part = None if calls is None else (1 - calls) / oracle.saved
    return Bound(cell.name, len(shared) - same, len(shared), made_by(cell, baseline), part)


def _profile(layout: Layout, baseline: Record) -> tuple[Profile | None, str]:
    """The profile whose oracle bounds a table; or a sentence on why there is none."""
    again = command(baseline, "profile")
    if baseline.summary.kind != "generate":
        return None, ""  # the oracle is of texts
    try:
        found = read_beside(layout, baseline.folder.parent.name)
    except InvalidRecordError as error:
        return None, f"No share of the oracle's saving: {error}; {again} takes it anew."
    if found is None or found.oracle is None:
        return None, f"No share of the oracle's saving: {again} finds that."
    odd = found.differs(baseline.summary.fingerprint.fields)
    if odd:
        why = f"the profile is of another {' and '.join(odd)}"
    elif not all(key in baseline.by_key for key in found.documents):
        why = "the profile has documents that these records lack"
    elif _calls(baseline, found) != found.oracle.layer_calls_whole:
        why = f"{baseline.name} made other layer calls on the profile's documents than it did"
    else:
        return found, ""
    return None, f"No share of the oracle's saving: {why}; {again} takes it anew."


def _calls(cell: Record, profile: Profile) -> float:
    """Layer calls that a config made on a profile's documents."""
    rows = [cell.by_key[key] for key in profile.documents]
    return measure.layer_calls(measure.add_counts(rows)).made
