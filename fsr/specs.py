"""What can be put into a run's network: FSR with its controls, and its peers."""

from dataclasses import dataclass

from fsr.checks import check_types, not_negative, one_of, positive


@dataclass(frozen=True, kw_only=True)
class FSRSpec:
    """The FSR module and its controls (Kim et al. 2023, after their code).

    at: module paths, () for the backbone's own place; hidden: channels inside S and R, None for the
    width rule; kind: fsr, separation (f+ alone is passed on), residual (S and R as plain residual
    branches, no mask, no auxiliary loss), aux (auxiliary head only, features untouched).
    """

    at: tuple[str, ...] = ()
    tau: float = 0.1
    lambda_sep: float = 1.0
    lambda_rec: float = 1.0
    hidden: int | None = None
    kind: str = "fsr"
    mask: str = "gumbel"  # gumbel: soft with noise in training; soft: no noise; hard: straight-through with noise
    granularity: str = "element"  # element, channel (one value per channel), spatial (one per position)

    def __post_init__(self):
        check_types(self)
        one_of(self, "kind", ("fsr", "separation", "residual", "aux"))
        one_of(self, "mask", ("gumbel", "soft", "hard"))
        one_of(self, "granularity", ("element", "channel", "spatial"))
        positive(self, "tau", "hidden")
        not_negative(self, "lambda_sep", "lambda_rec")

    @property
    def label(self) -> str:
        """How it shows in a run id: fsr, separation, residual, aux."""
        return self.kind


@dataclass(frozen=True, kw_only=True)
class PeerSpec:
    """A deactivation peer: fd (Xie 2019), cas (Bai 2021) or cifs (Yan 2021), with its joint-loss weight."""

    name: str
    at: tuple[str, ...] = ()  # () for the peer's own places: fd every stage; cas, cifs the last stage's two blocks
    weight: float = 2.0  # of the mean probe cross-entropy, in training and crafting; fd has no probe

    def __post_init__(self):
        check_types(self)
        one_of(self, "name", ("fd", "cas", "cifs"))
        not_negative(self, "weight")

    @property
    def label(self) -> str:
        """How it shows in a run id."""
        return self.name
