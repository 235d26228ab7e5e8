"""Builds the one extension module; all else stands in pyproject.toml."""

from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

PARTS = sorted(str(path) for path in Path("src/nray/core").glob("*.[ph]*"))

setup(
    ext_modules=cythonize(
        [
            Extension(
                "nray._core",
                ["src/nray/_core.pyx"],
                include_dirs=["src/nray/core"],
                depends=PARTS,
                extra_compile_args=["-O3", "-std=gnu11", "-Wall", "-Wno-unused-function"],
            )
        ],
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "embedsignature": True,
        },
        include_path=["src/nray/core"],
    )
)
