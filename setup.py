"""Which packages are installed, and which files beside their code; the rest: pyproject.toml."""

from setuptools import find_packages, setup

LIBRARY = find_packages(include=["hspec_lab", "hspec_lab.*"])

setup(
    packages=[*LIBRARY, "hspec_kernels", "hspec_profiles"],
    package_dir={"hspec_kernels": "kernels", "hspec_profiles": "profiles"},
    package_data={
        "hspec_lab": ["*.json", "*.jsonl", "*.md", "*.toml", "*.txt", "zoo/**/*"],
        "hspec_profiles": ["**/*"],
    },
    exclude_package_data={"": ["*.pyc"]},
)
