"""F7 and F10: what FSR adds, in points: per attack, and against the length of training."""

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from fsr import experiments
from fsr.config import Evaluation
from fsr.files import MissingRecord
from fsr.plots import records, style
from fsr.plots.curves import overfitting
from fsr.tables import labels as naming


@style.styled
def gains(profile: str) -> Figure:
    """F7: the gain of FSR per attack, method and network, with paired 95 % intervals over images."""
    frame = records.frame(profile, "T1", kind="gain", checkpoint=records.report_checkpoint(profile))
    if frame.empty:
        raise records.nothing(profile, "gains")
    data = frame["dataset"].map(naming.dataset)
    where = data + ", " + frame["network"] if data.nunique() > 1 else frame["network"]
    frame = frame.assign(method=frame["row"].str.split(":").str[0], where=where)
    attacks, methods = list(dict.fromkeys(frame["metric"])), list(dict.fromkeys(frame["method"]))
    count = frame["where"].nunique()
    grid = sns.FacetGrid(frame, col="where", col_wrap=min(3, count), height=2.9)
    grid.figure.set_size_inches(style.WIDTH if count > 1 else 5.2, 2.9 * -(-count // 3))
    for place, part in frame.groupby("where", sort=False):
        shown = [method for method in methods if method in set(part["method"])]
        for i, method in enumerate(shown):
            rows = part[part["method"] == method]
            at = [attacks.index(metric) + 0.2 * (i - (len(shown) - 1) / 2) for metric in rows["metric"]]
            style.points(grid.axes_dict[place], rows, at, style.METHODS[method], horizontal=True)
        for metric in set(attacks) - set(part["metric"]):
            grid.axes_dict[place].text(0, attacks.index(metric), " not run", va="center", fontsize=7, color="#666666")
    grid.refline(x=0, color="black", linestyle="-", linewidth=0.8).set_titles("{col_name}")
    grid.set(yticks=range(len(attacks)), yticklabels=[naming.metric(attack) for attack in attacks])
    grid.set(ylim=(len(attacks) - 0.5, -0.5))
    labels = {method: f"{method} − {method.removesuffix(' + FSR')}" for method in methods}
    grid.set_xlabels("gain in points" if len(methods) > 1 else f"{labels[methods[0]]}, points").set_ylabels("")
    handles = style.dots({text: style.METHODS[method] for method, text in labels.items()})
    return style.finish(grid.figure, _gains_note(profile, frame), handles)


def _gains_note(profile: str, frame: pd.DataFrame) -> str:
    most = int(frame["n"].max())
    fewer = frame[frame["n"] < most].groupby("metric", sort=False)["n"].min()
    sentence = f"{most:,} test images" + "".join(f" ({naming.metric(name)}: {int(n):,})" for name, n in fewer.items())
    thin = "; thin: over seeds too" if "seeds_low" in frame and frame["seeds_low"].notna().any() else ""
    return f"{records.setting(profile, network=False)}, {sentence}; bars: paired 95 % over images{thin}"


def _by_length(profile: str) -> pd.DataFrame:
    """Gain in Ensemble per training length and checkpoint: this profile's runs, then full-width pairs of the data."""
    base, collected = experiments.profile_of(profile).base, []
    for name, chosen in experiments.PROFILES.items():
        if name != profile and (chosen.scope != "pair" or chosen.base.dataset != base.dataset):
            continue
        of = experiments.ROWS[name]
        pairs = [row for row in of["whitebox"] if row.baseline and row.runs[0].method == "at"][:1]
        pairs += [row for row in of["settings"] if row.axis == "epochs"]
        for row in {row.runs[0].epochs: row for row in pairs}.values():
            for checkpoint in experiments.CHECKPOINTS:
                evaluation = Evaluation(attack="ensemble", checkpoint=checkpoint, images=chosen.images)
                try:
                    cell = records.paired(row.runs, row.baseline, evaluation)
                except MissingRecord:
                    continue
                run = row.runs[0]
                cell |= {"network": naming.network(run), "epochs": run.epochs, "checkpoint": checkpoint}
                collected.append(cell | {"own": name == profile})
    return pd.DataFrame(collected)


@style.styled
def training_length(profile: str) -> Figure:
    """F10: the gain of FSR in Ensemble against training epochs; for a study of overfitting, its training curves."""
    if experiments.profile_of(profile).scope == "study":
        return overfitting(profile)
    frame = _by_length(profile)
    if frame.empty or frame.loc[frame["own"], "epochs"].nunique() < 2:
        raise records.nothing(profile, "trainings of several lengths")
    figure, (axes,) = style.panels(1, 3, 2.7, sharex=True, sharey=True)
    networks = dict(zip(dict.fromkeys(frame["network"]), (style.METHODS["AT + FSR"], style.BLACK, style.GREEN)))
    for ax, checkpoint in zip(axes, experiments.CHECKPOINTS):
        for network, colour in networks.items():
            rows = frame[(frame["network"] == network) & (frame["checkpoint"] == checkpoint)].sort_values("epochs")
            style.points(ax, rows, rows["epochs"], colour, linestyle="-")
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set(title=naming.WEIGHTS[checkpoint], xlabel="training epochs", xscale="log")
        ax.set_xticks(lengths := sorted(frame["epochs"].unique()), [str(length) for length in lengths])
        ax.minorticks_off()
    axes[0].set_ylabel("AT + FSR − AT, points")
    data = naming.dataset(experiments.profile_of(profile).base.dataset)
    note = f"{data}, Ensemble, {frame['seeds'].min()} to {frame['seeds'].max()} seeds"
    return style.finish(figure, f"{note}; bars: paired 95 % intervals over images", style.dots(networks))
