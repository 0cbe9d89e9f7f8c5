"""The sink that counts records and keeps none. Compiled, because it is what the pipeline itself is measured with."""

import cython

from . import SinkStats


@cython.cclass
class Null:
    """Counts records and keeps none."""

    def __init__(self) -> None:
        self.records = self.bytes = 0

    def send(self, key: bytes, value: bytes, headers: list[tuple[str, bytes]], timestamp_ms: int) -> None:
        self.records += 1
        self.bytes += len(value)

    def poll(self) -> None:
        pass

    def flush(self, timeout_seconds: float) -> int:
        return 0

    def filled(self) -> float:
        return 0.0

    def stats(self) -> SinkStats:
        return SinkStats(self.records, self.bytes, self.records)

    def close(self) -> None:
        pass
