"""What a step number means: its seeds, its learning rate, its weight in the running average."""

import hashlib
import math

from fsr.config import Run


def stream_seed(*parts) -> int:
    """A 63-bit seed that is a function of its parts: every random number of a run comes from (seed, purpose, step).

    So nothing needs to be remembered for a resumed run to continue bit for bit.
    """
    text = "/".join(str(p) for p in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def learning_rate(run: Run, epoch: int) -> float:
    """x0.1 from epoch ceil(0.75 E) and x0.01 from ceil(0.9 E), epochs counted from 1 (authors' code: 75, 90 of 100)."""
    if epoch >= math.ceil(0.9 * run.epochs):
        return run.lr * 0.01
    return run.lr * 0.1 if epoch >= math.ceil(0.75 * run.epochs) else run.lr


def ema_decay(run: Run, step: int) -> float:
    """min(decay, (1 + t) / (10 + t)) at step t, counted from 0."""
    return min(run.ema_decay, (1 + step) / (10 + step))
