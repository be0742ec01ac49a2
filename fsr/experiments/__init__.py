"""Which runs, evaluations and analyses every table and figure needs, per profile."""

from itertools import zip_longest

from fsr.config import Analysis, Evaluation, Run
from fsr.experiments import measurements, plan
from fsr.experiments.measurements import CHECKPOINTS, COLUMNS, EPS_FACTORS, STEPS, has_heads
from fsr.experiments.plan import INTERVENTIONS, Row
from fsr.experiments.profiles import CONTROLS, PROFILES, Profile
from fsr.files import UsageError, did_you_mean

ROWS: dict[str, dict[str, tuple[Row, ...]]] = {name: plan.rows_of(profile) for name, profile in PROFILES.items()}


def _unique(runs) -> tuple[Run, ...]:
    return tuple(dict.fromkeys(run for run in runs if run is not None))


def _by_seed(some: tuple[Row, ...]) -> tuple[Run, ...]:
    """First every row's first seed, then every row's second: twins finish together."""
    return _unique(run for seed in zip_longest(*(row.runs for row in some)) for run in seed)


def _trainings(some: tuple[Row, ...]) -> tuple[Run, ...]:
    """Runs of rows that have an AT of their own, AT first, seed by seed."""
    return _unique(run for row in some if row.checkpoints for pair in zip(row.baseline, row.runs) for run in pair)


def _all(profile: Profile) -> tuple[Run, ...]:
    """Required first: the main pair seed by seed, T4's controls, TRADES and MART, the rest of T4, peers, sweeps."""
    of = ROWS[profile.name]
    controls = tuple(row for row in of["components"] if row.name in CONTROLS)
    main_net = [row for row in of["whitebox"] if row.runs[0].backbone == profile.base.backbone]
    here = tuple(row for row in main_net if row.runs[0].dataset == profile.base.dataset)
    sweeps = tuple(row for row in of["settings"] if not row.checkpoints)
    order = [plan.main_rows(profile), controls, here, of["components"], of["deactivation"]]
    runs = [run for some in order for run in _by_seed(some)]
    rest = [run for some in (sweeps, of["placement"], of["whitebox"], of["blackbox"]) for run in _by_seed(some)]
    return _unique([*runs, *_natural(profile), *rest, *_trainings(of["settings"])])


def _natural(profile: Profile) -> tuple[Run, ...]:
    """T3's sources, where the profile has a T3."""
    return tuple(plan.surrogates(profile).values()) if ROWS[profile.name]["blackbox"] else ()


def _sets(profile: Profile) -> dict[str, tuple[Run, ...]]:
    of = ROWS[profile.name]
    sets = {kind: _by_seed(some) for kind, some in of.items()}
    sets["settings"] = _unique([*sets["settings"], *_trainings(of["settings"])])
    sets["blackbox"] = _unique([*sets["blackbox"], *_natural(profile)])
    sets["audit"] = _unique([*_natural(profile)[:1], *sets["audit"]])  # what AT is attacked from
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
    "12-training-curves": ("whitebox", "study"),
    "13-attack-strength": ("strength",),
    "14-audit": ("audit",),
    "15-verdict": ("all",),
    "16-explore": ("streams", "whitebox"),
}
NOTEBOOKS: tuple[str, ...] = tuple(NEEDS)


def profile_of(name: str) -> Profile:
    """The profile of this name; an unknown one raises UsageError with the choices."""
    if name not in PROFILES:
        meant = did_you_mean(name, PROFILES)
        raise UsageError(f"unknown profile {name!r}{meant}; choose one of {', '.join(PROFILES)}")
    return PROFILES[name]


def _collect(profile: str, kind: str, run: Run, makers: dict) -> tuple:
    sets = SETS[profile_of(profile).name]
    if kind not in sets:
        raise UsageError(f"unknown set {kind!r}; choose one of {', '.join(sets)}")
    kinds = list(makers) if kind == "all" else [kind]
    some = [makers[name](PROFILES[profile], run) for name in kinds if name in makers and run in sets[name]]
    return tuple(dict.fromkeys(item for items in some for item in items))


def evaluations(profile: str, kind: str, run: Run) -> tuple[Evaluation, ...]:
    """What the set `kind` (or `all`) evaluates on this run, in order, each once; () for a run outside the set."""
    return _collect(profile, kind, run, measurements.EVALUATIONS)


def analyses(profile: str, kind: str, run: Run) -> tuple[Analysis, ...]:
    """What the set `kind` (or `all`) analyses on this run, each once; () for a run outside the set."""
    return _collect(profile, kind, run, measurements.ANALYSES)


def columns(profile: str, kind: str) -> dict[str, Evaluation]:
    """The columns of a set's table in order: metric -> the evaluation of the reported weights that fills it."""
    return measurements.columns_of(profile_of(profile), kind)


def main_pair(profile: str) -> tuple[Run, Run]:
    """AT and AT + FSR on the main backbone, seed 0."""
    plain, both = plan.main_rows(profile_of(profile))
    return plain.runs[0], both.runs[0]


def surrogates(profile: str) -> dict[str, Run]:
    """T3's sources: an AT network that shares no seed with the targets, and a naturally trained one."""
    return plan.surrogates(profile_of(profile))


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
