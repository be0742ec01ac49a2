"""The rows of every table: names a reader knows, and the runs (one per seed) that each row is made of."""

from collections import namedtuple
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from itertools import zip_longest

from fsr.config import PEERS, FSRSpec, PeerSpec, Run
from fsr.experiments.profiles import CONTROLS, INTERVENTIONS, PROFILES, SCOPES, SWEEPS, VARIANTS, Profile, profile_of

# A row of a table: its name, its runs in the order of their seeds, and the runs that its gain is measured against.
# axis, value: the setting that T5 and T6 vary and its value here; intervention: T4's controls that act at test time on
# the same trained runs, so their gain is against these runs left alone; checkpoints: () for those of its set.
Row = namedtuple("Row", "name runs baseline axis value intervention checkpoints", defaults=((), None, None, None, ()))
Rows = tuple[Row, ...]


def _short(profile: Profile, run: Run) -> Run:
    """ci gives everything but the main pair a single epoch."""
    return replace(run, epochs=1) if profile.scope == "smoke" else run


def _seeded(run: Run, seeds: Iterable[int]) -> tuple[Run, ...]:
    return tuple(replace(run, seed=seed) for seed in seeds)


def _pair(run: Run, place: tuple[str, ...], seeds: Iterable[int]) -> Rows:
    """A method without and with FSR."""
    plain, both = _seeded(run, seeds), _seeded(replace(run, module=FSRSpec(at=place)), seeds)
    name = run.method.upper()
    return Row(name, plain), Row(f"{name} + FSR", both, plain)


def _sweeps(profile: Profile, main: Rows) -> Rows:
    """T5: one setting at a time with seed 0, then other trainings, each against AT trained the same way."""
    rows, base = [], profile.base
    for axis in SWEEPS:
        usual = getattr(FSRSpec(), axis)
        for value in (usual, *SCOPES[profile.scope].sweeps.get(axis, ())):
            run = replace(base, module=FSRSpec(at=profile.place, **{axis: value}))
            runs = (run if value == usual else _short(profile, run),)
            rows.append(Row(f"{axis} = {value}", runs, main[0].runs[:1], axis, value))
    for axis, value in ((axis, value) for axis, values in profile.trainings.items() for value in values):
        both = _pair(replace(base, **{axis: value}), profile.place, profile.seeds)[1]
        kept = ("last", "best", "ema")
        rows.append(both._replace(name=f"{axis} = {value}", axis=axis, value=value, checkpoints=kept))
    return tuple(rows)


def _rows(profile: Profile) -> dict[str, Rows]:
    """Every set's rows; () where a profile plans none."""
    scope, base, other = SCOPES[profile.scope], profile.base, profile.other_seeds
    main = plain, both = _pair(base, profile.place, profile.seeds)
    varied = partial(Row, baseline=plain.runs)

    def runs(module, seeds=other) -> tuple[Run, ...]:
        return _seeded(_short(profile, replace(base, module=module)), seeds)

    methods = [_pair(_short(profile, replace(base, method=m)), profile.place, other) for m in scope.methods[1:]]
    every = scope.methods if profile.name == "paper" else ("at",)
    methods += [_pair(replace(run, method=m), place, other) for run, place in profile.others for m in every]
    whitebox = (*main, *(row for pair in methods for row in pair))
    places = {name: () if PEERS[name].every_stage else profile.peers_at for name in scope.peers}
    peers = [varied(name=f"AT + {name.upper()}", runs=runs(PeerSpec(name=name, at=at))) for name, at in places.items()]
    variants = {name: FSRSpec(at=profile.place, **VARIANTS[name]) for name in scope.variants}
    seeds = {name: profile.seeds if name in profile.all_seeds else other for name in variants}
    trained = [varied(name=name, runs=runs(spec, seeds[name])) for name, spec in variants.items()]
    tests = INTERVENTIONS if profile.scope != "study" else {}
    controls = [both._replace(name=text, baseline=both.runs, intervention=name) for name, text in tests.items()]
    more = profile.placements if profile.scope != "pair" else ()
    spots = {" + ".join(place): runs(FSRSpec(at=place), (0,)) for place in more}
    spots[" + ".join(profile.place or ("layer4",))] = both.runs[:1]
    placed = partial(Row, baseline=plain.runs[:1], axis="place")
    placement = [placed(name=name, value=name, runs=spots[name]) for name in spots]
    first = [row._replace(runs=row.runs[:1], baseline=row.baseline[:1]) for row in whitebox]
    rows: dict[str, Rows] = {
        "whitebox": whitebox,
        "deactivation": (plain, *peers, both),
        "blackbox": tuple(first[: 2 * len(every)]),
        "components": (plain, both, *trained, *controls),
        "settings": _sweeps(profile, main),
        "placement": tuple(sorted(placement, key=lambda row: (row.name.count("+"), row.name))),
        "streams": (both,),
        "strength": tuple(first[:2]),
        "audit": tuple(first[:2]),
        "study": (plain, both, *trained),
    }
    return {kind: some if kind in scope.sets.split() else () for kind, some in rows.items()}


ROWS: dict[str, dict[str, Rows]] = {name: _rows(profile) for name, profile in PROFILES.items()}


def surrogates(profile: str) -> dict[str, Run]:
    """T3's sources: an AT network that shares no seed with the targets, and a naturally trained one."""
    chosen = profile_of(profile)
    twin = replace(chosen.base, seed=next(seed for seed in chosen.seeds if seed != 0))
    return {"AT twin": twin, "natural": _short(chosen, replace(chosen.base, method="natural"))}


def _by_seed(*groups: Iterable[Row]) -> list[Run]:
    """Of each group first every row's first seed, then every row's second: what is compared finishes together."""
    seeds = [seed for rows in groups for seed in zip_longest(*(row.runs for row in rows))]
    return [run for seed in seeds for run in seed if run is not None]


def _sets(profile: Profile) -> dict[str, tuple[Run, ...]]:
    """Every set's runs; `all`: the main pair seed by seed, T4's controls, TRADES and MART, the rest of T4, peers."""
    of = ROWS[profile.name]
    trained = [run for r in of["settings"] if r.checkpoints for pair in zip(r.baseline, r.runs) for run in pair]
    natural = list(surrogates(profile.name).values()) if of["blackbox"] else []
    sets = {kind: _by_seed(rows) for kind, rows in of.items()}
    sets |= {"settings": sets["settings"] + trained, "blackbox": sets["blackbox"] + natural}
    sets["audit"] = natural[:1] + sets["audit"]  # what AT is attacked from
    base = (profile.base.dataset, profile.base.backbone)
    controls = [row for row in of["components"] if row.name in CONTROLS]
    here = [row for row in of["whitebox"] if (row.runs[0].dataset, row.runs[0].backbone) == base]
    first = _by_seed(of["components"][:2], controls, here, of["components"], of["deactivation"])
    sweeps = [row for row in of["settings"] if not row.checkpoints]
    rest = _by_seed(sweeps, of["placement"], of["whitebox"], of["blackbox"])
    sets["all"] = [*first, *natural, *rest, *trained]
    return {kind: tuple(dict.fromkeys(runs)) for kind, runs in sets.items()}


SETS: dict[str, dict[str, tuple[Run, ...]]] = {name: _sets(profile) for name, profile in PROFILES.items()}
