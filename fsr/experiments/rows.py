"""The rows of every table: names a reader knows, and the runs (one per seed) that each row is made of."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from fsr.config import FSRSpec, PeerSpec, Run
from fsr.experiments.profiles import Profile

INTERVENTIONS = {
    "mask_one": "m = 1 at test (FSR bypassed)",
    "no_recalibration": "R = 0 at test",
    "mask_random": "random mask at test",
    "mask_constant": "constant mask at test",
    "mask_shuffled": "shuffled mask at test",
}
CONTROLS = ("same-capacity residual, no mask", "auxiliary heads only")  # is it the mask, or only more network?


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a table: its name, its runs in the order of their seeds, and the runs its gain is measured against.

    axis, value: the setting that T5 and T6 vary and its value here; intervention: T4's controls that act at
    test time on the same trained runs, so their gain is against these runs left alone.
    """

    name: str
    runs: tuple[Run, ...]
    plain: tuple[Run, ...] = ()
    axis: str | None = None
    value: float | str | None = None
    intervention: str | None = None


def with_fsr(run: Run, place: tuple[str, ...], **fields) -> Run:
    """The same run with FSR, or a variant of it, at this place."""
    return replace(run, module=FSRSpec(at=place, **fields))


def seeded(run: Run, seeds: Iterable[int]) -> tuple[Run, ...]:
    """The run once per seed."""
    return tuple(replace(run, seed=seed) for seed in seeds)


def short(profile: Profile, run: Run) -> Run:
    """ci gives everything but the main pair a single epoch."""
    return replace(run, epochs=1) if profile.scope == "smoke" else run


def method_rows(profile: Profile, base: Run, place: tuple[str, ...], methods=("at", "trades", "mart")) -> list[Row]:
    """T1's rows of one data set and backbone: each method without and with FSR."""
    rows = []
    for method in methods:
        main = method == "at" and base == profile.base
        run = base if main else short(profile, replace(base, method=method))
        seeds = profile.seeds if main else profile.other_seeds
        plain = seeded(run, seeds)
        both = seeded(with_fsr(run, place), seeds)
        rows += [Row(name=method.upper(), runs=plain), Row(name=f"{method.upper()} + FSR", runs=both, plain=plain)]
    return rows


def whitebox(profile: Profile) -> tuple[Row, ...]:
    """T1."""
    if profile.scope == "pair":
        return tuple(method_rows(profile, profile.base, profile.place, ("at",)))
    rows = method_rows(profile, profile.base, profile.place)
    for base, place in profile.others:
        rows += method_rows(profile, base, place, ("at", "trades", "mart") if profile.name == "paper" else ("at",))
    return tuple(rows)


def main_rows(profile: Profile) -> tuple[Row, Row]:
    """AT and AT + FSR on the main backbone, all seeds."""
    plain, both = method_rows(profile, profile.base, profile.place, ("at",))
    return plain, both


def _variant(profile: Profile, name: str, run: Run, seeds=None, **labels) -> Row:
    plain = main_rows(profile)[0].runs
    return Row(name=name, runs=seeded(short(profile, run), seeds or profile.other_seeds), plain=plain, **labels)


def deactivation(profile: Profile) -> tuple[Row, ...]:
    """T2."""
    plain, both = main_rows(profile)
    peers = () if profile.scope == "pair" else ("fd", "cas", "cifs")
    at = {"fd": (), "cas": profile.peers_at, "cifs": profile.peers_at}
    rows = [
        _variant(profile, f"AT + {name.upper()}", replace(profile.base, module=PeerSpec(name=name, at=at[name])))
        for name in peers
    ]
    return plain, *rows, both


def components(profile: Profile) -> tuple[Row, ...]:
    """T4: the trained variants and controls, then the controls that act at test time."""
    plain, both = main_rows(profile)
    variants: dict[str, dict] = {
        "separation only": {"kind": "separation", "lambda_rec": 0.0},
        "recalibration without L_sep": {"lambda_sep": 0.0},
        "recalibration without L_rec": {"lambda_rec": 0.0},
        "recalibration without either": {"lambda_sep": 0.0, "lambda_rec": 0.0},
        CONTROLS[0]: {"kind": "residual"},
        CONTROLS[1]: {"kind": "aux"},
    }
    if profile.scope == "pair":
        variants = {}
    if profile.scope == "smoke":
        variants = {name: variants[name] for name in ("separation only", CONTROLS[0])}
    trained = [
        _variant(
            profile,
            name,
            with_fsr(profile.base, profile.place, **fields),
            profile.control_seeds if name in CONTROLS else None,
        )
        for name, fields in variants.items()
    ]
    controls = [replace(both, name=text, plain=both.runs, intervention=name) for name, text in INTERVENTIONS.items()]
    return plain, both, *trained, *controls


SWEEPS: dict[str, tuple] = {
    "tau": (0.05, 0.5, 1.0),
    "lambda_sep": (0.5, 2.0),
    "lambda_rec": (0.5, 2.0),
    "mask": ("soft", "hard"),
    "granularity": ("channel", "spatial"),
}
DEFAULTS = {name: getattr(FSRSpec(), name) for name in SWEEPS}


def settings(profile: Profile) -> tuple[Row, ...]:
    """T5: one setting at a time, seed 0; the default of each setting is the main AT + FSR run, shared."""
    main = seeded(with_fsr(profile.base, profile.place), (0,))[0]
    scopes: dict[str, dict[str, tuple]] = {"full": SWEEPS, "smoke": {"tau": (1.0,)}, "pair": {}}
    sweeps = scopes[profile.scope]
    rows = []
    for axis, default in DEFAULTS.items():
        plain = main_rows(profile)[0].runs[:1]
        rows.append(Row(name=f"{axis} = {default}", runs=(main,), plain=plain, axis=axis, value=default))
        for value in sweeps.get(axis, ()):
            run = with_fsr(profile.base, profile.place, **{axis: value})
            rows.append(_variant(profile, f"{axis} = {value}", run, seeds=(0,), axis=axis, value=value))
    return tuple(rows)


def placement(profile: Profile) -> tuple[Row, ...]:
    """T6: every stage, and several at once, seed 0."""
    plain, both = main_rows(profile)
    own = " + ".join(profile.place) or "layer4"
    places = () if profile.scope == "pair" else profile.placements
    rows = [Row(name=own, runs=both.runs[:1], plain=plain.runs[:1], axis="place", value=own)]
    for place in places:
        name = " + ".join(place)
        rows.append(_variant(profile, name, with_fsr(profile.base, place), seeds=(0,), axis="place", value=name))
    return tuple(sorted(rows, key=lambda row: (row.name.count("+"), row.name)))


def blackbox(profile: Profile) -> tuple[Row, ...]:
    """T3's targets, seed 0: AT and AT + FSR; the paper profile adds TRADES and MART."""
    methods = ("at", "trades", "mart") if profile.name == "paper" else ("at",)
    rows = method_rows(profile, profile.base, profile.place, methods)
    return tuple(replace(row, runs=row.runs[:1], plain=row.plain[:1]) for row in rows)


def surrogates(profile: Profile) -> dict[str, Run]:
    """T3's sources: an AT network that shares no seed with the targets, and a naturally trained one."""
    twin = replace(profile.base, seed=next(seed for seed in profile.seeds if seed != 0))
    return {"AT twin": twin, "natural": short(profile, replace(profile.base, method="natural"))}


def strength(profile: Profile) -> tuple[Row, ...]:
    """F6 and the audit: the main pair, seed 0."""
    return tuple(replace(row, runs=row.runs[:1], plain=row.plain[:1]) for row in main_rows(profile))


def streams(profile: Profile) -> tuple[Row, ...]:
    """T7, F1, F2, F3, F8: AT + FSR, all seeds."""
    return (main_rows(profile)[1],)
