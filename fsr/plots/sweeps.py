"""F4: accuracy against each setting of FSR, and against the place where it sits."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fsr.experiments import Row
from fsr.plots import readings, style, words

AXES = {
    "tau": "temperature $\\tau$",
    "lambda_sep": "weight $\\lambda_{sep}$",
    "lambda_rec": "weight $\\lambda_{rec}$",
    "mask": "kind of mask",
    "granularity": "one mask value per ...",
    "place": "place of the module",
}
VALUES = {"gumbel": "soft,\nnoise", "soft": "soft,\nno noise", "hard": "hard,\nnoise"}
LINES = {
    "clean": ("o", style.SKY),
    "pgd20": ("s", style.ORANGE),
    "ensemble": ("D", style.VERMILION),
}


def _positions(rows: list[Row]) -> tuple[list[float], list[str], bool]:
    numbers = [row.value for row in rows if isinstance(row.value, float)]
    if len(numbers) == len(rows):
        return numbers, [f"{v:g}" for v in numbers], True
    texts = [str(row.value) for row in rows]
    labels = [VALUES.get(v, v.replace("layer", "").replace("block", "")) for v in texts]
    return [float(i) for i in range(len(rows))], labels, False


def _baseline(ax: Axes, profile: str, row: Row, attack: str, colour: str) -> None:
    plain = readings.accuracy(readings.outcome(profile, row.plain[0], attack)) if row.plain else None
    if plain is not None:
        ax.axhline(plain.value, color=colour, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)


def _panel(ax: Axes, profile: str, rows: list[Row]) -> None:
    if len(rows) < 2:
        style.said(ax, "not varied\nin this profile")
        return
    if isinstance(rows[0].value, float):
        rows = sorted(rows, key=lambda row: float(row.value or 0))
    places, labels, numeric = _positions(rows)
    drawn = False
    for i, (attack, (marker, colour)) in enumerate(LINES.items()):
        found = [readings.accuracy(readings.outcome(profile, row.runs[0], attack)) for row in rows]
        points = [(x, a) for x, a in zip(places, found, strict=True) if a is not None]
        if not points:
            continue
        drawn = True
        shift = i - 1  # beside each other, so that no bar hides another
        xs = [x * 1.03**shift if numeric else x + 0.09 * shift for x, _ in points]
        ys = [a.value for _, a in points]
        errors = [[a.value - a.low for _, a in points], [a.high - a.value for _, a in points]]
        line = "-" if numeric else ""
        ax.errorbar(xs, ys, yerr=errors, marker=marker, color=colour, linestyle=line, capsize=2, elinewidth=0.9,
                    label=words.metric(attack))  # fmt: skip
        _baseline(ax, profile, rows[0], attack, colour)
    if not drawn:
        style.not_run(ax)
        return
    if numeric:
        ax.set_xscale("log")
        ax.minorticks_off()
    else:
        ax.set_xlim(-0.5, len(rows) - 0.5)
    ax.set_xticks(places, labels)
    style.percent_axis(ax)


@style.styled
def sweeps(profile: str) -> Figure:
    """F4: T5's and T6's runs as curves, seed 0, 95 % intervals; dashed lines: the same run without FSR."""
    groups: dict[str, list[Row]] = {axis: [] for axis in AXES}
    for row in (*readings.rows(profile, "settings"), *readings.rows(profile, "placement")):
        groups[str(row.axis)].append(row)
    fig, grid = style.panels(2, 3, 4.6 if any(len(rows) > 1 for rows in groups.values()) else 2.4, sharey=True)
    axes = [ax for line in grid for ax in line]
    for ax, (axis, title) in zip(axes, AXES.items(), strict=True):
        _panel(ax, profile, groups[axis])
        ax.set_title(title)
    shown = [ax for ax in axes if ax.get_legend_handles_labels()[1]]
    if shown:
        for line in grid:
            line[0].set_ylabel("accuracy")
        fig.legend(*shown[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(LINES))
        images = readings.images(profile, "pgd20")
        count = "all test images" if images is None else f"{images:,} test images"
        told = f"seed 0, {readings.weights(profile)}, {count}; bars: 95 % intervals; dashed: plain AT; "
        told += "a place is a stage's number"
        style.foot(fig, told)
    return fig
