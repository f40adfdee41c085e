"""Four packages from four folders; `find_packages()` alone would also install top-level `runtime` and `tests`."""

from setuptools import find_packages, setup

HOMES = {"gamma_export": ".", "gamma_runtime": "runtime", "gamma_calib": "calib", "gamma_training": "training"}

setup(
    packages=[p for home in HOMES.values() for p in find_packages(home, include=["gamma_*"])],
    package_dir={name: f"{home}/{name}" for name, home in HOMES.items()},
    include_package_data=False,  # package_data says it all; else data folders are taken for packages
    package_data={name: ["py.typed", "data/*", "data/**/*"] for name in HOMES},
    exclude_package_data={"": ["*.pyc"]},  # gamma_training.data is a package of source files
)
