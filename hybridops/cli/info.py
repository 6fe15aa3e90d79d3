"""Versions, hardware, and which back ends are here or why not."""

from __future__ import annotations

import argparse
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import hybridops


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(args: argparse.Namespace) -> int:
    print(f"hybridops   {hybridops.__version__}, {Path(hybridops.__file__).parent}")
    print(f"torch       {torch.__version__}")
    print(f"triton      {_version('triton')}")
    print(f"python      {platform.python_version()}, {platform.platform()}")
    print(f"cpu         {_cpu_name()}, torch uses {torch.backends.cpu.get_cpu_capability()}")
    print(f"threads     {torch.get_num_threads()} of {os.cpu_count()}")
    for gpu in _gpus() or ["none"]:
        print(f"gpu         {gpu}")
    for name, description in hybridops.backends.available().items():
        print(f"{name:<12}{_absent(name)}{description}")
    return 0


def _absent(name: str) -> str:
    if hybridops.backends.is_available(name):
        return ""
    return "not built here, because " if name == "native" else "not here: "


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cpu_name() -> str:
    """platform.processor() is empty on most Linux systems, which have it in /proc."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _gpus() -> list[str]:
    found = []
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        found.append(f"{gpu.name}, sm_{gpu.major}{gpu.minor}, {gpu.total_memory / 2**30:.0f} GiB")
    return found
