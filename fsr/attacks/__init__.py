"""Every attack by the name that tables, records and the command line use.

`ATTACKS["pgd20"](model, x, y, eps=8 / 255, indices=index)` gives x_adv like x. The caller chooses the model's mode,
its precision and the device, and judges the result. Evaluation steps are 0.1 * eps everywhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from fsr.attacks import gradient, transfer
from fsr.attacks.auto import autoattack, single, square
from fsr.attacks.losses import cross_entropy, margin
from fsr.attacks.query import nattack
from fsr.files import UsageError


@dataclass(frozen=True, kw_only=True)
class AttackInfo:
    """One attack: what it does and what it may be given.

    function: (model, x, y, *, eps, seed, indices, **options) -> x_adv like x.
    survivors_ok: its definition counts a sample that clean images or an earlier attack already broke as broken, so it
    may get survivors only. needs, takes: options that must, may be given (surrogate: a net; steps, queries: int).
    images: how many test images it runs on by default, None for all. per_sample: a sample's outcome does not
    depend on its batch; else only a fixed order and batch size repeat it.
    """

    function: Callable[..., Tensor]
    description: str
    survivors_ok: bool = False
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    images: int | None = None
    per_sample: bool = True

    def __call__(self, model, x: Tensor, y: Tensor, *, eps: float, seed: int = 0, indices=None, **options) -> Tensor:
        """x_adv like x: x (N, C, H, W) in [0, 1], y (N,) int64, indices (N,) places in the data set, 0..N-1 if None.

        Options that are None are left out; a missing or unknown one raises UsageError.
        """
        given = {name: value for name, value in options.items() if value is not None}
        for name in self.needs:
            if name not in given:
                raise UsageError(f"this attack needs {name}=: {self.description}")
        for name in given:
            if name not in self.needs + self.takes:
                raise UsageError(f"this attack takes no {name}=: {self.description}")
        indices = range(len(x)) if indices is None else [int(i) for i in indices]
        return self.function(model, x, y, eps=eps, seed=seed, indices=indices, **given)


def _clean(model, x, y, *, eps, seed, indices) -> Tensor:
    return x.detach()


def _noise(model, x, y, *, eps, seed, indices) -> Tensor:
    return gradient.random_noise(x, eps=eps, seed=seed, indices=indices)


def _fgsm(model, x, y, *, eps, seed, indices) -> Tensor:
    return gradient.fgsm(model, x, y, eps=eps)


def _pgd(model, x, y, *, eps, seed, indices, steps, loss=cross_entropy) -> Tensor:
    return gradient.pgd(model, x, y, eps=eps, alpha=0.1 * eps, steps=steps, loss=loss, random_start=False)


def _start_of(x, eps, seed, indices, stream) -> Tensor:
    return gradient.uniform_start(x, eps=eps, seed=seed, indices=indices, stream=stream)


def _restarts(model, x, y, *, eps, seed, indices, steps=100, restarts=10, alphas=(0.25, 0.1, 0.025)) -> Tensor:
    """PGD from `restarts` uniform starts, its step going round `alphas` * eps; the worst image of each sample."""

    def attempt(restart: int):
        start, alpha = _start_of(x, eps, seed, indices, restart), alphas[restart % len(alphas)] * eps
        return lambda rows: gradient.pgd(model, x[rows], y[rows], eps=eps, alpha=alpha, steps=steps, start=start[rows])

    return gradient.strongest(model, x, y, (attempt(restart) for restart in range(restarts)))


def _multi_targeted(model, x, y, *, eps, seed, indices, steps=50) -> Tensor:
    start = partial(_start_of, x, eps, seed, indices)
    return gradient.multi_targeted(model, x, y, eps=eps, alpha=0.1 * eps, steps=steps, start=start)


def joint_loss(traced, y: Tensor, weight: float = 2.0) -> Tensor:
    """CE of the final logits + weight * mean CE of the modules' auxiliary logits, (N,) (Bai 2021, Yan 2021).

    traced: what `Classifier.trace` returns, (logits (N, K), streams with `.aux`). UsageError without auxiliary logits.
    """
    logits, streams = traced
    heads = [head for stream in streams for head in stream.aux.values()]
    if not heads:
        raise UsageError("pgd20-joint needs a model whose modules have auxiliary classifiers: cas, cifs or fsr")
    probes = sum(cross_entropy(head.to(logits.dtype), y) for head in heads) / len(heads)
    return cross_entropy(logits, y) + weight * probes


def _joint(model, x, y, *, eps, seed, indices, steps=20) -> Tensor:
    if not hasattr(model, "trace"):
        raise UsageError("pgd20-joint needs a model with `trace`, from fsr.models.build_model")
    return _pgd(model.trace, x, y, eps=eps, seed=seed, indices=indices, steps=steps, loss=joint_loss)


def _from_surrogate(model, x, y, *, eps, seed, indices, craft, surrogate=None, steps=20) -> Tensor:
    """Craft on the surrogate; where an attack may do without, on the model itself."""
    return craft(model if surrogate is None else surrogate, x, y, eps=eps, alpha=0.1 * eps, steps=steps)


def _di(model, x, y, *, seed, **options) -> Tensor:
    return _from_surrogate(model, x, y, seed=seed, craft=partial(transfer.di_fgsm, seed=seed), **options)


def _nattack(model, x, y, *, eps, seed, indices, queries=20_000) -> Tensor:
    return nattack(model, x, y, eps=eps, queries=queries, seed=seed, indices=indices)


def _square(model, x, y, *, eps, seed, indices, queries=5000) -> Tensor:
    return square(model, x, y, eps=eps, queries=queries, seed=seed)


def _apgd(model, x, y, *, eps, seed, indices, name) -> Tensor:
    return single(name, model, x, y, eps=eps, seed=seed)


def _autoattack(model, x, y, *, eps, seed, indices, version="standard", steps=None, queries=None) -> Tensor:
    found = autoattack(model, x, y, eps=eps, version=version, seed=seed, batch=len(x), steps=steps, queries=queries)
    assert found.x_adv is not None  # kept by default
    return found.x_adv.to(x.dtype)


# AutoAttack's variants by name, and the options that make them: attacks of several parts, each of which sees only what
# the parts before left correct
VARIANTS: dict[str, dict] = {
    "autoattack": {},
    "autoattack-rand": {"version": "rand"},
    "autoattack-ci": {"steps": 5, "queries": 50},
}

_of_batch = partial(AttackInfo, survivors_ok=True, per_sample=False)

ATTACKS: dict[str, AttackInfo] = {
    "clean": AttackInfo(function=_clean, description="no attack"),
    "random-noise": AttackInfo(function=_noise, description="control: every pixel moved by eps up or down at random"),
    "fgsm": AttackInfo(function=_fgsm, description="one step of eps on cross-entropy, no random start"),
    "pgd10": AttackInfo(
        function=partial(_pgd, steps=10),
        takes=("steps",),
        description="10 steps of 0.1 eps on cross-entropy, no random start, last iterate",
    ),
    "pgd20": AttackInfo(
        function=partial(_pgd, steps=20),
        takes=("steps",),
        description="20 steps of 0.1 eps on cross-entropy, no random start, last iterate",
    ),
    "pgd100": AttackInfo(
        function=partial(_pgd, steps=100),
        takes=("steps",),
        description="100 steps of 0.1 eps on cross-entropy, no random start, last iterate",
    ),
    "cw": AttackInfo(
        function=partial(_pgd, steps=30, loss=margin),
        takes=("steps",),
        description="30 steps of 0.1 eps on the C&W margin (kappa 50), no random start, last iterate",
    ),
    "pgd20-joint": AttackInfo(
        function=_joint,
        takes=("steps",),
        description="pgd20 on final plus 2 x mean auxiliary cross-entropy (CAS, CIFS authors)",
    ),
    "pgd100-restarts": AttackInfo(
        function=_restarts,
        takes=("steps",),
        survivors_ok=True,
        description="10 random starts of PGD-100, steps of 0.25, 0.1 and 0.025 eps, worst",
    ),
    "pgd-mt": AttackInfo(
        function=_multi_targeted,
        takes=("steps",),
        survivors_ok=True,
        description="PGD-50 on the margin to each of 9 wrong classes, random starts, worst",
    ),
    "transfer": AttackInfo(
        function=partial(_from_surrogate, craft=transfer.transfer),
        needs=("surrogate",),
        takes=("steps",),
        description="pgd20 crafted on another net",
    ),
    "di-fgsm": AttackInfo(
        function=_di,
        takes=("surrogate", "steps"),
        description="pgd20 with input diversity (probability 0.5, resize 0.9)",
    ),
    "ti-fgsm": AttackInfo(
        function=partial(_from_surrogate, craft=transfer.ti_fgsm),
        takes=("surrogate", "steps"),
        description="pgd20 along the Gaussian-smoothed gradient (7x7; 3x3 at 8 pixels)",
    ),
    "mi-fgsm": AttackInfo(
        function=partial(_from_surrogate, craft=transfer.mi_fgsm),
        takes=("surrogate", "steps"),
        description="pgd20 with momentum 1",
    ),
    "nattack": AttackInfo(
        function=_nattack,
        takes=("queries",),
        survivors_ok=True,
        images=1000,
        description="N-Attack: scores only, population 300, 20,000 queries",
    ),
    "square": _of_batch(function=_square, takes=("queries",), description="Square Attack: scores only, 5,000 queries"),
    "apgd-ce": _of_batch(function=partial(_apgd, name="apgd-ce"), description="APGD, 100 steps, cross-entropy"),
    "apgd-dlr": _of_batch(
        function=partial(_apgd, name="apgd-dlr"), description="APGD, 100 steps, difference of logits ratio"
    ),
    "autoattack": _of_batch(
        function=partial(_autoattack, **VARIANTS["autoattack"]),
        description="AutoAttack standard: APGD-CE, APGD-T, FAB-T, Square",
    ),
    "autoattack-rand": _of_batch(
        function=partial(_autoattack, **VARIANTS["autoattack-rand"]),
        description="AutoAttack rand: APGD-CE, APGD-DLR, 20 draws per gradient",
    ),
    "autoattack-ci": _of_batch(
        function=partial(_autoattack, **VARIANTS["autoattack-ci"]),
        description="AutoAttack standard cut to 5 steps and 50 queries: tests plumbing only",
    ),
}


def attack_named(name: str) -> AttackInfo:
    """The attack of that name; an unknown one raises UsageError that lists them."""
    if name not in ATTACKS:
        raise UsageError(f"unknown attack {name!r}; choose one of {', '.join(ATTACKS)}")
    if not isinstance(ATTACKS[name], AttackInfo):
        raise UsageError(f"ATTACKS[{name!r}] must be AttackInfo(function=..., description=...)")
    return ATTACKS[name]
