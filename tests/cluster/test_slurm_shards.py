"""A run split over three jobs and put together by a fourth is the run in one piece."""

from __future__ import annotations

from cluster.checkout import Checkout
from cluster.faults import FaultTable

CONFIG = "k2_middle"
THREE = ("--config", CONFIG, "--shards", "3")


def test_three_shards_equal_one_run(checkout: Checkout, undisturbed: Checkout) -> None:
    checkout.sweep(*THREE)
    checkout.slurm.end_of_queue()
    assert checkout.states()[CONFIG] == "done", checkout.logs()
    assert checkout.record(CONFIG) == undisturbed.record(CONFIG)
    shards = checkout.folder(CONFIG).glob("journal.shard-*.jsonl")
    assert len(list(shards)) in {0, 3}
    assert len(checkout.lives(CONFIG)) >= 3, "each shard was computed by itself"


def test_a_lost_shard_is_named_and_only_it_is_computed_again(
    checkout: Checkout, faults: FaultTable
) -> None:
    checkout.hold(4)
    checkout.sweep(*THREE)
    checkout.await_held()
    job = checkout.slurm.running()[0]
    checkout.slurm.ask("scancel", job)
    checkout.release()
    checkout.slurm.end_of_queue()
    cell = checkout.cells()[CONFIG]
    assert cell["state"] == "failed", (cell, checkout.logs())
    assert "shard" in cell["reason"]
    checkout.sweep(*THREE)
    checkout.slurm.end_of_queue()
    assert checkout.states()[CONFIG] == "done", checkout.logs()
    assert checkout.record(CONFIG) == faults.reference.record(CONFIG)
    kept = [key for life in checkout.lives(CONFIG) for key in life]
    assert len(kept) == len(set(kept)) == 10
