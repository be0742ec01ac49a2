"""The few exceptions a user sees, each with the exit code that the command line returns."""


class FSRError(Exception):
    """Something failed; what succeeded is kept and the next call goes on from there."""

    exit_code = 1


class UsageError(FSRError):
    """Wrong use: the message is one line that says what is wrong and what to type."""

    exit_code = 2


class MissingData(UsageError):
    """A data set is not where it should be, or not whole."""


class CorruptFile(FSRError):
    """A checkpoint, record, history or outcomes file does not match its hash or cannot be read."""


class MissingRecord(FSRError):
    """A record that a reader needs is not there; the message names the command that makes it."""


class Busy(FSRError):
    """Another process is computing the same thing and did not finish in time."""


class Diverged(FSRError):
    """A loss became NaN or infinite; the last good checkpoint is kept."""


class TimeUp(FSRError):
    """The time limit was reached: the checkpoint is whole and the same command resumes."""


class Interrupted(FSRError):
    """A signal asked to stop: the checkpoint is whole and the same command resumes."""

    exit_code = 130
