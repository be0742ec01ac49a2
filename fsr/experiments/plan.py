"""The rows of every table: names a reader knows, and the runs (one per seed) that each row is made of."""

from collections import namedtuple
from collections.abc import Iterable
from dataclasses import replace

from fsr.config import PEERS, FSRSpec, PeerSpec, Run
from fsr.experiments.profiles import INTERVENTIONS, PROFILES, SCOPES, SWEEPS, VARIANTS, Place, Profile, profile_of

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


def _pair(profile: Profile, run: Run, place: Place, seeds: Iterable[int]) -> Rows:
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
