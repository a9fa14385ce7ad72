"""One configuration under Nsight Systems or Nsight Compute, in a fresh process.

Where a tool is missing the script and the exact command are written down instead, to be run where
it is installed.
"""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from hspec_lab import trace_in
from hspec_lab.capture.landing import aside, land, only_run
from hspec_lab.capture.process import run_logged
from hspec_lab.capture.results import with_counts, write_analysis
from hspec_lab.capture.script import COMMAND, RUNS, SCRIPT, program_text, put, shell_text
from hspec_lab.capture.settings import ncu_profile, nsys_export, nsys_profile
from hspec_lab.config import Config
from hspec_lab.store import read_run

_LOG = "log.txt"
_FORBIDDEN = (
    "this user may not read the GPU's counters: see developer.nvidia.com/ERR_NVGPUCTRPERM, or run "
    "the command as an administrator"
)


@dataclass(frozen=True)
class Plan:
    """What is to be watched.

    Attributes:
        config: what is decoded.
        n_rounds: of the first prompt only so many rounds; None: everything.
        modules: attention, mlp and lm_head get ranges, too.
        phase: whose kernels Nsight Compute measures; None: Nsight Systems watches all.
        timeout_s: seconds that a command may take.
    """

    config: Config
    n_rounds: int | None = None
    modules: bool = False
    phase: str | None = None
    timeout_s: float = 1800.0

    def __post_init__(self):
        if self.n_rounds is not None and self.n_rounds < 1:
            raise ValueError(f"--rounds must be >= 1, got {self.n_rounds}")
        if not 0 < self.timeout_s < float("inf"):
            raise ValueError(f"--timeout must be above 0 seconds, got {self.timeout_s}")
        if self.phase is not None and self.config.device == "cpu":
            raise ValueError("ncu measures kernels of a GPU; this configuration runs on the cpu")
        if self.modules and self.config.device != "cpu":
            raise ValueError(
                "modules are timed on the cpu; on a GPU a stage is one CUDA graph, and --nsys and "
                "--kernels see its kernels"
            )
        self.command(Path("."))

    @property
    def tool(self) -> str:
        """Which tool watches."""
        return "nsys" if self.phase is None else "ncu"

    def command(self, folder: Path) -> list[str]:
        """The command that watches the script of a folder."""
        script = [sys.executable, str(folder / SCRIPT)]
        if self.phase is None:
            script.append(str(folder / RUNS))
            return nsys_profile(script, folder / "trace", self.config.device)
        # kernels run one by one and several times: such a run's times are nobody's
        return ncu_profile([*script, "-"], folder / self.phase, self.phase)


def write_down(plan: Plan, folder: Path) -> Path:
    """Write the script and the commands of a plan, to be run elsewhere.

    Returns:
        The shell script.

    Raises:
        ValueError: files of other people stand there.
    """
    folder = folder.resolve()
    text = program_text(plan.config, n_rounds=plan.n_rounds, modules=plan.modules)
    commands, then = [plan.command(folder)], ""
    if plan.phase is None:
        sqlite = folder / "trace.sqlite"
        commands.append(nsys_export(folder / "trace.nsys-rep", sqlite))
        then = (
            '"${PYTHON:-python3}" -m hspec_lab analyze "$here"/trace.sqlite --again '
            f'--into "$(ls -td "$here"/{RUNS}/*/ | head -n 1)"'
        )
    put(folder, SCRIPT, text)
    return put(folder, COMMAND, shell_text(commands, folder, then))


def watch_run(plan: Plan, root: Path | str, out: Path) -> Path:
    """Decode under Nsight Systems; the run, the trace and its analysis become one run folder.

    Args:
        plan: without a phase.
        root: the store.
        out: where the script, the command and the log go when something fails.

    Returns:
        The run folder, with `nsys/trace.sqlite`, `nsys/trace.nsys-rep`, `nsys/log.txt`, the
        script, and the analysis as `results.write_analysis` writes it.

    Raises:
        ValueError: a command failed, or left nothing that can be read; says where its log is.
    """
    with aside(root) as folder:
        folder = folder.resolve()
        put(folder, SCRIPT, program_text(plan.config, n_rounds=plan.n_rounds, modules=plan.modules))
        try:
            report, sqlite = folder / "trace.nsys-rep", folder / "trace.sqlite"
            run_logged(plan.command(folder), folder / _LOG, plan.timeout_s)
            _check_left(report, "nsys profile left no report: was anything captured?")
            run_logged(nsys_export(report, sqlite), folder / _LOG, plan.timeout_s)
            _check_left(sqlite, "nsys export left no SQLite file")
            run = only_run(folder / RUNS)
            timeline = with_counts(trace_in.read_trace(sqlite), read_run(run)[1]["rounds"])
            write_analysis(timeline, run / "nsys")
        except ValueError as error:
            raise ValueError(f"{error}; log and report: {_rescued(plan, folder, out)}") from None
        for name in (report.name, sqlite.name, _LOG, SCRIPT):
            (folder / name).rename(run / "nsys" / name)
        return land(run, root)


def watch_kernels(plan: Plan, out: Path) -> Path:
    """Measure one phase's kernels by Nsight Compute.

    Args:
        plan: with a phase.
        out: the script, the command, the log and the report go there.

    Returns:
        The report, `<phase>.ncu-rep`.

    Raises:
        ValueError: the command failed, or matched no kernel; says where its log is.
    """
    write_down(plan, out)
    out = out.resolve()
    report, log = out / f"{plan.phase}.ncu-rep", out / _LOG
    # an older report would hide that this time nothing was measured
    report.unlink(missing_ok=True)
    try:
        run_logged(plan.command(out), log, plan.timeout_s)
        _check_left(report, f"ncu found no kernel in {plan.phase}")
    except ValueError as error:
        forbidden = "ERR_NVGPUCTRPERM" in log.read_text(encoding="utf-8", errors="replace")
        raise ValueError(f"{_FORBIDDEN if forbidden else error}; log: {log}") from None
    return report


def _check_left(path: Path, otherwise: str) -> None:
    if not path.is_file() or not path.stat().st_size:
        raise ValueError(otherwise)


def _rescued(plan: Plan, folder: Path, out: Path) -> Path:
    """Keep what may tell why a capture failed, and what repeats it."""
    write_down(plan, out)
    for name in (_LOG, "trace.nsys-rep", "trace.sqlite"):
        if (folder / name).exists():
            shutil.copyfile(folder / name, out / name)
    if (folder / RUNS).is_dir():
        shutil.copytree(folder / RUNS, out / RUNS, dirs_exist_ok=True)
    return out
