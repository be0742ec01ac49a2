"""F3: what each stream knows about the class, under attack."""

from typing import Any

from matplotlib.figure import Figure

from fsr import statistics
from fsr.plots import readings, style, words

CHECKPOINTS = {"last": "last epoch", "ema": "EMA weights"}  # the first that was looked at
PROBES = {"aux": ("auxiliary head", style.BLUE, ""), "knn": ("k nearest neighbours", style.ORANGE, "//")}


def mean_counts(records: list[dict]) -> dict[tuple[str, str], tuple[float, int]]:
    """(stream, probe) -> (correct, n) of one seed, the mean over the runs: all see the same images, as in T7."""
    found: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for record in records:
        for row in record["rows"]:
            found.setdefault((row["stream"], row["probe"]), []).append((row["correct"], row["n"]))
    shares = {key: sum(correct / n for correct, n in counts) / len(counts) for key, counts in found.items()}
    least = {key: min(n for _, n in counts) for key, counts in found.items()}
    return {key: (least[key] * share, least[key]) for key, share in shares.items()}


def report_checkpoint(profile: str) -> tuple[list[dict], str]:
    """The records of AT + FSR's streams, a seed each, and in words whose weights they are; none: ([], "")."""
    row = readings.rows(profile, "streams")[0]
    for checkpoint, weights in CHECKPOINTS.items():
        records = readings.analysed(profile, row, "streams", checkpoint)
        if records:
            return records, weights
    return [], ""


def _bars(ax, total: dict, names: list[str]) -> None:
    """A bar per stream and probe with its share and interval; `not run` where there is none."""
    for shift, (probe, (label, colour, hatch)) in zip((-0.2, 0.2), PROBES.items(), strict=True):
        for i, stream in enumerate(names):
            if (stream, probe) not in total:
                look: dict[str, Any] = {
                    "rotation": 90,
                    "ha": "center",
                    "va": "bottom",
                    "fontsize": 6.5,
                    "color": "#666666",
                }
                ax.text(i + shift, 0.01, "not run", **look)
                continue
            correct, n = total[stream, probe]
            low, high = statistics.wilson(correct, n)
            share = correct / n
            ax.bar(i + shift, share, 0.37, color=colour, edgecolor="white", hatch=hatch, label=None if i else label)
            ax.errorbar(i + shift, share, [[share - low], [high - share]], color="black", linewidth=0.9, capsize=2)
            ax.text(i + shift, high + 0.012, f"{100 * share:.0f}", ha="center", va="bottom", fontsize=7)


@style.styled
def stream_bars(profile: str) -> Figure:
    """F3: bars of T7, mean over seeds with its 95 % intervals over images, chance level dotted."""
    records, weights = report_checkpoint(profile)
    fig, axes = style.panels(1, 1, 2.7)
    ax = axes[0][0]
    if not records:
        style.not_run(ax, "streams of AT + FSR")
        return fig
    total = mean_counts(records)
    names = list(words.STREAMS)
    _bars(ax, total, names)
    chance = 1 / records[0].get("classes", 10)
    ax.axhline(chance, color=style.GREY, linestyle=":", linewidth=1)
    beside: dict[str, Any] = {"ha": "left", "va": "center", "fontsize": 6.5, "color": style.GREY}
    ax.text(1.01, chance, "chance", transform=ax.get_yaxis_transform(), **beside)
    ax.set_xticks(range(len(names)), [f"{words.STREAMS[s]}\n{words.STREAM_WORDS[s]}" for s in names])
    highest = max(statistics.wilson(*counts)[1] for counts in total.values())
    ax.set(ylim=(0, min(1.08, 1.2 * highest)), xlim=(-0.55, len(names) - 0.45), ylabel="accuracy under PGD-20")
    ax.grid(axis="x", visible=False)
    style.percent_axis(ax)
    handles, labels = ax.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=2)
    seeds = f"mean of {len(records)} seeds" if len(records) > 1 else "one seed"
    least = min(n for _, n in total.values())
    style.foot(fig, f"{weights}, {seeds}; bars: 95 % intervals over the {least:,} images of each seed")
    return fig
