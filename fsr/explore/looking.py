"""One image in one network, attacked: everything that can be seen inside."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fsr import experiments, runs
from fsr.analyse.look import Job, see
from fsr.attacks import attack_named
from fsr.config import Analysis, Run, run_id
from fsr.data import Data, as_float, part_of_test
from fsr.errors import UsageError
from fsr.models import Classifier
from fsr.modes import eval_mode
from fsr.plots import words

ATTACKS = ("clean", "fgsm", "pgd20", "pgd100", "cw")  # quick enough to wait for


@dataclass(frozen=True)
class Choice:
    """A network that can be looked at: its weights are here."""

    run: Run
    checkpoint: str

    @property
    def name(self) -> str:
        """As a menu shows it."""
        run = self.run
        place = f", at {'+'.join(run.fsr.at)}" if run.fsr and run.fsr.at else ""
        setting = f" ({run_id(run).rsplit('-', 1)[-1]})"
        return f"{words.method(run.label)}, {words.network(run)}{place}, seed {run.seed}, {self.checkpoint}{setting}"


@dataclass(frozen=True)
class Choices:
    """Everything that can be chosen for one profile."""

    profile: str
    networks: tuple[Choice, ...]

    @property
    def frame(self) -> pd.DataFrame:
        """A row per network, with the checkpoints whose weights are here."""
        weights: dict[Run, list[str]] = {}
        for choice in self.networks:
            weights.setdefault(choice.run, []).append(choice.checkpoint)
        rows = [
            [words.method(run.label), words.network(run), run.seed, ", ".join(kinds), run_id(run)]
            for run, kinds in weights.items()
        ]
        return pd.DataFrame(rows, columns=["method", "network", "seed", "weights", "run"])

    def default(self, label: str) -> Choice | None:
        """Seed 0 with this label, EMA weights when they are here, else any checkpoint; None when there is none."""
        wanted = experiments.named(self.profile).get(label)
        mine = [c for c in self.networks if c.run == wanted]
        return next((c for c in mine if c.checkpoint == "ema"), mine[0] if mine else None)


def choices(profile: str) -> Choices:
    """The profile's networks whose weights are on this machine."""
    experiments.profile_of(profile)
    found = [
        Choice(run, checkpoint)
        for run in experiments.SETS[profile]["all"]
        for checkpoint in experiments.CHECKPOINTS
        if runs.has_weights(run, checkpoint)
    ]
    return Choices(profile, tuple(found))


@dataclass(frozen=True)
class Look:
    """What one image does in one network; pictures (3, H, W) in [0, 1], probabilities (K,), maps (h, w).

    maps and the mask's values are of the attacked image; a network without FSR has the map of f alone, and no mask.
    """

    choice: Choice
    attack: str
    index: int
    label: int
    class_names: tuple[str, ...]
    eps: float
    clean: np.ndarray
    attacked: np.ndarray
    prob_clean: np.ndarray
    prob_attacked: np.ndarray
    maps: dict[str, np.ndarray] = field(default_factory=dict)
    mask: np.ndarray | None = None

    @property
    def perturbation(self) -> np.ndarray:
        """What the attack added, (3, H, W) in [-eps, eps]."""
        return self.attacked - self.clean

    def answer(self, probabilities: np.ndarray) -> str:
        """The name of the most probable class."""
        return self.class_names[int(np.argmax(probabilities))]


def _inside(model: Classifier, run: Run, data: Data, x: Tensor) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Maps of mean |feature| over channels per stream, and the mask's values, of a single image (1, 3, H, W)."""
    seen = see(Job(model, run, Analysis(kind="maps"), data, torch.device("cpu"), batch=1), x)
    maps = {name: f[0].float().abs().mean(0).numpy() for name, f in seen.maps.items()}
    return maps, seen.mask[0].float().flatten().numpy() if seen.mask.numel() else None


def look(choice: Choice | None, *, attack: str = "pgd20", image: int = 0) -> Look | None:
    """Attack one test image (its place in the fixed stratified order) on the CPU and keep all there is to see.

    None without a network to look at: its weights are not on this machine.
    """
    if attack not in ATTACKS:
        raise UsageError(f"unknown attack {attack!r}; choose one of {', '.join(ATTACKS)}")
    if choice is None:
        return None
    run, data = choice.run, runs.data_of(choice.run)
    if not 0 <= image < len(data.test_y):
        raise UsageError(f"image must lie in 0..{len(data.test_y) - 1}, not {image}")
    x, y, index = (part[image : image + 1] for part in part_of_test(data, len(data.test_y)))
    model = runs.load_model(run, choice.checkpoint, runs.Options(device="cpu"))
    x = as_float(x)
    with eval_mode(model):
        x_adv = attack_named(attack)(model, x, y, eps=run.eps, seed=0, indices=index).detach().float().clamp(0, 1)
        with torch.no_grad():
            before, after = (model(batch).softmax(1)[0].numpy() for batch in (x, x_adv))
        maps, mask = _inside(model, run, data, x_adv)
    return Look(
        choice=choice, attack=attack, index=int(index), label=int(y), class_names=data.class_names, eps=run.eps,
        clean=x[0].numpy(), attacked=x_adv[0].numpy(), prob_clean=before, prob_attacked=after, maps=maps, mask=mask,
    )  # fmt: skip
