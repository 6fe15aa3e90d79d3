"""Air temperature over North America, the mean of each year from 1860 to 2099, by a climate model of the Met Office
under two scenarios of emissions: A1B, medium, and E1, which falls. Until 1999 they are the same.

In the package `iris-sample-data`, under the Open Government Licence.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import Tensor

FILES = {"A1B": "A1B_north_america.nc", "E1": "E1_north_america.nc"}
FIRST_YEAR = 1860


def load() -> dict[str, Tensor]:
    """Of each scenario: (240, 37, 49) in kelvin, by year, from south to north and from west to east."""
    package = importlib.util.find_spec("iris_sample_data")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the temperatures are a package: pip install --no-deps iris-sample-data")
    if importlib.util.find_spec("h5py") is None:
        raise ModuleNotFoundError("netCDF 4 files are read with a package: pip install h5py")
    import h5py

    fields = {}
    for name, file in FILES.items():
        with h5py.File(Path(package.origin).parent / "sample_data" / file) as source:
            fields[name] = torch.from_numpy(source["air_temperature"][:])
    return fields
