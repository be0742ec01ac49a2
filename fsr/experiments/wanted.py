"""Which evaluations and analyses each set asks of each of its runs."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial

from fsr.config import Analysis, Evaluation, Run, run_id
from fsr.experiments import rows
from fsr.experiments.profiles import Profile

COLUMNS = ("clean", "fgsm", "pgd20", "pgd100", "cw")  # the authors' protocol; `ensemble` is computed from them
CHECKPOINTS = ("last", "best", "ema")
# F6: multiples of the data set's eps (down to about no accuracy: `mini` keeps 0.2 to 1.4 %), and steps at its own eps
EPS_FACTORS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
STEPS = (1, 2, 5, 10, 20, 50, 100, 200)


def _columns(profile: Profile, checkpoints: Iterable[str] = CHECKPOINTS, **changes) -> list[Evaluation]:
    return [
        Evaluation(attack=attack, checkpoint=checkpoint, images=profile.images, **changes)
        for checkpoint in checkpoints
        for attack in COLUMNS
    ]


def _is_main(profile: Profile, run: Run) -> bool:
    return any(run in row.runs for row in rows.main_rows(profile))


def checkpoints(profile: Profile, run: Run) -> tuple[str, ...]:
    """All that a run keeps; ci looks at the others than `last` only for the main pair."""
    if run.holdout == 0:
        return ("last", "ema")
    if profile.scope == "smoke" and not (_is_main(profile, run) and run.seed == 0):
        return ("last",)
    return CHECKPOINTS


def _autoattack(profile: Profile, run: Run) -> list[Evaluation]:
    """On the main backbone always (paper: everywhere); on `best` and `ema` only for the main pair."""
    if profile.name != "paper" and run.backbone != profile.base.backbone:
        return []
    if profile.scope == "smoke" and run.method != "at":
        return []
    several = profile.name in ("mini", "headline", "headline40", "paper") and _is_main(profile, run)
    kinds = CHECKPOINTS if several else ("last",)
    images = profile.autoattack_images
    return [Evaluation(attack=profile.autoattack, checkpoint=kind, images=images) for kind in kinds]


def _strong(profile: Profile, run: Run) -> list[Evaluation]:
    """AutoAttack in T4 to T6, where masked gradients are likeliest: the profile has time for it, or not."""
    return _autoattack(profile, run) if profile.autoattack_everywhere else []


def _whitebox(profile: Profile, run: Run) -> list[Evaluation]:
    return _columns(profile, checkpoints(profile, run)) + _autoattack(profile, run)


def has_heads(run: Run) -> bool:
    """Has the network auxiliary logits, which an attack can use as well?"""
    peer, fsr = run.peer, run.fsr
    return (peer is not None and peer.name in ("cas", "cifs")) or (fsr is not None and fsr.kind != "residual")


def _deactivation(profile: Profile, run: Run) -> list[Evaluation]:
    joint = []
    if has_heads(run):
        joint = [Evaluation(attack="pgd20-joint", checkpoint=profile.report_checkpoint, images=profile.images)]
    return _whitebox(profile, run) + joint


def _blackbox_columns(profile: Profile) -> dict[str, Evaluation]:
    """T3: which evaluation each column is; transfer's source is part of the column."""
    twin, natural = (run_id(source) for source in rows.surrogates(profile).values())
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


def columns(profile: Profile, kind: str) -> dict[str, Evaluation]:
    """The columns of a set's table: metric -> evaluation; `ensemble` is computed, never run.

    Of the weights that the profile looks at; T1 has a row of its own for the others.
    """
    if kind == "blackbox":
        return _blackbox_columns(profile)
    attacked = partial(Evaluation, checkpoint=profile.report_checkpoint)
    out = {name: attacked(attack=name, images=profile.images) for name in (*COLUMNS, "ensemble")}
    if kind == "deactivation":
        out["pgd20-joint"] = attacked(attack="pgd20-joint", images=profile.images)
    if kind in ("whitebox", "deactivation") or profile.autoattack_everywhere:
        out[profile.autoattack] = attacked(attack=profile.autoattack, images=profile.autoattack_images)
    return out


def _blackbox(profile: Profile, run: Run) -> list[Evaluation]:
    if run.method == "natural":
        return _columns(profile, ("last",))
    if not any(run in row.runs for row in rows.blackbox(profile)):
        return []  # the AT twin only crafts
    return list(_blackbox_columns(profile).values())


def _components(profile: Profile, run: Run) -> list[Evaluation]:
    controls = []
    if run in rows.main_rows(profile)[1].runs and (profile.scope != "smoke" or run.seed == 0):
        for name in rows.INTERVENTIONS:
            plain = _columns(profile, (profile.report_checkpoint,)) + _strong(profile, run)
            controls += [replace(e, intervention=name) for e in plain if e.checkpoint == profile.report_checkpoint]
    return _columns(profile, checkpoints(profile, run)) + _strong(profile, run) + controls


def _sweep(profile: Profile, run: Run) -> list[Evaluation]:
    kind = profile.report_checkpoint
    return _columns(profile, (kind,)) + [e for e in _strong(profile, run) if e.checkpoint == kind]


def _strength(profile: Profile, run: Run) -> list[Evaluation]:
    factors, steps = (EPS_FACTORS[1::3], STEPS[:5:2]) if profile.scope == "smoke" else (EPS_FACTORS, STEPS)
    attacked = partial(Evaluation, checkpoint=profile.report_checkpoint, images=profile.sweep_images)
    return [
        attacked(attack="clean"),
        *(attacked(attack="pgd20", eps=round(factor * run.eps, 6)) for factor in factors),
        *(attacked(attack="pgd20", steps=count) for count in steps),
    ]


def _nothing(profile: Profile, run: Run) -> list[Evaluation]:
    return []


EVALUATIONS = {
    "whitebox": _whitebox,
    "deactivation": _deactivation,
    "blackbox": _blackbox,
    "components": _components,
    "settings": _sweep,
    "placement": _sweep,
    "streams": _nothing,
    "strength": _strength,
    "audit": _nothing,
}


def _cost(profile: Profile, run: Run) -> list[Analysis]:
    wanted = run.seed == 0 and run.method == "at" and (run.module is None or run.fsr is not None)
    return [Analysis(kind="cost", checkpoint=profile.report_checkpoint)] if wanted else []


def _masks(profile: Profile, run: Run) -> list[Analysis]:
    """F2 shows the masks of each tau, so only the sweep of tau keeps them."""
    if not any(run in row.runs for row in rows.settings(profile) if row.axis == "tau"):
        return []
    return [Analysis(kind="masks", checkpoint="ema", images=profile.stream_images)]


def _streams(profile: Profile, run: Run) -> list[Analysis]:
    """T7 and F3 for every seed; F1, F2 and F8 show seed 0 only."""
    images = profile.stream_images
    out = [
        Analysis(kind="streams", checkpoint=kind, images=images)
        for kind in dict.fromkeys((profile.report_checkpoint, "ema"))
    ]
    if run.seed == 0:
        out.append(Analysis(kind="masks", checkpoint="ema", images=images))
        out.append(Analysis(kind="maps", checkpoint="ema", images=8))
        out.append(Analysis(kind="features", checkpoint="ema", images=2000 if images is None else min(images, 2000)))
    return out


def _audit(profile: Profile, run: Run) -> list[Analysis]:
    if all(run not in row.runs for row in rows.strength(profile)):
        return []  # the twin that the audit of AT transfers from
    audit = partial(Analysis, kind="audit", checkpoint=profile.report_checkpoint)
    return [audit(images=profile.audit_images, budget=profile.audit_budget)]


ANALYSES = {"whitebox": _cost, "settings": _masks, "streams": _streams, "audit": _audit}
