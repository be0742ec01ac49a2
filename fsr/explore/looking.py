"""One image in one network, attacked: everything that can be seen inside."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fsr import experiments, runs
from fsr.analyse.inspection import Inspection, last_place, see
from fsr.attacks import attack_named
from fsr.config import Analysis, Run, run_id
from fsr.data import Data, as_float, part_of_test
from fsr.explore.records import variant
from fsr.files import UsageError
from fsr.models import Classifier
from fsr.models.modes import eval_mode
from fsr.tables import labels as words

ATTACKS = ("clean", "fgsm", "pgd20", "pgd100", "cw")  # quick enough to wait for


@dataclass(frozen=True)
class Choice:
    """A network that can be looked at: its weights are here."""

    run: Run
    checkpoint: str
    place: str | None = None  # where to look into a network without a module: where its twins have FSR

    @property
    def name(self) -> str:
        """As a menu shows it: method, network, what differs from the method's default, seed, weights."""
        run, differs = self.run, variant(self.run)
        where = f"{words.network(run)}, {words.dataset(run.dataset)}"
        parts = [words.method(run.label), where, *([differs] if differs else [])]
        return ", ".join([*parts, f"seed {run.seed}", f"{self.checkpoint} ({run_id(run).rsplit('-', 1)[-1]})"])


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
            [
                words.method(run.label),
                words.network(run),
                words.dataset(run.dataset),
                variant(run),
                run.seed,
                ", ".join(kinds),
                run_id(run),
            ]
            for run, kinds in weights.items()
        ]
        return pd.DataFrame(rows, columns=["method", "network", "data", "variant", "seed", "weights", "run"])

    def default(self, label: str) -> Choice | None:
        """Seed 0 with this label, EMA weights when they are here, else any checkpoint; None when there is none.

        UsageError for a label that the profile does not have.
        """
        named = experiments.named(self.profile)
        if label not in named:
            raise UsageError(f"no network {label!r} in {self.profile}; choose one of {', '.join(named)}, or `by_id`")
        return self._of(named[label])

    def by_id(self, name: str) -> Choice | None:
        """The run of this id (the hash at its end will do), EMA weights when they are here; None without its weights.

        UsageError for an id that the profile does not have.
        """
        found = [run for run in experiments.SETS[self.profile]["all"] if run_id(run).endswith(name)]
        if len(found) != 1:
            raise UsageError(f"{name!r} ends {len(found)} run ids of {self.profile}; `python -m fsr status` lists them")
        return self._of(found[0])

    def _of(self, run: Run) -> Choice | None:
        mine = [c for c in self.networks if c.run == run]
        return next((c for c in mine if c.checkpoint == "ema"), mine[0] if mine else None)


def choices(profile: str) -> Choices:
    """The profile's networks whose weights are on this machine."""
    known = experiments.profile_of(profile)
    places = {(run.dataset, run.backbone): place for run, place in ((known.base, known.place), *known.others)}
    found = [
        Choice(run, checkpoint, next(reversed(places.get((run.dataset, run.backbone), ())), None))
        for run in experiments.SETS[profile]["all"]
        for checkpoint in experiments.CHECKPOINTS
        if runs.has_weights(run, checkpoint)
    ]
    return Choices(profile, tuple(found))


@dataclass(frozen=True)
class Look:
    """What one image does in one network; pictures (3, H, W) in [0, 1], probabilities (K,), maps (h, w).

    maps, heads and the mask's values are of the attacked image, at `place` (of several modules the last); a network
    without FSR has the map of f alone, and no mask. heads: the class that the auxiliary head sees in each stream.
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
    place: str
    maps: dict[str, np.ndarray] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)
    mask: np.ndarray | None = None

    @property
    def perturbation(self) -> np.ndarray:
        """What the attack added, (3, H, W) in [-eps, eps]."""
        return self.attacked - self.clean

    def answer(self, probabilities: np.ndarray) -> str:
        """The name of the most probable class."""
        return self.class_names[int(np.argmax(probabilities))]


def _inside(model: Classifier, choice: Choice, data: Data, x: Tensor) -> dict:
    """Of a single image (1, 3, H, W): maps of mean |feature| per stream, what the heads say, the mask's values."""
    place = choice.place
    job = Inspection(model, choice.run, Analysis(kind="maps"), data, torch.device("cpu"), batch=1, place=place)
    seen = see(job, x)
    maps = {name: f[0].float().abs().mean(0).numpy() for name, f in seen.maps.items()}
    with torch.no_grad():
        streams = model.trace(x)[1] if model.inserted() and choice.run.fsr else []
    heads = {name: data.class_names[int(z.argmax(1))] for s in streams[-1:] for name, z in s.aux.items()}
    mask = seen.mask[0].float().flatten().numpy() if seen.mask.numel() else None
    return {"place": last_place(job)[0], "maps": maps, "heads": heads, "mask": mask}


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
        inside = _inside(model, choice, data, x_adv)
    return Look(
        choice=choice, attack=attack, index=int(index), label=int(y), class_names=data.class_names, eps=run.eps,
        clean=x[0].numpy(), attacked=x_adv[0].numpy(), prob_clean=before, prob_attacked=after, **inside,
    )  # fmt: skip
