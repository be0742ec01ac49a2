"""One image in one network, attacked: everything that can be seen inside."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from fsr import experiments, runs, store
from fsr.attacks import attack_named
from fsr.config import Run, run_id
from fsr.data import as_float, part_of_test
from fsr.errors import UsageError
from fsr.modes import eval_mode
from fsr.plots import words

ATTACKS = ("clean", "fgsm", "pgd20", "pgd100", "cw")  # quick enough to wait for
MAPS = {
    "f": "inputs",
    "robust": "robust",
    "nonrobust": "nonrobust",
    "recalibrated": "recalibrated",
    "output": "features",
}


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
        return f"{words.method(run.label)}, {words.backbone(run)}{place}, seed {run.seed}, {self.checkpoint}{setting}"


@dataclass(frozen=True)
class Choices:
    """Everything that can be chosen for one profile."""

    profile: str
    networks: tuple[Choice, ...]

    @property
    def frame(self) -> pd.DataFrame:
        """A row per network, with its run id."""
        rows = [
            [words.method(c.run.label), words.backbone(c.run), c.run.seed, c.checkpoint, run_id(c.run)]
            for c in self.networks
        ]
        return pd.DataFrame(rows, columns=["method", "network", "seed", "weights", "run"])

    def default(self, label: str) -> Choice:
        """Seed 0 with this label, EMA weights when they are here, else whatever checkpoint is."""
        wanted = experiments.named(self.profile).get(label)
        mine = [c for c in self.networks if c.run == wanted]
        if not mine:
            raise UsageError(
                f"the weights of {label!r} are not here; `python -m fsr train all --profile {self.profile}` makes them"
            )
        return next((c for c in mine if c.checkpoint == "ema"), mine[0])


def choices(profile: str) -> Choices:
    """The profile's networks whose weights are on this machine."""
    experiments.profile_of(profile)
    found = [
        Choice(run, checkpoint)
        for run in experiments.SETS[profile]["all"]
        for checkpoint in experiments.CHECKPOINTS
        if runs.weights_path(run, checkpoint).exists()
    ]
    return Choices(profile, tuple(found))


@dataclass(frozen=True)
class Look:
    """What one image does in one network; pictures (3, H, W) in [0, 1], probabilities (K,), maps (h, w).

    maps and masks are of the attacked image and empty for networks without streams.
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
        return self.class_names[int(probabilities.argmax())]


def _streams(model: nn.Module, x: Tensor) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Maps of mean |feature| over channels per stream, and the mask's mean over channels, of a single image."""
    with torch.no_grad():
        _, streams = model.trace(x)
    first = streams[-1] if streams else None
    maps = {}
    for name, attribute in MAPS.items():
        tensor = getattr(first, attribute, None)
        if tensor is not None:
            maps[name] = tensor[0].float().abs().mean(0).numpy()
    mask = getattr(first, "mask", None)
    return maps, None if mask is None else mask[0].float().flatten().numpy()


def look(choice: Choice, *, attack: str = "pgd20", image: int = 0) -> Look:
    """Attack one test image (its place in the fixed stratified order) on the CPU and keep all there is to see."""
    if attack not in ATTACKS:
        raise UsageError(f"unknown attack {attack!r}; choose one of {', '.join(ATTACKS)}")
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
        maps, mask = _streams(model, x_adv)
    return Look(
        choice=choice, attack=attack, index=int(index), label=int(y), class_names=data.class_names, eps=run.eps,
        clean=x[0].numpy(), attacked=x_adv[0].numpy(), prob_clean=before, prob_attacked=after, maps=maps, mask=mask,
    )  # fmt: skip


def recorded_verdict(seen: Look) -> bool | None:
    """What the recorded evaluation says about this image (still right?), None when it is not recorded."""
    for found in store.metrics([seen.choice.run], seen.choice.checkpoint).itertuples():
        if found.attack == seen.attack and found.attack_id == seen.attack:
            path = store.eval_path(
                seen.choice.run, store.Evaluation(attack=seen.attack, checkpoint=seen.choice.checkpoint)
            )
            outcome = store.read_outcome(path)
            return bool(outcome.correct[outcome.index == seen.index][0])
    return None
