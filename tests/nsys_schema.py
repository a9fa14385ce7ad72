"""The tables of an `nsys` SQLite export as NVIDIA documents them, and files made of such tables.

source: NVIDIA Nsight Systems User Guide, "SQLite Schema Reference",
    https://docs.nvidia.com/nsight-systems/UserGuide/index.html, for schemas 3.16 to 3.20. Columns
    in the order of the guide, `!` where it says NOT NULL; what a column holds is of its type.
    Event types: "NVTX Event Type Values" there.
"""

import sqlite3
import struct
from contextlib import closing

_PLACE = "start! end! deviceId! contextId! greenContextId streamId! correlationId globalPid"
_INTEGERS = {
    "StringIds": "id! value!:TEXT",
    "META_DATA_EXPORT": "name!:TEXT value:TEXT",
    "ANALYSIS_DETAILS": "globalVid! duration! startTime! stopTime!",
    "PROCESSES": "globalPid pid name:TEXT",
    "ThreadNames": "nameId! priority globalTid",
    "NVTX_EVENTS": "start! end eventType! rangeId category color text:TEXT globalTid endGlobalTid "
    "textId domainId uint64Value int64Value doubleValue:REAL uint32Value int32Value "
    "floatValue:REAL jsonTextId jsonText:TEXT binaryData:TEXT",
    "NVTX_PAYLOAD_SCHEMAS": "domainId schemaId name:TEXT type flags numEntries payloadSize alignTo",
    "NVTX_PAYLOAD_SCHEMA_ENTRIES": "domainId! schemaId! idx! flags type name:TEXT "
    "description:TEXT arrayOrUnionDetail offset",
    "CUPTI_ACTIVITY_KIND_RUNTIME": "start! end! eventClass! globalTid correlationId nameId! "
    "returnValue! callchainId",
    "CUPTI_ACTIVITY_KIND_KERNEL": f"{_PLACE} demangledName! shortName! mangledName launchType "
    "cacheConfig registersPerThread! gridX! gridY! gridZ! blockX! blockY! blockZ! "
    "staticSharedMemory! dynamicSharedMemory! localMemoryPerThread! localMemoryTotal! gridId! "
    "sharedMemoryExecuted graphNodeId sharedMemoryLimitConfig",
    "CUPTI_ACTIVITY_KIND_MEMCPY": f"{_PLACE} bytes! copyKind! deprecatedSrcId srcKind dstKind "
    "srcDeviceId srcContextId dstDeviceId dstContextId migrationCause graphNodeId virtualAddress",
    "CUPTI_ACTIVITY_KIND_MEMSET": f"{_PLACE} value! bytes! graphNodeId memKind",
    "CUPTI_ACTIVITY_KIND_GRAPH_TRACE": f"{_PLACE} graphId! graphExecId!",
    "TARGET_INFO_GPU": "vmId! id! name:TEXT busLocation:TEXT isDiscrete l2CacheSize totalMemory "
    "memoryBandwidth clockRate smCount pwGpuId uuid:TEXT luid chipName:TEXT cuDevice "
    "ctxswDevPath:TEXT ctrlDevPath:TEXT revision nodeMask constantMemory maxIPC "
    "maxRegistersPerBlock maxShmemPerBlock maxShmemPerBlockOptin maxShmemPerSm maxRegistersPerSm "
    "threadsPerWarp asyncEngines maxWarpsPerSm maxBlocksPerSm maxThreadsPerBlock maxBlockDimX "
    "maxBlockDimY maxBlockDimZ maxGridDimX maxGridDimY maxGridDimZ computeMajor computeMinor "
    "smMajor smMinor",
    "TARGET_INFO_CUDA_DEVICE": "gpuId cudaId! pid! uuid:TEXT numMultiprocessors",
    "ENUM_NSYS_EVENT_TYPE": "id! name:TEXT label:TEXT",
    "ENUM_NSYS_EVENT_CLASS": "id! name:TEXT label:TEXT",
    "ENUM_CUDA_MEMCPY_OPER": "id! name:TEXT label:TEXT",
}
CATEGORY, MARK, PUSH_POP, START_END, DOMAIN = 33, 34, 59, 60, 75
KEYED = ("StringIds", "ENUM_NSYS_EVENT_TYPE", "ENUM_NSYS_EVENT_CLASS", "ENUM_CUDA_MEMCPY_OPER")
INT64 = 17  # NVTX_PAYLOAD_ENTRY_TYPE_INT64 of nvToolsExtPayload.h


def columns(table):
    """(name, type, whether NULL is refused) of each column of a documented table."""
    found = []
    for word in _INTEGERS[table].split():
        name, _, kind = word.partition(":")
        found.append((name.rstrip("!"), kind or "INTEGER", name.endswith("!")))
    return found


TABLES = tuple(_INTEGERS)


def global_id(pid, tid=0):
    """A thread as exports serialize it, on some machine."""
    return 1 << 56 | 2 << 48 | pid << 24 | tid


TID = global_id(77, 5)


def made(path, version="3.20.2", without=(), **tables):
    """Write an export of the given tables, each a list of rows that name their columns.

    Columns that a row leaves out are NULL, or 0 where NULL is refused; tables come into being
    with their first row.  `without` are "table.column" that this export does not have.
    """
    with closing(sqlite3.connect(path)) as db, db:
        if version:
            add(db, "META_DATA_EXPORT", {"name": "EXPORT_SCHEMA_VERSION", "value": version})
        for table, rows in tables.items():
            for row in rows:
                add(db, table, row, without)
    return path


def add(db, table, row, without=()):
    """Insert one row; the table is made if it is not there."""
    kept = [c for c in columns(table) if f"{table}.{c[0]}" not in without]
    parts = [f'"{name}" {kind}{" NOT NULL" * sure}' for name, kind, sure in kept]
    key = ", PRIMARY KEY (id)" if table in KEYED else ""
    db.execute(f'CREATE TABLE IF NOT EXISTS "{table}" ({", ".join(parts)}{key})')
    row = {name: 0 for name, _, sure in kept if sure} | row
    names = ", ".join(f'"{name}"' for name in row)
    db.execute(f'INSERT INTO "{table}" ({names}) VALUES ({marks(row)})', list(row.values()))


def marks(row):
    """Placeholders for a row."""
    return ", ".join("?" * len(row))


def strings(*values):
    """Rows of StringIds, numbered from 1."""
    return [{"id": id, "value": value} for id, value in enumerate(values, 1)]


def event(start, end, text=None, kind=PUSH_POP, tid=TID, **more):
    """A row of NVTX_EVENTS."""
    return {"start": start, "end": end, "eventType": kind, "text": text, "globalTid": tid} | more


def our_domain(*categories, id=3):
    """The events that name our domain and its categories, numbered from 1."""
    rows = [event(0, None, "hspec_lab", DOMAIN, domainId=id)]
    for number, name in enumerate(categories, 1):
        rows.append(event(0, None, name, CATEGORY, domainId=id, category=number))
    return rows


def struct_schema(schema, *names, domain=3, wrapped=None):
    """Rows that describe a struct of int64; the first offset is NULL, as nsys leaves it.

    With `wrapped`, a schema's number, each field is a struct of one int64 itself: so NVTX for
    Python describes them.
    """
    about = {"domainId": domain, "schemaId": schema}
    size = 8 * len(names)
    entries = [
        about | {"idx": i, "type": wrapped or INT64, "name": name, "offset": 8 * i or None}
        for i, name in enumerate(names)
    ]
    if wrapped:
        one = {"domainId": domain, "schemaId": wrapped, "idx": 0, "type": INT64, "name": "int64"}
        entries.append(one)
    return {
        "NVTX_PAYLOAD_SCHEMAS": [about | {"numEntries": len(names), "payloadSize": size}],
        "NVTX_PAYLOAD_SCHEMA_ENTRIES": entries,
    }


def struct_payload(schema, *numbers, domain=3):
    """Bytes of such a struct behind the header of 32 bytes that exports put before it."""
    size = 8 * len(numbers)
    return struct.pack(f"<4Q{len(numbers)}q", domain, schema, size, 32 + size, *numbers)


def our_event(start, end, name, category, payload=None, **more):
    """A range of ours as NVTX brings it: registered, in a category, with a struct."""
    return event(start, end, category=category, textId=name, domainId=3, binaryData=payload, **more)


NAMES = strings("round", "draft", "verify_target", "attention", "emitted", "unknown to us")
WORDS = our_domain("round", "head/draft", "target/verify")
PID = global_id(77)


def on_device(start, end, correlation, name=1, pid=PID, **more):
    place = {"start": start, "end": end, "correlationId": correlation, "globalPid": pid}
    return place | {"demangledName": name, "shortName": name, "streamId": 7} | more


def call(start, correlation, name, tid=TID):
    return {
        "start": start,
        "end": start + 5,
        "globalTid": tid,
        "correlationId": correlation,
        "nameId": name,
    }


def only(found, name):
    row = found.ranges[found.ranges["name"] == name]
    assert len(row) == 1
    return row.iloc[0]
