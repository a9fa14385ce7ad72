"""Record one configuration so that every microsecond can be looked at, alone or under Nsight.

    settings   what nsys and ncu are asked: profiles/nsight and a configuration -> commands
    script     a program that decodes one configuration, to be run where the tools are
    process    one of those commands, as a process with a log and a time limit
    record     decoding with modules, kernels or NVTX ranges -> run folder
    kernels    what a device ran, by torch.profiler, placed on the clock of the spans
    nsight     a run under nsys, or one phase's kernels under ncu
    results    a trace's analysis, written into the run folder it belongs to

Only `record` and `kernels` need torch, so nothing is imported here.
"""
