"""Does the prefix cache keep its bound? ``python benchmarks/prefix_memory.py``.

2,000 requests of mixed length, up to 4,096 tokens, behind 120 texts that they share, on a small
random model: once through a pool of 0.25 GiB, once through one that never evicts, each in a process
of its own so that its peak memory is its own. The scores must agree.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import time

TEXTS, LONGEST = 120, 4096


def requests(number: int) -> list[tuple[list[int], list[int]]]:
    """Prefix and target of each request, shuffled: the engine finds what is shared."""
    draw = random.Random(0)
    texts = [
        [draw.randrange(3, 150) for _ in range(draw.randrange(200, 3900))] for _ in range(TEXTS)
    ]
    pairs = []
    for _ in range(number):
        text = draw.choice(texts)
        question = [
            draw.randrange(3, 150) for _ in range(draw.randrange(1, LONGEST - 8 - len(text)))
        ]
        pairs.append((text + question[:150], [draw.randrange(3, 150) for _ in range(2)]))
    return pairs


def child(number: int, gib: float) -> None:
    """Score and print what it took, as JSON."""
    import torch  # noqa: PLC0415

    import fdllm  # noqa: PLC0415
    from fdllm.core.model_spec import ModelSpec  # noqa: PLC0415
    from fdllm.core.network import Network  # noqa: PLC0415
    from fdllm.core.scorer import score_requests  # noqa: PLC0415

    spec = ModelSpec(
        160, 128, 4, 4, 2, 256, max_positions=LONGEST + 64, mask_id=159, stop_tokens=(2,)
    )
    torch.manual_seed(0)
    network = Network(spec).eval().requires_grad_(requires_grad=False)
    model = fdllm.Model(network, spec, None, "small", torch.device("cpu"), torch.float32)
    pairs = requests(number)
    empty = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    scores = score_requests(
        model, pairs, fdllm.Decoding(), scoring="first-token", batch_size=8, prefix_cache_gib=gib
    )
    result = {
        "seconds": time.perf_counter() - began,
        "mib_above_start": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - empty) / 1024,
        "fed": sum(s.counts.tokens for s in scores),
        "shared": sum(s.counts.shared for s in scores),
        "scores": [s.loglikelihood for s in scores],
    }
    sys.stdout.write(json.dumps(result))


def main() -> None:
    """Run both children and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--child", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        child(given.requests, given.child)
        return
    found = {}
    for gib in (0.25, 16.0):
        command = [sys.executable, __file__, "--requests", str(given.requests), "--child", str(gib)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[gib] = json.loads(done.stdout)
        sys.stdout.write(
            "pool {gib:5.2f} GiB: {seconds:6.1f} s, peak {mib_above_start:6.0f} MiB above the "
            "start, {fed:,} tokens fed, {shared:,} shared\n".format(gib=gib, **found[gib])
        )
    off = max(abs(a - b) for a, b in zip(found[0.25]["scores"], found[16.0]["scores"], strict=True))
    sys.stdout.write(f"largest difference of a score: {off:.1e}\n")


if __name__ == "__main__":
    main()
