"""Puts the top level's run configs and prompts into the package; all else is in pyproject.toml."""

from setuptools import find_namespace_packages, setup

FOLDERS = {f"minigpt4.{name}": name for name in ("train_configs", "eval_configs", "prompts")}

setup(packages=[*find_namespace_packages(include=["minigpt4*"]), *FOLDERS], package_dir=FOLDERS)
