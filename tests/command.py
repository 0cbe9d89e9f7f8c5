"""The real command, as the tests start it in a process of its own."""

import os
import sys

COMMAND = [sys.executable, "-m", "http_capture.capture"]


def environment(**more: str) -> dict[str, str]:
    """This process's environment without settings of http-capture; PYTHONPATH works from any folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HTTP_CAPTURE_")}
    if path := kept.get("PYTHONPATH"):
        kept["PYTHONPATH"] = os.pathsep.join(os.path.abspath(part) for part in path.split(os.pathsep))
    return kept | more
