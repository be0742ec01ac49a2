"""The rows of every table: names a reader knows, and the runs (one per seed) that each row is made of."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from fsr.config import FSRSpec, PeerSpec, Run
from fsr.experiments.profiles import CONTROLS, Profile

INTERVENTIONS = {
    "mask_one": "m = 1 at test (FSR bypassed)",
    "no_recalibration": "R = 0 at test",
    "mask_random": "random mask at test",
    "mask_constant": "constant mask at test",
    "mask_shuffled": "shuffled mask at test",
}
VARIANTS: dict[str, dict] = {  # T4: row name -> the fields of FSRSpec that differ
    "separation only": {"kind": "separation", "lambda_rec": 0.0},
    "recalibration without L_sep": {"lambda_sep": 0.0},
    "recalibration without L_rec": {"lambda_rec": 0.0},
    "recalibration without either": {"lambda_sep": 0.0, "lambda_rec": 0.0},
    CONTROLS[0]: {"kind": "residual"},
    CONTROLS[1]: {"kind": "aux"},
}
SWEEPS: dict[str, tuple] = {  # T5: field of FSRSpec -> values beside its default
    "tau": (0.05, 0.5, 1.0),
    "lambda_sep": (0.5, 2.0),
    "lambda_rec": (0.5, 2.0),
    "mask": ("soft", "hard"),
    "granularity": ("channel", "spatial"),
}
VARIANTS_OF = {"full": tuple(VARIANTS), "smoke": ("separation only", CONTROLS[0]), "pair": ()}
VARIANTS_OF["study"] = ("recalibration without L_sep", *CONTROLS)
SWEEPS_OF = {"full": SWEEPS, "smoke": {"tau": (1.0,)}, "pair": {}}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a table: its name, its runs in the order of their seeds, and the runs its gain is measured against.

    axis, value: the setting that T5 and T6 vary and its value here; intervention: T4's controls that act at test time
    on the same trained runs, so their gain is against these runs left alone; checkpoints: () for those of its set.
    """

    name: str
    runs: tuple[Run, ...]
    baseline: tuple[Run, ...] = ()
    axis: str | None = None
    value: float | str | None = None
    intervention: str | None = None
    checkpoints: tuple[str, ...] = ()


def with_fsr(run: Run, place: tuple[str, ...], **fields) -> Run:
    """The same run with FSR, or a variant of it, at this place."""
    return replace(run, module=FSRSpec(at=place, **fields))


def seeded(run: Run, seeds: Iterable[int]) -> tuple[Run, ...]:
    """The run once per seed."""
    return tuple(replace(run, seed=seed) for seed in seeds)


def _short(profile: Profile, run: Run) -> Run:
    """ci gives everything but the main pair a single epoch."""
    return replace(run, epochs=1) if profile.scope == "smoke" else run


def _method_rows(profile: Profile, base: Run, place: tuple[str, ...], methods: Iterable[str]) -> list[Row]:
    """T1's rows of one data set and backbone: each method without and with FSR."""
    rows = []
    for method in methods:
        main = method == "at" and base == profile.base
        run = base if main else _short(profile, replace(base, method=method))
        seeds = profile.seeds if main else profile.other_seeds
        plain, both = seeded(run, seeds), seeded(with_fsr(run, place), seeds)
        rows += [Row(name=method.upper(), runs=plain), Row(name=f"{method.upper()} + FSR", runs=both, baseline=plain)]
    return rows


def main_rows(profile: Profile) -> tuple[Row, Row]:
    """AT and AT + FSR on the main backbone, all seeds."""
    plain, both = _method_rows(profile, profile.base, profile.place, ("at",))
    return plain, both


def _variant(profile: Profile, name: str, run: Run, seeds: Iterable[int], **labels) -> Row:
    baseline = main_rows(profile)[0].runs
    return Row(name=name, runs=seeded(_short(profile, run), seeds), baseline=baseline, **labels)


def whitebox(profile: Profile) -> tuple[Row, ...]:
    """T1."""
    every = ("at", "trades", "mart")
    rows = _method_rows(profile, profile.base, profile.place, every if profile.scope in ("full", "smoke") else ("at",))
    for base, place in profile.others:
        rows += _method_rows(profile, base, place, every if profile.name == "paper" else ("at",))
    return tuple(rows)


def deactivation(profile: Profile) -> tuple[Row, ...]:
    """T2."""
    plain, both = main_rows(profile)
    at = {"fd": (), "cas": profile.peers_at, "cifs": profile.peers_at} if profile.scope != "pair" else {}
    peers = {name: replace(profile.base, module=PeerSpec(name=name, at=places)) for name, places in at.items()}
    rows = [_variant(profile, f"AT + {name.upper()}", run, profile.other_seeds) for name, run in peers.items()]
    return plain, *rows, both


def _trained_variants(profile: Profile) -> list[Row]:
    rows = []
    for name in VARIANTS_OF[profile.scope]:
        seeds = profile.seeds if name in profile.all_seeds else profile.other_seeds
        rows.append(_variant(profile, name, with_fsr(profile.base, profile.place, **VARIANTS[name]), seeds))
    return rows


def components(profile: Profile) -> tuple[Row, ...]:
    """T4: the trained variants and controls, then the controls that act at test time."""
    plain, both = main_rows(profile)
    tests = INTERVENTIONS if profile.scope != "study" else {}
    controls = [replace(both, name=text, baseline=both.runs, intervention=name) for name, text in tests.items()]
    return plain, both, *_trained_variants(profile), *controls


def study(profile: Profile) -> tuple[Row, ...]:
    """T11: where AT overfits; only of the profile made for it."""
    return components(profile) if profile.scope == "study" else ()


def settings(profile: Profile) -> tuple[Row, ...]:
    """T5: one setting at a time, seed 0; the default of each setting is the main AT + FSR run, shared."""
    baseline = main_rows(profile)[0].runs[:1]
    rows = []
    for axis in SWEEPS:
        for value in (getattr(FSRSpec(), axis), *SWEEPS_OF[profile.scope].get(axis, ())):
            run = with_fsr(profile.base, profile.place, **{axis: value})
            run = _short(profile, run) if value != getattr(FSRSpec(), axis) else run
            name = f"{axis} = {value}"
            rows.append(Row(name=name, runs=seeded(run, (0,)), baseline=baseline, axis=axis, value=value))
    return (*rows, *_trainings(profile))


def _trainings(profile: Profile) -> list[Row]:
    """T5's last rows: another number of epochs or number format, each against AT trained the same way."""
    rows = []
    for axis, values in profile.trainings.items():
        for value in values:
            base = replace(profile.base, **{axis: value})
            both, plain = (seeded(run, profile.seeds) for run in (with_fsr(base, profile.place), base))
            changes = {"axis": axis, "value": value, "checkpoints": ("last", "best", "ema")}
            rows.append(Row(name=f"{axis} = {value}", runs=both, baseline=plain, **changes))
    return rows


def placement(profile: Profile) -> tuple[Row, ...]:
    """T6: every stage, and several at once, seed 0."""
    plain, both = main_rows(profile)
    own = " + ".join(profile.place) or "layer4"
    rows = [Row(name=own, runs=both.runs[:1], baseline=plain.runs[:1], axis="place", value=own)]
    for place in profile.placements if profile.scope != "pair" else ():
        name = " + ".join(place)
        rows.append(_variant(profile, name, with_fsr(profile.base, place), (0,), axis="place", value=name))
    return tuple(sorted(rows, key=lambda row: (row.name.count("+"), row.name)))


def _first_seed(rows: Iterable[Row]) -> tuple[Row, ...]:
    return tuple(replace(row, runs=row.runs[:1], baseline=row.baseline[:1]) for row in rows)


def blackbox(profile: Profile) -> tuple[Row, ...]:
    """T3's targets, seed 0: AT and AT + FSR; the paper profile adds TRADES and MART."""
    methods = ("at", "trades", "mart") if profile.name == "paper" else ("at",)
    return _first_seed(_method_rows(profile, profile.base, profile.place, methods))


def surrogates(profile: Profile) -> dict[str, Run]:
    """T3's sources: an AT network that shares no seed with the targets, and a naturally trained one."""
    twin = replace(profile.base, seed=next(seed for seed in profile.seeds if seed != 0))
    return {"AT twin": twin, "natural": _short(profile, replace(profile.base, method="natural"))}


def strength(profile: Profile) -> tuple[Row, ...]:
    """F6 and the audit: the main pair, seed 0."""
    return _first_seed(main_rows(profile))


def streams(profile: Profile) -> tuple[Row, ...]:
    """T7, F1, F2, F3, F8: AT + FSR, all seeds."""
    return (main_rows(profile)[1],)


MAKERS = (whitebox, deactivation, blackbox, components, settings, placement, streams, strength)
TABLE_ROWS: dict[str, Callable[[Profile], tuple[Row, ...]]] = {make.__name__: make for make in MAKERS}
TABLE_ROWS |= {"audit": strength, "study": study}
STUDY = ("whitebox", "components", "study")  # all that the study's profile plans


def rows_of(profile: Profile) -> dict[str, tuple[Row, ...]]:
    """Every set's rows; () where a profile plans none."""
    planned = STUDY if profile.scope == "study" else TABLE_ROWS
    return {kind: make(profile) if kind in planned else () for kind, make in TABLE_ROWS.items()}
