"""The command line's commands; `fsr.__main__` runs them."""
