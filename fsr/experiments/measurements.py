"""What each set evaluates and analyses on each of its runs, and the columns of its table."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

from fsr.config import Analysis, Evaluation, Run, run_id
from fsr.experiments import plan
from fsr.experiments.profiles import Profile

COLUMNS = ("clean", "fgsm", "pgd20", "pgd100", "cw")  # the authors' protocol; `ensemble` is computed from them
CHECKPOINTS = ("last", "best", "ema")
# F6: multiples of the data set's eps (down to about no accuracy: `mini` keeps 0.2 to 1.4 %), and steps at its own eps
EPS_FACTORS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
STEPS = (1, 2, 5, 10, 20, 50, 100, 200)


def _protocol(profile: Profile, checkpoints: Iterable[str]) -> list[Evaluation]:
    """The authors' columns at these checkpoints."""
    return [Evaluation(attack=a, checkpoint=c, images=profile.images) for c in checkpoints for a in COLUMNS]


def _is_main(profile: Profile, run: Run) -> bool:
    return any(run in row.runs for row in plan.main_rows(profile))


def _checkpoints(profile: Profile, run: Run) -> tuple[str, ...]:
    """All that a run keeps; ci evaluates others than `last` only for the main pair."""
    if run.holdout == 0:
        return ("last", "ema")
    if profile.scope == "smoke" and not (_is_main(profile, run) and run.seed == 0):
        return ("last",)
    return CHECKPOINTS


def _autoattack(profile: Profile, run: Run) -> list[Evaluation]:
    """On the main backbone always (paper: everywhere); on `best` and `ema` only for the main pair."""
    main = _is_main(profile, run)
    if profile.name != "paper" and run.backbone != profile.base.backbone:
        return []
    if (profile.scope == "smoke" and run.method != "at") or (profile.scope == "study" and not main):
        return []
    several = main and run.seed in (profile.seeds if profile.autoattack_seeds is None else profile.autoattack_seeds)
    kinds = CHECKPOINTS if several else ("last",)
    return [Evaluation(attack=profile.autoattack, checkpoint=c, images=profile.autoattack_images) for c in kinds]


def _strong(profile: Profile, run: Run) -> list[Evaluation]:
    """AutoAttack in T4 to T6, where masked gradients are likeliest: the profile has time for it, or not."""
    return _autoattack(profile, run) if profile.autoattack_everywhere else []


def _whitebox(profile: Profile, run: Run) -> list[Evaluation]:
    return _protocol(profile, _checkpoints(profile, run)) + _autoattack(profile, run)


def has_heads(run: Run) -> bool:
    """Has the network auxiliary logits, which an attack can use as well?"""
    peer, fsr = run.peer, run.fsr
    return (peer is not None and peer.name in ("cas", "cifs")) or (fsr is not None and fsr.kind != "residual")


def _deactivation(profile: Profile, run: Run) -> list[Evaluation]:
    joint = Evaluation(attack="pgd20-joint", checkpoint=profile.report_checkpoint, images=profile.images)
    return _whitebox(profile, run) + ([joint] if has_heads(run) else [])


def _blackbox_columns(profile: Profile) -> dict[str, Evaluation]:
    """T3: which evaluation each column is; transfer's source is part of the column."""
    twin, natural = (run_id(source) for source in plan.surrogates(profile).values())
    attacked = partial(Evaluation, checkpoint=profile.report_checkpoint)
    many, few = partial(attacked, images=profile.images), partial(attacked, images=profile.query_images)
    return {
        "clean": many(attack="clean"),
        "transfer-twin": many(attack="transfer", surrogate=twin),
        "transfer-natural": many(attack="transfer", surrogate=natural),
        "di-fgsm": many(attack="di-fgsm", surrogate=twin),
        "ti-fgsm": many(attack="ti-fgsm", surrogate=twin),
        "nattack": few(attack="nattack"),
        "square": few(attack="square"),
    }


def columns_of(profile: Profile, kind: str) -> dict[str, Evaluation]:
    """The columns of a set's table: metric -> evaluation of the weights that the profile reports."""
    if kind == "blackbox":
        return _blackbox_columns(profile)
    attacked = partial(Evaluation, checkpoint=profile.report_checkpoint)
    out = {name: attacked(attack=name, images=profile.images) for name in (*COLUMNS, "ensemble")}
    if kind == "deactivation":
        out["pgd20-joint"] = attacked(attack="pgd20-joint", images=profile.images)
    if kind in ("whitebox", "deactivation", "study") or profile.autoattack_everywhere:
        out[profile.autoattack] = attacked(attack=profile.autoattack, images=profile.autoattack_images)
    return out


def _blackbox(profile: Profile, run: Run) -> list[Evaluation]:
    if run.method == "natural":
        return _protocol(profile, ("last",))
    targets = any(run in row.runs for row in plan.blackbox(profile))  # the AT twin only crafts
    return list(_blackbox_columns(profile).values()) if targets else []


def _components(profile: Profile, run: Run) -> list[Evaluation]:
    plain, kind, controls = _protocol(profile, _checkpoints(profile, run)) + _strong(profile, run), None, []
    if run in plan.main_rows(profile)[1].runs and (profile.scope != "smoke" or run.seed == 0):
        kind = profile.report_checkpoint
        tests = [row.intervention for row in plan.components(profile) if row.intervention]
        reported = _protocol(profile, (kind,)) + [e for e in _strong(profile, run) if e.checkpoint == kind]
        controls = [replace(e, intervention=name) for name in tests for e in reported]
    return plain + controls


def _sweep(profile: Profile, run: Run) -> list[Evaluation]:
    kind = profile.report_checkpoint
    return _protocol(profile, (kind,)) + [e for e in _strong(profile, run) if e.checkpoint == kind]


def _settings(profile: Profile, run: Run) -> list[Evaluation]:
    """T5; other trainings (epochs, precision) are evaluated as T1 is, both with FSR and without."""
    if any(run in row.runs for row in plan.settings(profile) if not row.checkpoints):
        return _sweep(profile, run)
    return _whitebox(profile, run)


def _strength(profile: Profile, run: Run) -> list[Evaluation]:
    factors, steps = (EPS_FACTORS[1::3], STEPS[:5:2]) if profile.scope == "smoke" else (EPS_FACTORS, STEPS)
    attacked = partial(Evaluation, checkpoint=profile.report_checkpoint, images=profile.sweep_images)
    return [
        attacked(attack="clean"),
        *(attacked(attack="pgd20", eps=round(factor * run.eps, 6)) for factor in factors),
        *(attacked(attack="pgd20", steps=count) for count in steps),
    ]


EVALUATIONS: dict[str, Callable[[Profile, Run], list[Evaluation]]] = {
    "whitebox": _whitebox,
    "deactivation": _deactivation,
    "blackbox": _blackbox,
    "components": _components,
    "settings": _settings,
    "placement": _sweep,
    "strength": _strength,
    "study": _whitebox,
}


def _cost(profile: Profile, run: Run) -> list[Analysis]:
    measured = run.seed == 0 and run.method == "at" and (run.module is None or run.fsr is not None)
    measured = measured and profile.scope != "study"
    return [Analysis(kind="cost", checkpoint=profile.report_checkpoint)] if measured else []


def _masks(profile: Profile, run: Run) -> list[Analysis]:
    """F2 shows the masks of each tau, so only the sweep of tau keeps them."""
    if not any(run in row.runs for row in plan.settings(profile) if row.axis == "tau"):
        return []
    return [Analysis(kind="masks", checkpoint="ema", images=profile.stream_images)]


def _streams(profile: Profile, run: Run) -> list[Analysis]:
    """T7 and F3 for every seed; F1, F2 and F8 show seed 0 only."""
    images = profile.stream_images
    kinds = dict.fromkeys((profile.report_checkpoint, "ema"))
    out = [Analysis(kind="streams", checkpoint=kind, images=images) for kind in kinds]
    if run.seed == 0:
        out.append(Analysis(kind="masks", checkpoint="ema", images=images))
        out.append(Analysis(kind="maps", checkpoint="ema", images=8))
        out.append(Analysis(kind="features", checkpoint="ema", images=2000 if images is None else min(images, 2000)))
    return out


def _audit(profile: Profile, run: Run) -> list[Analysis]:
    if all(run not in row.runs for row in plan.strength(profile)):
        return []  # the twin that the audit of AT transfers from
    images, kind = profile.audit_images, profile.report_checkpoint
    return [Analysis(kind="audit", checkpoint=kind, images=images, budget=profile.audit_budget)]


ANALYSES: dict[str, Callable[[Profile, Run], list[Analysis]]] = {"whitebox": _cost, "settings": _masks}
ANALYSES |= {"streams": _streams, "audit": _audit}
