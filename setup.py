"""The part of the build that pyproject.toml cannot say: hot modules compiled by Cython.

HTTP_CAPTURE_EXTENSIONS=auto     compile; where that fails, install the plain Python, which is slower (default)
                        require  compile; a failure ends the build
                        skip     do not compile, and delete what an earlier in-place build left beside the sources
HTTP_CAPTURE_CHECKED=1           compile with bounds checks and assertions, for the fuzz run
"""

import os
import pathlib

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = pathlib.Path(__file__).resolve().parent
HOT = [
    "capture.source.block",
    "capture.source.files",
    "capture.source.ring",
    "capture.tunnel",
    "capture.decode",
    "capture.mirror",
    "capture.reassembly",
    "capture.connection",
    "capture.http.message",
    "capture.http.parser",
    "capture.http.exchange",
    "capture.encode",
    "capture.sink.null",
    "capture.frame_loop",
]
MODE = os.environ.get("HTTP_CAPTURE_EXTENSIONS", "auto")


class AllOrNone(build_ext):
    """Compiled modules know each other's C types, so some of them compiled and some not would not even import."""

    def run(self) -> None:
        try:
            super().run()
        except Exception as error:  # no compiler, no headers, no room: whatever it was, the plain Python works
            if MODE != "auto":
                raise
            print(f"http-capture: cannot compile the hot modules ({error}); installing plain Python, which is slower")
            for path in map(pathlib.Path, self.get_outputs()):
                path.unlink(missing_ok=True)
            self.extensions = []


def extensions() -> list[Extension]:
    if MODE not in ("auto", "require", "skip"):
        raise SystemExit(f"HTTP_CAPTURE_EXTENSIONS is {MODE!r}: must be auto, require or skip")
    if MODE == "skip":
        for name in HOT:
            path = ROOT / name.replace(".", "/")
            for stale in path.parent.glob(f"{path.name}.*.so"):
                stale.unlink()
        return []
    from Cython.Build import cythonize

    # The root of the repository is the package http_capture. Cython finds a .pxd by its full name only, and silently
    # goes without one that it does not find: so there is a folder in which the root has that name.
    named = ROOT / "build" / "named"
    named.mkdir(parents=True, exist_ok=True)
    link = named / "http_capture"
    if link.is_symlink():
        link.unlink()
    link.symlink_to(ROOT, target_is_directory=True)
    checked = os.environ.get("HTTP_CAPTURE_CHECKED") == "1"
    modules = [
        Extension(
            f"http_capture.{name}",
            [f"{name.replace('.', '/')}.py"],
            # -g0: what a debugger would want of the C that Cython writes is a fifth of the time and most of the size.
            extra_compile_args=[*(["-O1"] if checked else ["-O3", "-g0"]), "-w"],
        )
        for name in HOT
        if (ROOT / f"{name.replace('.', '/')}.py").exists()
    ]
    directives = {
        "language_level": "3",
        "boundscheck": checked,
        "wraparound": False,
        "initializedcheck": checked,
        "nonecheck": checked,
        "cdivision": True,
        "binding": True,
        "embedsignature": False,
    }
    return cythonize(
        modules, include_path=[str(named)], build_dir="build/c", compiler_directives=directives, quiet=True
    )


setup(ext_modules=extensions(), cmdclass={"build_ext": AllOrNone})
