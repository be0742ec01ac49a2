"""One spelling for methods, networks, attacks and streams in figures and sentences, the tables' where they have one."""

from fsr.tables.names import METHODS, dataset, metric, network

__all__ = ["STREAMS", "STREAM_WORDS", "dataset", "method", "metric", "network"]

MODULES = {
    "fsr": "FSR",
    "separation": "separation only",
    "residual": "residual, no mask",
    "aux": "auxiliary head only",
}
STREAMS = {
    "f": "$f$",
    "robust": "$f^{+}$",
    "nonrobust": "$f^{-}$",
    "recalibrated": "$\\tilde{f}^{\\,-}$",
    "output": "$\\tilde f$",
}
STREAM_WORDS = {
    "f": "input",
    "robust": "robust",
    "nonrobust": "non-robust",
    "recalibrated": "recalibrated",
    "output": "output",
}


def method(label: str) -> str:
    """`at+fsr` as it is read: AT + FSR."""
    names = METHODS | MODULES
    return " + ".join(names.get(part, part) for part in label.split("+"))
