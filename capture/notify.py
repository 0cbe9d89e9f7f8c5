"""What systemd is told (sd_notify(3)), where it has asked for it: ready, alive, stopping. It never fails the run.

The loop tells that it is alive, and nothing else does: a loop that stalls is silent, and systemd ends it.
"""

import contextlib
import os
from collections.abc import MutableMapping

SAY_SECONDS = 1.0
NEVER = float("inf")


class Notify:
    """`alive()` at each turn of the loop, `say()` for the rest. Takes its variables out of `environ`, so that no child
    speaks in this process's name."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        address = environ.pop("NOTIFY_SOCKET", "")
        period = environ.pop("WATCHDOG_USEC", "")
        watched = environ.pop("WATCHDOG_PID", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        usable = period.isascii() and period.isdigit() and len(period) < 20 and int(period) > 0
        self._half_seconds = int(period) / 2e6 if usable and watched in ("", str(os.getpid())) else NEVER
        self._due = 0.0 if self._address and self._half_seconds < NEVER else NEVER

    def say(self, text: str, wait_seconds: float = SAY_SECONDS) -> None:
        """Sends assignments, a line each: "READY=1\\nSTATUS=recording eth1"."""
        if self._address:
            import socket

            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaking:
                speaking.settimeout(wait_seconds)
                speaking.sendto(text.encode("utf-8", "replace"), self._address)

    def alive(self, now_seconds: float) -> None:
        """Tells the watchdog, twice in its period and without waiting."""
        if now_seconds >= self._due:
            self._due = now_seconds + self._half_seconds
            self.say("WATCHDOG=1", 0.0)
