"""Matrix-free curvature of a training objective and its spectrum."""

import logging
from typing import TYPE_CHECKING

from estimators.lazy import import_later

if TYPE_CHECKING:
    from estimators.curvature import GGN, Hessian
    from estimators.differences import DifferenceGGN, DifferenceHessian
    from estimators.distributed import Shard
    from estimators.eigenpairs import Eigenpairs, eigenpairs
    from estimators.errors import UserError
    from estimators.lanczos import Lanczos, Tridiagonal, lanczos
    from estimators.measure import SpectralMeasure
    from estimators.objective import Objective
    from estimators.operator import Operator, check_symmetric
    from estimators.penalty import L1, L2, Penalty
    from estimators.quadrature import averaged_gauss, even_bracket, gauss, gauss_radau, steady_gauss
    from estimators.spectrum import dense_measure, measure_of, spectral_measure, sphere_probes
    from estimators.trace import TraceEstimate, block_traces, diagonal, hutch_plus_plus, hutchinson, row_norms, xtrace

__all__ = [
    "GGN",
    "L1",
    "L2",
    "DifferenceGGN",
    "DifferenceHessian",
    "Eigenpairs",
    "Hessian",
    "Lanczos",
    "Objective",
    "Operator",
    "Penalty",
    "Shard",
    "SpectralMeasure",
    "TraceEstimate",
    "Tridiagonal",
    "UserError",
    "averaged_gauss",
    "block_traces",
    "check_symmetric",
    "dense_measure",
    "diagonal",
    "eigenpairs",
    "even_bracket",
    "gauss",
    "gauss_radau",
    "hutch_plus_plus",
    "hutchinson",
    "lanczos",
    "measure_of",
    "row_norms",
    "spectral_measure",
    "sphere_probes",
    "steady_gauss",
    "xtrace",
]

import_later(
    __name__,
    {
        "estimators.curvature": "GGN Hessian",
        "estimators.differences": "DifferenceGGN DifferenceHessian",
        "estimators.distributed": "Shard",
        "estimators.eigenpairs": "Eigenpairs eigenpairs",
        "estimators.errors": "UserError",
        "estimators.lanczos": "Lanczos Tridiagonal lanczos",
        "estimators.measure": "SpectralMeasure",
        "estimators.objective": "Objective",
        "estimators.operator": "Operator check_symmetric",
        "estimators.penalty": "L1 L2 Penalty",
        "estimators.quadrature": "averaged_gauss even_bracket gauss gauss_radau steady_gauss",
        "estimators.spectrum": "dense_measure measure_of spectral_measure sphere_probes",
        "estimators.trace": "TraceEstimate block_traces diagonal hutch_plus_plus hutchinson row_norms xtrace",
    },
)
logging.getLogger("estimators").addHandler(logging.NullHandler())
