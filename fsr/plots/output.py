"""Figures to files: PNG and PDF that name their runs, and that change only when what they show changes."""

import hashlib
import io
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.collections import Collection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from PIL import Image

from fsr import files
from fsr.config import Run, run_id
from fsr.files import FSRError, MissingRecord, write_bytes
from fsr.plots.style import STYLE
from fsr.store import environment

MAX_PNG = 150_000  # bytes; everything committed stays small
CHART_COLOURS = 4096  # charts have fewer: lines, bars and the greys around letters


@dataclass(frozen=True)
class Saved:
    """A figure on disk; in a notebook it shows exactly the PNG that was saved."""

    png: Path
    pdf: Path
    title: str

    def _repr_mimebundle_(self, include=None, exclude=None):
        data = self.png.read_bytes()
        return {"image/png": data, "text/plain": f"{self.title} ({self.png.name})"}, {
            "image/png": {"width": _width(data)}
        }


def _width(png: bytes) -> int:
    """Width on the screen, in CSS pixels of 1/96 inch, a little enlarged: figures are made for paper."""
    with Image.open(io.BytesIO(png)) as image:
        return round(image.width * 120 / STYLE["savefig.dpi"])


def _numbers(artist: Artist) -> Any:
    if isinstance(artist, Line2D):
        return artist.get_xydata()
    if isinstance(artist, Collection):
        return np.concatenate([np.asarray(artist.get_offsets(), float).ravel(), *_vertices(artist)])
    if isinstance(artist, Patch):
        return artist.get_path().vertices
    if isinstance(artist, AxesImage):
        return artist.get_array()
    return None


def _vertices(artist: Collection) -> list[np.ndarray]:
    return [np.asarray(path.vertices, float).ravel() for path in artist.get_paths()]


def _texts(figure: Figure) -> list[str]:
    """The words that were set; tick labels that matplotlib makes up follow from the numbers."""
    found = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    for ax in figure.axes:
        found += [text.get_text() for text in ax.texts]
        found += [ax.get_title(loc) for loc in ("left", "center", "right")] + [ax.get_xlabel(), ax.get_ylabel()]
        for axis in (ax.xaxis, ax.yaxis):
            found += map(str, getattr(axis.get_major_formatter(), "seq", []))
    return [*found, figure.get_supxlabel(), figure.get_suptitle()]


def digest(figure: Figure) -> str:
    """What a figure shows, as a hash: its data and its words, not its pixels, which differ between font versions."""
    sha = hashlib.sha256("\n".join(_texts(figure)).encode())
    for ax in figure.axes:
        for artist in (*ax.lines, *ax.patches, *ax.collections, *ax.images):
            numbers: np.ndarray = np.asarray(np.ma.filled(np.ma.asarray(_numbers(artist), float), 0.0))
            sha.update(np.round(numbers, 4).tobytes() + b"|")
    return sha.hexdigest()[:16]


def _code() -> str:
    """Hash of the code that draws: a figure is drawn again when it changes."""
    sha = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        sha.update(path.read_bytes())
    return sha.hexdigest()[:8]


def _commit(run: Run) -> str:
    try:
        return str(environment(run).get("commit"))
    except MissingRecord:
        return "not trained"


def _metadata(figure: Figure, title: str, runs) -> dict[str, str]:
    ids = sorted({run_id(run) for run in runs})
    commits = sorted({_commit(run)[:12] for run in runs})
    return {
        "Title": title,
        "Subject": f"runs: {', '.join(ids) or 'none'}",
        "Keywords": f"commits of the records: {', '.join(commits) or 'none'}; content {digest(figure)}-{_code()}",
    }


def _same(png: Path, metadata: dict[str, str]) -> bool:
    try:
        with Image.open(png) as image:
            return {key: image.info.get(key) for key in metadata} == metadata
    except (OSError, SyntaxError):  # not there, or damaged: PIL raises SyntaxError for a broken PNG chunk
        return False


def _png(figure: Figure, metadata: dict[str, str]) -> bytes:
    """PNG bytes in 256 colours: of a chart these are nearly all; a photograph only where it would be too large."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={**metadata, "Software": None})
    data = buffer.getvalue()
    with Image.open(buffer) as image:
        photograph = image.convert("RGB").getcolors(CHART_COLOURS) is None
    if photograph and len(data) <= MAX_PNG:
        return data
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, value in metadata.items():
        info.add_text(key, value)
    small = io.BytesIO()
    dpi = STYLE["savefig.dpi"]
    with Image.open(buffer) as image:
        image.convert("RGB").quantize(256).save(small, "PNG", optimize=True, pnginfo=info, dpi=(dpi, dpi))
    if len(small.getvalue()) > MAX_PNG:
        raise FSRError(f"{metadata['Title']}: {len(small.getvalue())} bytes as PNG; show less in it")
    return small.getvalue()


def _pdf(figure: Figure, metadata: dict[str, str]) -> bytes:
    buffer, fonts = io.BytesIO(), logging.getLogger("fontTools")
    level = fonts.level
    fonts.setLevel(logging.ERROR)  # it warns about the dates inside matplotlib's own fonts
    try:
        fixed = {"Creator": "fsr", "Producer": "matplotlib", "CreationDate": None}
        figure.savefig(buffer, format="pdf", metadata={**metadata, **fixed})
    finally:
        fonts.setLevel(level)
    return buffer.getvalue()


def _write(path: Path, data: bytes) -> None:
    if not path.exists() or path.read_bytes() != data:
        write_bytes(path, data)


def save(figure: Figure, profile: str, name: str, slug: str, runs=(), title: str | None = None) -> Saved:
    """figures/<profile>/<name>-<slug>.png and .pdf, with run ids and the records' commits inside, without a date.

    Files that already show the same content, drawn by the same code, are left untouched.
    """
    stem = files.figures(profile) / f"{name}-{slug}"
    saved = Saved(stem.with_suffix(".png"), stem.with_suffix(".pdf"), title or f"{name} {slug}")
    with mpl.rc_context(STYLE):
        metadata = _metadata(figure, f"{name} {slug} ({profile})", runs)
        if saved.pdf.exists() and _same(saved.png, metadata):
            return saved
        _write(saved.png, _png(figure, metadata))
        figure.set_layout_engine("none")  # the layout stays as it is: once is enough
        _write(saved.pdf, _pdf(figure, metadata))
    return saved


@dataclass(frozen=True)
class Picture:
    """A figure for the screen only: it shows itself in a notebook and is written nowhere."""

    png: bytes = field(repr=False)
    title: str

    @classmethod
    def of(cls, figure: Figure, title: str) -> "Picture":
        """The figure as PNG."""
        buffer = io.BytesIO()
        with mpl.rc_context(STYLE):
            figure.savefig(buffer, format="png", metadata={"Software": None})
        return cls(buffer.getvalue(), title)

    def _repr_mimebundle_(self, include=None, exclude=None):
        return {"image/png": self.png, "text/plain": self.title}, {"image/png": {"width": _width(self.png)}}
