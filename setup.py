"""What pyproject.toml cannot express: the packages are found, and the scripts and the tables are two packages besides."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages("code"), "imagenet_biases.scripts", "imagenet_biases.shipped"],
    script_name="setup.py",  # otherwise this file counts as a module of imagenet_biases.shipped, whose folder is this one
)
