"""The rows of every table and their runs (one per seed), and what each table and figure evaluates and analyses."""

from collections import namedtuple
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

from fsr.config import PEERS, PROTOCOL, Analysis, Evaluation, FSRSpec, PeerSpec, Run, run_id
from fsr.experiments.profiles import CONTROLS, INTERVENTIONS, PROFILES, SCOPES, SWEEPS, VARIANTS, Profile, profile_of

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
    "07-blackbox": ("blackbox", "whitebox"),
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

# A row of a table: its name, its runs in the order of their seeds, and the runs that its gain is measured against.
# axis, value: the setting that T5 and T6 vary and its value here; intervention: T4's controls that act at test time on
# the same trained runs, so their gain is against these runs left alone; checkpoints: () for those of its set.
Row = namedtuple("Row", "name runs baseline axis value intervention checkpoints", defaults=((), None, None, None, ()))
Rows = tuple[Row, ...]
CHECKPOINTS = ("last", "best", "ema")


def _runs(profile: Profile, run: Run, seeds: Iterable[int] = (0,)) -> tuple[Run, ...]:
    """This run with each seed; in ci everything but the main pair has a single epoch."""
    main = run in (profile.base, replace(profile.base, module=FSRSpec(at=profile.place)))
    short = run if main or profile.scope != "smoke" else replace(run, epochs=1)
    return tuple(replace(short, seed=seed) for seed in seeds)


def _pair(profile: Profile, run: Run, place: tuple[str, ...], seeds: Iterable[int]) -> Rows:
    """A method without and with FSR."""
    baseline, with_fsr = (_runs(profile, replace(run, module=module), seeds) for module in (None, FSRSpec(at=place)))
    return Row(run.method.upper(), baseline), Row(f"{run.method.upper()} + FSR", with_fsr, baseline)


def _settings(profile: Profile, baseline: tuple[Run, ...]) -> dict[str, Rows]:
    """T5: one setting at a time, then other trainings, each against AT trained the same way; and T6: other places."""
    scope, base, place, usual = SCOPES[profile.scope], profile.base, profile.place, FSRSpec()

    def row(name: str, axis: str, value, **spec) -> Row:
        run = replace(base, module=replace(usual, **{"at": place} | spec))
        return Row(name, _runs(profile, run), baseline[:1], axis, value)

    values = [(axis, value) for axis in SWEEPS for value in (getattr(usual, axis), *scope.sweeps.get(axis, ()))]
    rows = [row(f"{axis} = {value}", axis, value, **{axis: value}) for axis, value in values]
    for axis, value in profile.trainings:
        with_fsr = _pair(profile, replace(base, **{axis: value}), place, profile.seeds)[1]
        rows.append(with_fsr._replace(name=f"{axis} = {value}", axis=axis, value=value, checkpoints=CHECKPOINTS))
    own = place or ("layer4",)
    places = sorted({own, *(profile.placements if profile.scope != "pair" else ())}, key=lambda at: (len(at), at))
    names = {" + ".join(at): place if at == own else at for at in places}
    return {"settings": tuple(rows), "placement": tuple(row(name, "place", name, at=names[name]) for name in names)}


def _rows(profile: Profile) -> dict[str, Rows]:
    """Every set's rows; () where a profile plans none."""
    scope, base, place, other = SCOPES[profile.scope], profile.base, profile.place, profile.other_seeds
    main = baseline, with_fsr = _pair(profile, base, place, profile.seeds)

    def row(name: str, module: FSRSpec | PeerSpec, seeds=other) -> Row:
        return Row(name, _runs(profile, replace(base, module=module), seeds), baseline.runs)

    every = scope.methods if profile.name == "paper" else ("at",)
    nets = [(base, place, method) for method in scope.methods[1:]]
    nets += [(run, profile.others_at, method) for run in profile.others for method in every]
    pairs = [_pair(profile, replace(run, method=method), at, other) for run, at, method in nets]
    whitebox = (*main, *(row for pair in pairs for row in pair))
    first = tuple(row._replace(runs=row.runs[:1], baseline=row.baseline[:1]) for row in whitebox)
    places = {name: () if PEERS[name].every_stage else profile.peers_at for name in scope.peers}
    peers = [row(f"AT + {name.upper()}", PeerSpec(name=name, at=at)) for name, at in places.items()]
    seeds = {name: profile.seeds if name in profile.all_seeds else other for name in scope.variants}
    trained = [row(name, FSRSpec(at=place, **VARIANTS[name]), seeds[name]) for name in scope.variants]
    tests = INTERVENTIONS if profile.scope != "study" else {}
    controls = [with_fsr._replace(name=text, baseline=with_fsr.runs, intervention=name) for name, text in tests.items()]
    rows: dict[str, Rows] = {
        "whitebox": whitebox,
        "deactivation": (baseline, *peers, with_fsr),
        "blackbox": first[: 2 * len(every)],
        "components": (baseline, with_fsr, *trained, *controls),
        **_settings(profile, baseline.runs),
        "streams": (with_fsr,),
        "strength": first[:2],
        "audit": first[:2],
        "study": (baseline, with_fsr, *trained),
    }
    if profile.scope == "study":
        return {kind: some if kind in ("whitebox", "components", "study") else () for kind, some in rows.items()}
    return rows | {"study": ()}


ROWS: dict[str, dict[str, Rows]] = {name: _rows(profile) for name, profile in PROFILES.items()}


def surrogates(profile: str) -> tuple[Run, Run]:
    """T3's sources: an AT network that shares no seed with the targets, and a naturally trained one."""
    chosen = profile_of(profile)
    natural = _runs(chosen, replace(chosen.base, method="natural"))[0]
    return replace(chosen.base, seed=chosen.seeds[1]), natural


def _sets(profile: Profile) -> dict[str, tuple[Run, ...]]:
    """Every set's runs; `all` begins with the main pair, seed by seed, and T4's other rows."""
    of = ROWS[profile.name]
    sources = list(surrogates(profile.name)) if of["blackbox"] else []
    more = {"blackbox": sources, "audit": sources[:1]}  # what AT is attacked from
    more["settings"] = [run for row in of["settings"] if row.checkpoints for run in row.baseline]
    sets = {kind: [run for row in rows for run in row.runs] + more.get(kind, []) for kind, rows in of.items()}
    main = [run for pair in zip(*(row.runs for row in of["components"][:2])) for run in pair]
    sets["all"] = main + sets["components"] + [run for runs in sets.values() for run in runs]
    return {kind: tuple(dict.fromkeys(runs)) for kind, runs in sets.items()}


SETS: dict[str, dict[str, tuple[Run, ...]]] = {name: _sets(profile) for name, profile in PROFILES.items()}


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


def _collect(profile: str, kind: str, run: Run, make: Callable[[Profile, str, Run], list]) -> tuple:
    """What the set `kind` (or `all`) makes of this run, in order, each item once; () for a run outside the set."""
    chosen, sets = profile_of(profile), SETS[profile]
    kinds = [name for name in (ROWS[profile] if kind == "all" else [kind]) if run in sets[name]]
    return tuple(dict.fromkeys(item for name in kinds for item in make(chosen, name, run)))


# (profile, kind, run): what the set `kind` (or `all`) evaluates, and what it analyses, on this run, as `_collect` says
evaluations, analyses = partial(_collect, make=_evaluations), partial(_collect, make=_analyses)


def main_pair(profile: str) -> tuple[Run, Run]:
    """AT and AT + FSR on the main backbone, seed 0."""
    baseline, with_fsr = ROWS[profile_of(profile).name]["components"][:2]
    return baseline.runs[0], with_fsr.runs[0]
