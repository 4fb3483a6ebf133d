"""Environment variables that change the behaviour of libraries.

The results of a run depend on its settings only. Variables of Accelerate, torch, oneDNN, MKL, NumPy, OpenCV, cuBLAS and
cuDNN that would change results are removed before these libraries are loaded, with a warning that names them. The
number of threads, `OMP_NUM_THREADS`, stays: it belongs to the machine and is recorded in run.json. The variables of
single libraries for it (`MKL_NUM_THREADS`, ...) would make some sums depend on a number that is not.

Variables of distributed launchers must be complete and consistent, or they are refused by name.
"""

from __future__ import annotations

import fnmatch
from collections.abc import MutableMapping, Sequence

from leoclr.datasets.errors import RunError

_CHANGE_RESULTS = (
    # accumulation, precision, compilation, sharding, clipping, layout of the processes
    *("ACCELERATE_*", "FSDP_*", "MEGATRON_LM_*", "PARALLELISM_CONFIG_*", "XLA_USE_BF16", "XLA_DOWNCAST_BF16"),
    # which arithmetic a processor is used for
    *("ATEN_CPU_CAPABILITY", "NPY_DISABLE_CPU_FEATURES", "NPY_ENABLE_CPU_FEATURES", "OPENBLAS_CORETYPE"),
    *("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"),
    *("ONEDNN_CPU_ISA_HINTS", "DNNL_CPU_ISA_HINTS", "TORCH_MKLDNN_*", "TORCH_LINEAR_FLATTEN_3D"),
    *("MKL_CBWR", "MKL_DEBUG_CPU_TYPE", "MKL_ENABLE_INSTRUCTIONS", "MKL_DISABLE_FAST_MM", "MKL_DYNAMIC"),
    *("OMP_DYNAMIC", "KMP_DETERMINISTIC_REDUCTION", "KMP_FORCE_REDUCTION", "OPENCV_*", "JSIMD_*"),
    # threads of one library, which differ from those of torch
    *("MKL_NUM_THREADS", "MKL_DOMAIN_NUM_THREADS", "OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "BLIS_NUM_THREADS"),
    # TF32 and the choice of algorithms on a GPU; compilation
    *("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "NVIDIA_TF32_OVERRIDE", "TORCH_BLAS_PREFER_*", "TORCH_LINALG_PREFER_*"),
    *("DISABLE_ADDMM_CUDA_LT", "CUBLAS_WORKSPACE_CONFIG", "CUBLASLT_*", "TORCH_CUBLASLT_*", "TORCH_CUDNN_*", "CUDNN_*"),
    *("PYTORCH_TUNABLEOP_*", "PYTORCH_JIT", "TORCHINDUCTOR_*", "TORCHDYNAMO_*", "TORCH_COMPILE_*"),
)
_CHANGE_NOTHING = (  # among those above
    *("ACCELERATE_LOG_LEVEL", "ACCELERATE_ENABLE_RICH", "CUDNN_LOG*", "OPENCV_LOG_LEVEL", "CUDNN_*_DBG"),
    *("TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_COMPILE_THREADS", "TORCHINDUCTOR_WORKER_START", "TORCHDYNAMO_VERBOSE"),
    *("TORCH_COMPILE_DEBUG*",),
)
CUBLAS = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"  # what `leoclr.cli.run.devices` sets itself
_NO_EFFECT = ("", "0", "1", "no", "none", "false", "default", "cpu")  # what `accelerate launch` sets for nothing

_OTHER_LAUNCHERS = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "MPI_LOCALNRANKS")
_NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_PLACES = ("MASTER_ADDR", "MASTER_PORT")


def drop_what_changes_results(environment: MutableMapping[str, str]) -> list[str]:
    """Take out of the environment what would change results, and return `NAME=value` of what would have.

    Call it before torch, NumPy or OpenCV are imported, which read some of these once.
    """
    names = [name for name in environment if _matches(name, _CHANGE_RESULTS) and not _matches(name, _CHANGE_NOTHING)]
    dropped = [(name, environment.pop(name)) for name in sorted(names)]
    threads = environment.get("OMP_NUM_THREADS")
    harmless = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_", "MEGATRON_LM_")
    return [
        f"{name}={value}"
        for name, value in dropped
        if (name, value) != CUBLAS
        and not (name.startswith(harmless) and value.strip().lower() in _NO_EFFECT)
        and not (name.endswith("_NUM_THREADS") and value == threads)
    ]


def settle_launch(environment: MutableMapping[str, str]) -> None:
    """Check the variables of a launcher. Where there is one process all of them are taken out.

    Raises:
        RunError: Some say that there are several processes, and others are missing or contradict them.
    """
    numbers = {name: _number(name, environment[name]) for name in _NUMBERS if name in environment}
    ranks, rank = numbers.get("WORLD_SIZE"), numbers.get("RANK")
    if ranks is None or ranks == 1:
        for name in ("RANK", "LOCAL_RANK"):
            if numbers.get(name, 0) > 0:
                said = "is not set" if ranks is None else "is 1"
                raise RunError(f"{name}={numbers[name]}, but WORLD_SIZE {said}; unset {name}, or start with torchrun")
        _refuse_other_launchers(environment)
        for name in (*_NUMBERS, *_PLACES, *_OTHER_LAUNCHERS):
            environment.pop(name, None)
        return
    missing = [name for name in (*_NUMBERS[:3], *_PLACES) if name not in environment]
    if missing:
        raise RunError(
            f"WORLD_SIZE={ranks}, but {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set; unset "
            "WORLD_SIZE, or start with torchrun or --num-processes, which set all of them"
        )
    assert rank is not None
    if rank >= ranks:
        raise RunError(f"RANK={rank}, but WORLD_SIZE={ranks}: ranks are 0 to {ranks - 1}")
    if (local := numbers.get("LOCAL_WORLD_SIZE")) is not None and numbers["LOCAL_RANK"] >= local:
        raise RunError(f"LOCAL_RANK={numbers['LOCAL_RANK']}, but LOCAL_WORLD_SIZE={local}")
    _number("MASTER_PORT", environment["MASTER_PORT"])
    for name in _OTHER_LAUNCHERS:
        environment.pop(name, None)


def _refuse_other_launchers(environment: MutableMapping[str, str]) -> None:
    for name in _OTHER_LAUNCHERS:
        if environment.get(name, "1") not in ("0", "1", ""):
            raise RunError(
                f"{name}={environment[name]}: mpirun or srun started several processes, which would not know of each "
                "other; start with torchrun or --num-processes, or unset it"
            )


def _number(name: str, text: str) -> int:
    lowest = 1 if "SIZE" in name or "PORT" in name else 0
    if not (text.strip().isdecimal() and int(text) >= lowest):
        raise RunError(f"{name}={text!r} is no whole number from {lowest} on; unset it, or start with torchrun")
    return int(text)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
