"""The tables of `nsys export --type sqlite` that an export of ours fills, and its conventions.

source: NVIDIA Nsight Systems User Guide, "SQLite Schema Reference" and "Common SQLite Examples",
    https://docs.nvidia.com/nsight-systems/UserGuide/index.html; schema 3.20.
"""

import numpy as np
import pandas as pd

from hspec_lab.timeline import UNKNOWN

SCHEMA = (3, 20, 2)
_INT, _REAL, _TEXT = "INTEGER", "REAL", "TEXT"
_SURE = "INTEGER NOT NULL"
_ENUM = {"id": "INTEGER NOT NULL PRIMARY KEY", "name": _TEXT, "label": _TEXT}
_ON_DEVICE = {
    "start": _SURE,
    "end": _SURE,
    "deviceId": _SURE,
    "contextId": _SURE,
    "greenContextId": _INT,
    "streamId": _SURE,
    "correlationId": _INT,
    "globalPid": _INT,
}

TABLES = {
    "StringIds": {"id": "INTEGER NOT NULL PRIMARY KEY", "value": "TEXT NOT NULL"},
    "META_DATA_EXPORT": {"name": "TEXT NOT NULL", "value": _TEXT},
    "ANALYSIS_DETAILS": {
        "globalVid": _SURE,
        "duration": _SURE,
        "startTime": _SURE,
        "stopTime": _SURE,
    },
    "PROCESSES": {"globalPid": _INT, "pid": _INT, "name": _TEXT},
    "ThreadNames": {"nameId": _SURE, "priority": _INT, "globalTid": _INT},
    "NVTX_EVENTS": {
        "start": _SURE,
        "end": _INT,
        "eventType": _SURE,
        "rangeId": _INT,
        "category": _INT,
        "color": _INT,
        "text": _TEXT,
        "globalTid": _INT,
        "endGlobalTid": _INT,
        "textId": _INT,
        "domainId": _INT,
        "uint64Value": _INT,
        "int64Value": _INT,
        "doubleValue": _REAL,
        "uint32Value": _INT,
        "int32Value": _INT,
        "floatValue": _REAL,
        "jsonTextId": _INT,
        "jsonText": _TEXT,
        "binaryData": _TEXT,
    },
    "CUPTI_ACTIVITY_KIND_RUNTIME": {
        "start": _SURE,
        "end": _SURE,
        "eventClass": _SURE,
        "globalTid": _INT,
        "correlationId": _INT,
        "nameId": _SURE,
        "returnValue": _SURE,
        "callchainId": _INT,
    },
    "CUPTI_ACTIVITY_KIND_KERNEL": {
        **_ON_DEVICE,
        "demangledName": _SURE,
        "shortName": _SURE,
        "mangledName": _INT,
        "launchType": _INT,
        "cacheConfig": _INT,
        "registersPerThread": _SURE,
        "gridX": _SURE,
        "gridY": _SURE,
        "gridZ": _SURE,
        "blockX": _SURE,
        "blockY": _SURE,
        "blockZ": _SURE,
        "staticSharedMemory": _SURE,
        "dynamicSharedMemory": _SURE,
        "localMemoryPerThread": _SURE,
        "localMemoryTotal": _SURE,
        "gridId": _SURE,
        "sharedMemoryExecuted": _INT,
        "graphNodeId": _INT,
        "sharedMemoryLimitConfig": _INT,
    },
    "CUPTI_ACTIVITY_KIND_MEMCPY": {
        **_ON_DEVICE,
        "bytes": _SURE,
        "copyKind": _SURE,
        "deprecatedSrcId": _INT,
        "srcKind": _INT,
        "dstKind": _INT,
        "srcDeviceId": _INT,
        "srcContextId": _INT,
        "dstDeviceId": _INT,
        "dstContextId": _INT,
        "migrationCause": _INT,
        "graphNodeId": _INT,
        "virtualAddress": _INT,
    },
    "CUPTI_ACTIVITY_KIND_MEMSET": {
        **_ON_DEVICE,
        "value": _SURE,
        "bytes": _SURE,
        "graphNodeId": _INT,
        "memKind": _INT,
    },
    "TARGET_INFO_GPU": {"vmId": _SURE, "id": _SURE, "name": _TEXT, "busLocation": _TEXT}
    | dict.fromkeys(
        "isDiscrete l2CacheSize totalMemory memoryBandwidth clockRate smCount pwGpuId".split(), _INT
    )
    | {"uuid": _TEXT, "luid": _INT, "chipName": _TEXT, "cuDevice": _INT}
    | {"ctxswDevPath": _TEXT, "ctrlDevPath": _TEXT}
    | dict.fromkeys("revision nodeMask constantMemory maxIPC maxRegistersPerBlock".split(), _INT)
    | dict.fromkeys(
        "maxShmemPerBlock maxShmemPerBlockOptin maxShmemPerSm maxRegistersPerSm".split(), _INT
    )
    | dict.fromkeys(
        "threadsPerWarp asyncEngines maxWarpsPerSm maxBlocksPerSm maxThreadsPerBlock".split(), _INT
    )
    | dict.fromkeys([f"max{what}Dim{d}" for what in ("Block", "Grid") for d in "XYZ"], _INT)
    | dict.fromkeys("computeMajor computeMinor smMajor smMinor".split(), _INT),
    "TARGET_INFO_CUDA_DEVICE": {
        "gpuId": _INT,
        "cudaId": _SURE,
        "pid": _SURE,
        "uuid": _TEXT,
        "numMultiprocessors": _INT,
    },
    "ENUM_NSYS_EVENT_TYPE": _ENUM,
    "ENUM_NSYS_EVENT_CLASS": _ENUM,
    "ENUM_CUDA_MEMCPY_OPER": _ENUM,
    # ours: what copies and fills were called, for which the layout has no column
    "HSPEC_LAB_NAMES": {"activity": "TEXT NOT NULL", "row": _SURE, "nameId": _SURE},
}

CATEGORY, MARK, PUSH_POP, START_END, DOMAIN_CREATE = 33, 34, 59, 60, 75
EVENT_TYPES = {
    CATEGORY: "NvtxCategory",
    MARK: "NvtxMark",
    PUSH_POP: "NvtxPushPopRange",
    START_END: "NvtxStartEndRange",
    DOMAIN_CREATE: "NvtxDomainCreate",
}
EVENT_CLASSES = {0: "TRACE_PROCESS_EVENT_CUDA_RUNTIME", 1: "TRACE_PROCESS_EVENT_CUDA_DRIVER"}
MEMCPY = {
    0: ("CUDA_MEMCPY_KIND_UNKNOWN", "Unknown"),
    1: ("CUDA_MEMCPY_KIND_HTOD", "Host-to-Device"),
    2: ("CUDA_MEMCPY_KIND_DTOH", "Device-to-Host"),
    8: ("CUDA_MEMCPY_KIND_DTOD", "Device-to-Device"),
    9: ("CUDA_MEMCPY_KIND_HTOH", "Host-to-Host"),
    10: ("CUDA_MEMCPY_KIND_PTOP", "Peer-to-Peer"),
}
ENUMS = {
    "ENUM_NSYS_EVENT_TYPE": [(id, name, name) for id, name in EVENT_TYPES.items()],
    "ENUM_NSYS_EVENT_CLASS": [(id, name, name) for id, name in EVENT_CLASSES.items()],
    "ENUM_CUDA_MEMCPY_OPER": [(id, *names) for id, names in MEMCPY.items()],
}


def create(name: str) -> str:
    """The statement that makes one of `TABLES`."""
    columns = ", ".join(f'"{column}" {kind}' for column, kind in TABLES[name].items())
    return f'CREATE TABLE "{name}" ({columns})'


def global_id(pid: int, tid: int = 0, hardware: int = 0, machine: int = 0) -> int:
    """A process or thread as `nsys` serializes it: 8 bits hardware, 8 machine, 24 and 24."""
    return hardware << 56 | machine << 48 | pid << 24 | tid


PROCESS = global_id(1, hardware=0x48, machine=0x53)


def threads(threads: pd.Series) -> list[int | None]:
    """Threads as `nsys` serializes them: small numbers within `PROCESS`, others are ids already."""
    return [
        None if tid == UNKNOWN else PROCESS | tid if 0 <= tid < 1 << 24 else tid
        for tid in threads.tolist()
    ]


def crossing(ranges: pd.DataFrame) -> np.ndarray:
    """Which ranges begin inside another of their thread and end after it."""
    found = np.zeros(len(ranges), dtype=bool)
    order = np.lexsort((-ranges["end_ns"], ranges["start_ns"], ranges["thread"]))
    keys = [ranges[name].to_numpy()[order].tolist() for name in ("thread", "start_ns", "end_ns")]
    stack: list[int] = []
    last = None
    for row, (thread, start, end) in enumerate(zip(*keys, strict=True)):
        if thread != last:
            stack, last = [], thread
        while stack and stack[-1] <= start:
            stack.pop()
        if stack and stack[-1] < end:
            found[order[row]] = True
        else:
            stack.append(end)
    return found


def short_name(name: str) -> str:
    """A kernel's name without namespaces, types and arguments."""
    bare = name.split("<")[0].split("(")[0].strip().split(" ")[-1].split("::")[-1]
    return bare or name


def copy_kind(name: str) -> int:
    """Which way a copy went, by the names that profilers give it."""
    for id, (symbol, label) in MEMCPY.items():
        short = symbol.rsplit("_", 1)[1].replace("TO", "to")
        if id and (short in name or label in name):
            return id
    return 0
