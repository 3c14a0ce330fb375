"""What pyproject.toml cannot express: packages are found, and two more lie outside the package's own folder."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages("code"), "imagenet_biases.scripts", "imagenet_biases.shipped"],
    script_name="setup.py",  # otherwise this file would be shipped, too: as a module of imagenet_biases.shipped
)
