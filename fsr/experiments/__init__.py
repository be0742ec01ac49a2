"""Which runs, evaluations and analyses every table and figure needs, per profile."""

from itertools import zip_longest

from fsr.config import Analysis, Evaluation, Run
from fsr.experiments import rows, wanted
from fsr.experiments.profiles import PROFILES, Profile
from fsr.experiments.rows import CONTROLS, INTERVENTIONS, Row
from fsr.experiments.wanted import CHECKPOINTS, COLUMNS, EPS_FACTORS, STEPS, has_heads
from fsr.files import UsageError

_ROWS = {
    "whitebox": rows.whitebox,
    "deactivation": rows.deactivation,
    "blackbox": rows.blackbox,
    "components": rows.components,
    "settings": rows.settings,
    "placement": rows.placement,
    "streams": rows.streams,
    "strength": rows.strength,
    "audit": rows.strength,
}
ROWS: dict[str, dict[str, tuple[Row, ...]]] = {
    name: {kind: make(profile) for kind, make in _ROWS.items()} for name, profile in PROFILES.items()
}


def _unique(runs) -> tuple[Run, ...]:
    return tuple(dict.fromkeys(run for run in runs if run is not None))


def _by_seed(some: tuple[Row, ...]) -> tuple[Run, ...]:
    """First every row's first seed, then every row's second: twins finish together."""
    return _unique(run for seed in zip_longest(*(row.runs for row in some)) for run in seed)


def _all(profile: Profile) -> tuple[Run, ...]:
    """Required first: the main pair seed by seed, T4's controls, TRADES and MART, the rest of T4, peers, sweeps."""
    of = ROWS[profile.name]
    controls = [row for row in of["components"] if row.name in rows.CONTROLS]
    main_net = [row for row in of["whitebox"] if row.runs[0].backbone == profile.base.backbone]
    here = [row for row in main_net if row.runs[0].dataset == profile.base.dataset]
    natural = tuple(rows.surrogates(profile).values())
    order = [rows.main_rows(profile), controls, here, of["components"], of["deactivation"]]
    runs = [run for some in order for run in _by_seed(tuple(some))]
    rest = [run for kind in ("settings", "placement", "whitebox", "blackbox") for run in _by_seed(of[kind])]
    return _unique([*runs, *natural, *rest])


def _sets(profile: Profile) -> dict[str, tuple[Run, ...]]:
    sets = {kind: _by_seed(some) for kind, some in ROWS[profile.name].items()}
    sets["blackbox"] = _unique([*sets["blackbox"], *rows.surrogates(profile).values()])
    sets["audit"] = _unique([rows.surrogates(profile)["AT twin"], *sets["audit"]])  # what AT is attacked from
    return {**sets, "all": _all(profile)}


SETS: dict[str, dict[str, tuple[Run, ...]]] = {name: _sets(profile) for name, profile in PROFILES.items()}
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
    "12-training-curves": ("whitebox",),
    "13-attack-strength": ("strength",),
    "14-audit": ("audit",),
    "15-verdict": ("all",),
    "16-explore": ("streams", "whitebox"),
}
NOTEBOOKS: tuple[str, ...] = tuple(NEEDS)


def profile_of(name: str) -> Profile:
    """The profile of this name; an unknown one raises UsageError with the choices."""
    if name not in PROFILES:
        raise UsageError(f"unknown profile {name!r}; choose one of {', '.join(PROFILES)}")
    return PROFILES[name]


def _set_of(profile: str, kind: str) -> tuple[Run, ...]:
    profile_of(profile)
    if kind not in SETS[profile]:
        raise UsageError(f"unknown set {kind!r}; choose one of {', '.join(SETS[profile])}")
    return SETS[profile][kind]


def _collect(profile: str, kind: str, run: Run, makers: dict) -> tuple:
    names = list(makers) if kind == "all" else [kind]
    some = [makers[name](PROFILES[profile], run) for name in names if name in makers and run in _set_of(profile, name)]
    return tuple(dict.fromkeys(item for items in some for item in items))


def evaluations(profile: str, kind: str, run: Run) -> tuple[Evaluation, ...]:
    """What the set `kind` (or `all`) evaluates on this run, in order, each once; () for a run outside the set."""
    _set_of(profile, kind)
    return _collect(profile, kind, run, wanted.EVALUATIONS)


def analyses(profile: str, kind: str, run: Run) -> tuple[Analysis, ...]:
    """What the set `kind` (or `all`) analyses on this run, each once; () for a run outside the set."""
    _set_of(profile, kind)
    return _collect(profile, kind, run, wanted.ANALYSES)


def columns(profile: str, kind: str) -> dict[str, Evaluation]:
    """The columns of a set's table in order: metric -> the evaluation of `last` that fills it."""
    return wanted.columns(profile_of(profile), kind)


def main_pair(profile: str) -> tuple[Run, Run]:
    """AT and AT + FSR on the main backbone, seed 0."""
    plain, both = rows.main_rows(profile_of(profile))
    return plain.runs[0], both.runs[0]


def named(profile: str) -> dict[str, Run]:
    """Seed 0's runs on the main data set and backbone by label: natural, at, at+fsr, trades, ..., at+residual.

    Only runs with default settings: sweeps share the label of the run they vary and are left out.
    """
    base = profile_of(profile).base
    runs: dict[str, Run] = {}
    for run in SETS[profile]["all"]:
        if (run.dataset, run.backbone, run.seed) == (base.dataset, base.backbone, 0):
            runs.setdefault(run.label, run)
    return runs


__all__ = [
    "CHECKPOINTS",
    "COLUMNS",
    "CONTROLS",
    "EPS_FACTORS",
    "INTERVENTIONS",
    "NEEDS",
    "NOTEBOOKS",
    "PROFILES",
    "ROWS",
    "SETS",
    "STEPS",
    "Row",
    "analyses",
    "columns",
    "evaluations",
    "has_heads",
    "main_pair",
    "named",
    "profile_of",
]
