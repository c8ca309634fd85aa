"""Matrix-free curvature of a training objective and its spectrum."""

from estimators.curvature import GGN, Hessian, Operator
from estimators.distributed import Shard
from estimators.errors import UserError
from estimators.lanczos import Lanczos, Tridiagonal, lanczos
from estimators.objective import Objective
from estimators.penalty import L1, L2, Penalty
from estimators.quadrature import averaged_gauss, even_bracket, gauss, gauss_radau
from estimators.spectrum import SpectralMeasure, dense_measure, measure_of, spectral_measure, sphere_probes

__all__ = [
    "GGN",
    "L1",
    "L2",
    "Hessian",
    "Lanczos",
    "Objective",
    "Operator",
    "Penalty",
    "Shard",
    "SpectralMeasure",
    "Tridiagonal",
    "UserError",
    "averaged_gauss",
    "dense_measure",
    "even_bracket",
    "gauss",
    "gauss_radau",
    "lanczos",
    "measure_of",
    "spectral_measure",
    "sphere_probes",
]
