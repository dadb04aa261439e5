"""The packages of a wheel; the rest is in pyproject.toml.

Git writes the links unfused_fast/{kernels,shards,cli.py} as text where the system has no symbolic links, as Windows:
then what they name is packed in their place.
"""

from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

PACKAGE = Path("unfused_fast")
TEXTS = [name for name in ("kernels", "shards") if (PACKAGE / name).is_file()]


class BuildPy(build_py):
    """Finds cli.py where it is."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        found = super().find_package_modules(package, package_dir)
        return [
            (of, name, "cli.py" if TEXTS and (of, name) == ("unfused_fast", "cli") else path)
            for of, name, path in found
        ]


named = find_packages(include=[pattern for name in TEXTS for pattern in (name, f"{name}.*")])
setup(
    packages=find_packages(include=["unfused_fast", "unfused_fast.*"]) + [f"unfused_fast.{name}" for name in named],
    package_dir={f"unfused_fast.{name}": name for name in TEXTS},
    cmdclass={"build_py": BuildPy},
)
