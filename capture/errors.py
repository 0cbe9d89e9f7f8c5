"""Errors, by who is at fault.

    HttpCaptureError
      OperatorError            something the operator can mend; one line: what, where, what to do
        UsageError         64
        DamagedInputError  65  the capture file is cut or damaged; what came before the damage was processed
        NoInputError       66
        UnavailableError   69  no such NIC, broker or topic
        UndeliveredError   74  records could not be delivered, or an output could not be written
        NotPermittedError  77
        ConfigurationError 78
      StoppedError          0  asked to stop before anything was read
      LedgerError          70  the ledger does not balance: a bug of ours
      WorkerDiedError      70  a worker died, and the run does not go on without it
      WorkerFailedError        what ended a worker; its exit code is that of what it raised

The guard has its own (http_capture.guard): 73, 75 and 76. Bad traffic is never an exception: it is counted.
"""


class HttpCaptureError(Exception):
    """Base of all errors that end a run; `exit_code` is what the process exits with (sysexits.h)."""

    exit_code = 70


class OperatorError(HttpCaptureError):
    """Something that the operator can mend. Its text is one line: what, where, what to do."""


class UsageError(OperatorError):
    exit_code = 64


class DamagedInputError(OperatorError):
    """A capture file is cut off or damaged; everything before the damage has been processed."""

    exit_code = 65


class NoInputError(OperatorError):
    """No such capture file, or it is not a capture file."""

    exit_code = 66


class UnavailableError(OperatorError):
    """No such NIC, or a broker or topic that is needed at the start is not there."""

    exit_code = 69


class UndeliveredError(OperatorError):
    """Records could not be delivered, or an output could not be written."""

    exit_code = 74


class NotPermittedError(OperatorError):
    exit_code = 77


class ConfigurationError(OperatorError):
    exit_code = 78


class StoppedError(HttpCaptureError):
    """The run was asked to stop while it was waiting to begin."""

    exit_code = 0


class LedgerError(HttpCaptureError):
    """The ledger does not balance: something was lost or counted twice. A bug of ours."""

    exit_code = 70


class WorkerDiedError(HttpCaptureError):
    """A worker process died, and the settings or the number of deaths say that the run does not go on."""


class WorkerFailedError(HttpCaptureError):
    """A worker has met an error that ends the run, as it would have without workers."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code
