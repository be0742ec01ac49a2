"""Collects the run ids and commits of the records behind numbers."""

from dataclasses import dataclass, field


@dataclass(kw_only=True)
class Sources:
    """Collects the run ids and commits of the records that a table reads.

    float32: run ids with an attack that was crafted in it although the run asks for bf16 (no units for it there);
    weights: digests of the networks behind a run's checkpoint, more than one when it was trained again and differs;
    checkpoint: where only these weights are shown, others' evaluations are passed over.
    """

    checkpoint: str | None = None

    runs: set[str] = field(default_factory=set)
    float32: set[str] = field(default_factory=set)
    commits: set[str] = field(default_factory=set)
    weights: dict[tuple[str, str], set[str]] = field(default_factory=dict)

    def add(self, record: dict) -> None:
        """Note where this record comes from."""
        if self.checkpoint not in (None, record.get("evaluation", {}).get("checkpoint", self.checkpoint)):
            return
        if record.get("run_id"):
            self.runs.add(record["run_id"])
            own = not record.get("evaluation", {}).get("surrogate")  # another network's slopes: float32 everywhere
            if own and record.get("precision") == "bf16" and record.get("crafting", {}).get("dtype") == "float32":
                self.float32.add(record["run_id"])
            if record.get("weights") and record.get("evaluation"):
                place = (record["run_id"], record["evaluation"]["checkpoint"])
                self.weights.setdefault(place, set()).add(record["weights"])
        if record.get("commit"):
            self.commits.add(record["commit"])

    def mixed(self) -> list[str]:
        """Run ids with columns from trainings that ended in different weights."""
        return sorted({name for (name, _), digests in self.weights.items() if len(digests) > 1})
