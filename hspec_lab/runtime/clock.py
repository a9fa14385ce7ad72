"""The device's clock for `trace.Recorder`: pairs of CUDA events, read after the run."""

import torch


class CudaClock:
    """Marks are events on the current stream; nothing waits until they are read."""

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def elapsed_us(self, begun: torch.cuda.Event, ended: torch.cuda.Event) -> float:
        """Device time between two marks, us."""
        ended.synchronize()
        return begun.elapsed_time(ended) * 1e3
