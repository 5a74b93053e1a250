"""Builds the native kernels where a C++ compiler is at hand; without, torch's kernels serve, and `doctor` says so."""

import sys
from pathlib import Path

from setuptools import Extension, setup

NATIVE = Path("moe_local/kernels/native")


def native() -> list[Extension]:
    """The one extension module, of our sources and nanobind's; none where nanobind is missing."""
    try:
        import nanobind
    except ImportError:
        return []
    source = Path(nanobind.source_dir())
    options = ["/std:c++17", "/O2", "/EHsc"]
    if sys.platform != "win32":
        # Numbers must not depend on the processor: no products that some fuse into sums.
        options = ["-std=c++17", "-O3", "-ffp-contract=off", "-fno-strict-aliasing", "-fvisibility=hidden", "-g0"]
        options += ["-fno-wrapv"]  # which Python is compiled with, and which takes a third of the kernels' speed
        options += ["-Wno-maybe-uninitialized", "-Wno-uninitialized"]  # which GCC's own headers set off
    return [
        Extension(
            "moe_local.kernels.native._native",
            sources=list(map(str, sorted(NATIVE.glob("*.cpp")))),
            include_dirs=[nanobind.include_dir(), str(source), str(source.parent / "ext" / "robin_map" / "include")],
            depends=list(map(str, sorted(NATIVE.glob("*.hpp")))),
            extra_compile_args=options,
            language="c++",
            optional=True,
        )
    ]


setup(ext_modules=native())
