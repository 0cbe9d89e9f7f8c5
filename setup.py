"""The part of the build that pyproject.toml cannot say: hot modules compiled by Cython.

HTTP_CAPTURE_EXTENSIONS=auto     compile; where that fails, install the plain Python, which is slower (default)
                        require  compile; a failure ends the build
                        skip     do not compile, and delete what an earlier in-place build left beside the sources
HTTP_CAPTURE_CHECKED=1           compile with bounds checks and assertions, for the fuzz run
HTTP_CAPTURE_PROFILE=PYTHON      compile twice (gcc): first what counts how often each branch is taken, and when
                        tests/bench/training.py has run on that, for good, laid out by the counts. PYTHON has the
                        dependencies. Where the training fails, `require` ends the build, `auto` goes on without
"""

import copy
import os
import pathlib
import shutil
import subprocess

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
    "capture.ended",
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
PROFILE = os.environ.get("HTTP_CAPTURE_PROFILE", "")
# The counts fit only code that is the same up to where they are placed: so -O3 too, without some of what comes behind,
# which is up to two fifths of the time.
COUNT = [
    *("-fprofile-generate", "-fprofile-update=single", "-fno-tree-pre", "-fno-gcse", "-fno-tree-dominator-opts"),
    *("-fno-schedule-insns2", "--param=inline-unit-growth=0"),
]
# Partial training: what was not run is compiled as ever; without it, for size. The switches stay in the module, where a
# test finds them.
USE = ["-fprofile-use", "-fprofile-correction", "-fprofile-partial-training", "-frecord-gcc-switches"]
# Where gcc has counted how long copies are, it writes `rep movs` for them, and beginning one takes longer than most of
# them are long: 7 to 9 % of all time. The library's memcpy is faster at any length.
USE_X86 = ["-mmemcpy-strategy=libcall:-1:noalign"]


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

    def build_extensions(self) -> None:
        if PROFILE and self.extensions:
            self.force = True  # whatever an earlier build has left: it may have no profile
            use = self.profile()
            for extension in self.extensions:
                extension.extra_compile_args += use
        super().build_extensions()

    def profile(self) -> list[str]:
        """Leaves the counts beside the objects, where gcc looks for them when it writes these objects again. Returns
        the options for that; none where there is no profile, and then it has been said why."""
        version = subprocess.run([*self.compiler.compiler_so, "--version"], capture_output=True, text=True, check=False)
        if "Free Software Foundation" not in version.stdout:
            print("http-capture: the compiler is not gcc: compiling without a profile")
            return []
        try:
            self.train(pathlib.Path("build/profile").resolve())
        except Exception as error:
            if MODE != "auto":
                raise RuntimeError(f"no profile, as the training failed: {error}") from error
            print(f"http-capture: no profile, as the training failed ({error}): compiling without")
            return []
        machine = subprocess.check_output([*self.compiler.compiler_so, "-dumpmachine"], text=True)
        return [*USE, *USE_X86] if machine.startswith("x86_64") else USE

    def train(self, folder: pathlib.Path) -> None:
        """Compiles the modules that count into the folder, and runs the training on them."""
        final = self.extensions, self.build_lib
        self.extensions = list(map(copy.copy, self.extensions))
        for extension in self.extensions:
            extension.extra_compile_args = [*extension.extra_compile_args, *COUNT]
            extension.extra_link_args = [*extension.extra_link_args, "-fprofile-generate"]
        self.build_lib = str(folder)
        shutil.rmtree(folder, ignore_errors=True)
        counts = pathlib.Path(self.build_temp)
        for old in counts.rglob("*.gcda"):
            old.unlink()
        try:
            super().build_extensions()
        finally:
            self.extensions, self.build_lib = final
        for package, sources in (self.distribution.package_dir or {}).items():
            to = folder / package.replace(".", "/")
            shutil.copytree(sources, to, ignore=shutil.ignore_patterns("*.so"), dirs_exist_ok=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HTTP_CAPTURE_")}
        subprocess.run([PROFILE, "tests/bench/training.py"], check=True, env={**environment, "PYTHONPATH": str(folder)})
        if len(list(counts.rglob("*.gcda"))) != len(self.extensions):
            raise RuntimeError("the training did not run all of these modules")


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
