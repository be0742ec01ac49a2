"""A figure for the screen only: it shows itself in a notebook and is written nowhere."""

import io
from dataclasses import dataclass, field

import matplotlib as mpl
from matplotlib.figure import Figure

from fsr.plots.style import STYLE

INCH = 120  # pixels of the screen per inch of a figure made for paper


@dataclass(frozen=True)
class Picture:
    """PNG bytes that a notebook displays, with their width in pixels."""

    png: bytes = field(repr=False)
    title: str
    width: int = 0

    @classmethod
    def of(cls, figure: Figure, title: str) -> "Picture":
        """The figure as PNG."""
        buffer = io.BytesIO()
        with mpl.rc_context(STYLE):
            figure.savefig(buffer, format="png", metadata={"Software": None})
        return cls(buffer.getvalue(), title, round(INCH * figure.get_figwidth()))

    def _repr_mimebundle_(self, include=None, exclude=None):
        return {"image/png": self.png, "text/plain": self.title}, {"image/png": {"width": self.width}}
