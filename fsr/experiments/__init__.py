"""Which runs, evaluations and analyses every table and figure needs, per profile."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from fsr.config import PEERS, PROTOCOL, Analysis, Evaluation, Run, run_id
from fsr.experiments.plan import CHECKPOINTS, ROWS, SETS, Row, surrogates
from fsr.experiments.profiles import CONTROLS, PROFILES, Profile, profile_of

# F6: multiples of the data set's eps (down to about no accuracy: `mini` keeps 0.2 to 1.4 %), and steps at its own eps
EPS_FACTORS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
STEPS = (1, 2, 5, 10, 20, 50, 100, 200)
NEEDS: dict[str, tuple[str, ...]] = {
    "00-setup": (),
    "01-method": (),
    "02-train-baselines": ("whitebox", "blackbox"),
    "03-train-fsr": ("whitebox", "deactivation", "components", "settings", "placement"),
    "04-evaluate": ("all",),
    "05-whitebox": ("whitebox",),
    "06-deactivation": ("deactivation",),
    "07-blackbox": ("blackbox",),
    "08-components": ("components",),
    "09-settings": ("settings", "placement", "whitebox"),
    "10-streams": ("streams", "settings"),
    "11-attention-maps": ("streams",),
    "12-training-curves": ("whitebox", "study"),
    "13-attack-strength": ("strength",),
    "14-audit": ("audit",),
    "15-verdict": ("all",),
    "16-explore": ("streams", "whitebox"),
}


def has_heads(run: Run) -> bool:
    """Has the network auxiliary logits, which an attack can use as well?"""
    return PEERS[run.peer.name].probe if run.peer else run.fsr is not None and run.fsr.kind != "residual"


def columns(profile: str, kind: str) -> dict[str, Evaluation]:
    """The columns of a set's table in order: metric -> the evaluation of the reported weights that fills it."""
    chosen = profile_of(profile)
    attacked = partial(Evaluation, checkpoint=chosen.report_checkpoint, images=chosen.images)
    if kind == "blackbox":  # the source of a transfer attack is part of the column
        baseline, natural = map(run_id, surrogates(profile))
        out = {"clean": attacked(attack="clean"), "transfer-twin": attacked(attack="transfer", surrogate=baseline)}
        out["transfer-natural"] = attacked(attack="transfer", surrogate=natural)
        out |= {name: attacked(attack=name, surrogate=baseline) for name in ("di-fgsm", "ti-fgsm")}
        return out | {name: attacked(attack=name, images=chosen.limits.queries) for name in ("nattack", "square")}
    joint = ("pgd20-joint",) if kind == "deactivation" else ()
    out = {name: attacked(attack=name) for name in (*PROTOCOL, "ensemble", *joint)}
    if kind in ("whitebox", "deactivation", "study") or chosen.autoattack_everywhere:
        out[chosen.autoattack] = attacked(attack=chosen.autoattack, images=chosen.limits.autoattack)
    return out


def _evaluations(profile: Profile, kind: str, run: Run) -> list[Evaluation]:
    rows, reported, smoke = ROWS[profile.name][kind], profile.report_checkpoint, profile.scope == "smoke"
    natural, is_main = run.method == "natural", replace(run, seed=0) in main_pair(profile.name)  # natural: T3's source
    required = columns(profile.name, "whitebox" if natural else kind)
    if kind in ("streams", "audit"):
        return []
    if kind == "blackbox" and not natural:
        return [] if run.seed else list(required.values())  # AT with another seed only crafts
    if kind == "strength":
        factors, steps = (EPS_FACTORS[1::3], STEPS[:5:2]) if smoke else (EPS_FACTORS, STEPS)
        swept = partial(Evaluation, attack="pgd20", checkpoint=reported, images=profile.limits.sweep)
        strengths = [swept(eps=round(factor * run.eps, 6)) for factor in factors]
        return [swept(attack="clean"), *strengths, *(swept(steps=count) for count in steps)]
    checkpoints = ("last",) if natural or (smoke and (run.seed or not is_main)) else CHECKPOINTS
    if kind == "placement" or (kind == "settings" and any(run in row.runs for row in rows if not row.checkpoints)):
        checkpoints = (reported,)
    out = [replace(required[attack], checkpoint=name) for name in checkpoints for attack in PROTOCOL]
    elsewhere = run.backbone != profile.base.backbone and profile.name != "paper"
    other = natural or (smoke and run.method != "at") or (profile.scope == "study" and not is_main)
    if profile.autoattack in required and not (elsewhere or other):  # of the main pair on all weights, else on `last`
        attacked = CHECKPOINTS if is_main and run.seed in profile.autoattack_seeds else ("last",)
        out += [replace(required[profile.autoattack], checkpoint=name) for name in checkpoints if name in attacked]
    if kind == "deactivation" and has_heads(run):
        out.append(required["pgd20-joint"])
    if kind == "components" and is_main and run.module and not (smoke and run.seed):
        tests = [row.intervention for row in rows if row.intervention]
        out += [replace(one, intervention=name) for name in tests for one in out if one.checkpoint == reported]
    return out


def _analyses(profile: Profile, kind: str, run: Run) -> list[Analysis]:
    rows, images, budget = ROWS[profile.name][kind], profile.limits.streams, profile.audit_budget
    reported = partial(Analysis, checkpoint=profile.report_checkpoint)
    masks = Analysis(kind="masks", checkpoint="ema", images=images)
    if kind == "whitebox" and (run.seed, run.method) == (0, "at") and profile.scope != "study":
        return [reported(kind="cost")]
    if kind == "settings" and any(run in row.runs for row in rows if row.axis == "tau"):
        return [masks]  # F2 shows the masks of each tau
    if kind == "audit" and run.seed == 0:  # and not what AT is attacked from
        return [reported(kind="audit", images=profile.limits.audit, budget=budget)]
    if kind != "streams":
        return []
    streams, shown = reported(kind="streams", images=images), {"maps": 8, "features": min(images or 2000, 2000)}
    pictures = [masks, *(replace(masks, kind=name, images=shown[name]) for name in shown)]  # F1, F2, F8: seed 0 alone
    return [streams, replace(streams, checkpoint="ema"), *(() if run.seed else pictures)]


def _collect(profile: str, kind: str, run: Run, make: Callable) -> tuple:
    chosen, sets = profile_of(profile), SETS[profile]
    kinds = [name for name in (ROWS[profile] if kind == "all" else [kind]) if run in sets[name]]
    return tuple(dict.fromkeys(item for name in kinds for item in make(chosen, name, run)))


def evaluations(profile: str, kind: str, run: Run) -> tuple[Evaluation, ...]:
    """What the set `kind` (or `all`) evaluates on this run, in order, each once; () for a run outside the set."""
    return _collect(profile, kind, run, _evaluations)


def analyses(profile: str, kind: str, run: Run) -> tuple[Analysis, ...]:
    """What the set `kind` (or `all`) analyses on this run, each once; () for a run outside the set."""
    return _collect(profile, kind, run, _analyses)


def main_pair(profile: str) -> tuple[Run, Run]:
    """AT and AT + FSR on the main backbone, seed 0."""
    baseline, with_fsr = ROWS[profile_of(profile).name]["components"][:2]
    return baseline.runs[0], with_fsr.runs[0]
