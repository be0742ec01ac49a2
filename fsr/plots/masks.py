"""F2: the mask itself: its histogram per temperature and how much of it is saturated."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fsr import experiments
from fsr.plots import readings, style


def _histogram(ax: Axes, tau: float, arrays: dict[str, np.ndarray]) -> None:
    for key, label, colour, dash in (
        ("hist_clean", "clean images", style.CLEAN, "-"),
        ("hist_adv", "adversarial images", style.ATTACKED, (0, (3, 1.5))),
    ):
        counts = np.asarray(arrays[key], dtype=float)
        share = counts / counts.sum() if counts.sum() else counts
        ax.stairs(share, arrays["edges"], color=colour, linewidth=1.6, linestyle=dash, label=label)
    ax.set(title=f"$\\tau$ = {tau:g}", xlim=(0, 1), xlabel="mask value $m$", yscale="log")
    ax.set_xticks([0, 0.5, 1])


def _saturation(ax: Axes, records: list[dict]) -> None:
    places = range(len(records))
    for key, label, colour, marker in (
        ("saturated_clean", "clean images", style.CLEAN, "o"),
        ("saturated_adv", "adversarial images", style.ATTACKED, "s"),
    ):
        ax.plot(places, [r[key] for r in records], color=colour, marker=marker, label=label)
    ax.set(title="saturated", xlabel="temperature $\\tau$", ylim=(-0.03, 1.03), xlim=(-0.4, len(records) - 0.6))
    ax.set_xticks(places, [f"{record['tau']:g}" for record in records])
    style.percent_axis(ax)


def mask_records(profile: str) -> list[tuple[dict, dict[str, np.ndarray]]]:
    """Mask analyses of the temperature sweep, by rising temperature, one per temperature."""
    found = {}
    for row in readings.rows(profile, "settings"):
        if row.axis == "tau" and (one := readings.analysis(profile, row.runs[0], "masks")) is not None:
            found[one[0]["tau"]] = one
    if not found and (main := readings.analysis(profile, experiments.main_pair(profile)[1], "masks")) is not None:
        found[main[0]["tau"]] = main
    return [found[tau] for tau in sorted(found)]


@style.styled
def mask_histograms(profile: str) -> Figure:
    """F2: per temperature, the distribution of m on clean and adversarial images; then its saturated share."""
    found = mask_records(profile)
    if not found:
        fig, only = style.panels(1, 1, 1.6)
        style.not_run(only[0][0], "masks of AT + FSR")
        return fig
    cols = min(5, len(found) + 1)
    rows = -(-(len(found) + 1) // cols)
    fig, grid = style.panels(rows, cols, 2.0 * rows + 0.5)
    axes = [ax for line in grid for ax in line]
    for ax, (record, arrays) in zip(axes, found, strict=False):
        _histogram(ax, record["tau"], arrays)
        if ax is not axes[0]:
            ax.sharey(axes[0])
            ax.tick_params(labelleft=False)
    axes[0].autoscale(axis="y")
    _saturation(axes[len(found)], [record for record, _ in found])
    for ax in axes[len(found) + 1 :]:
        style.blank(ax)
    axes[0].set_ylabel("share of activations")
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=2)
    style.foot(
        fig,
        f"{style.OF_EMA}; no noise; saturated: m below 0.05 or above 0.95, its slope at most a fifth of the largest",
    )
    return fig
