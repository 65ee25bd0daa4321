"""What the benchmarks share: fresh processes, timing in turns, the machine's own rate, the record.

A benchmark is a script that puts figures into `results.json`, one flat object with the unit at the
end of each key, and has the tables of `README.md` written anew from it. On a CPU time is CPU time
of one thread: it is what the work costs, whoever else uses the machine. On a GPU it is wall time.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mvl.files import read_json, write_json, written
from mvl.models.sizes import ARCHITECTURES

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results.json", HERE / "README.md"
BEGIN, END = "<!-- tables: begin, written by the benchmarks -->", "<!-- tables: end -->"
ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
#: A block of Llama-3.1-8B's size with random weights, as a `LanguageConfig.source`.
LLAMA = "random:" + json.dumps(ARCHITECTURES["Llama-3.1-8B"])

#: Title -> (prefixes of keys, a row each; endings of keys, a column each; what stands above it).
TABLES = {
    "Training step": (
        [
            f"{model}_{edge}"
            for edge in (64, 128)
            for model in ("vit", "v1", "v3", "released", "best", "released_code")
        ],
        ["step_s", "peak_gb", "model_tflop", "matrix_rate_share"],
        "One case, patches of 8, the edge in voxels at the end of the name; a block of "
        "Llama-3.1-8B's size. `released` is the released model in this suite's parts, "
        "`released_code` the released code's own structure. The share is of the matrix rate below.",
    ),
    "Training step on Task04": (
        ["task04_vit", "task04_v1", "task04_v3", "task04_best"],
        ["step_s", "step_over_vit_ratio"],
        "Grid 40 x 56 x 40, four cases, the embedded block; taking turns.",
    ),
    "CPU": (
        ["cpu"],
        [
            "subnormals_kept_over_flushed_ratio",
            "conv_head_default_over_channels_last_ratio",
            "block_bf16_over_f32_ratio",
            "block_f32_matrix_rate_share",
            "block_bf16_matrix_rate_share",
        ],
        "Each its own comparison, above 1 where the second is faster: the convolutional "
        "head on subnormal numbers; its layout; one block of Llama-3.1-8B's size, "
        "128 tokens, forward and backward.",
    ),
    "GPU": (
        ["gpu_v3_128", "gpu_v3_128_compiled"],
        ["step_s", "peak_gb", "matrix_rate_share", "largest_batch_cases"],
        "v3 in bfloat16 at 128^3, batch 4.",
    ),
    "Getting a block": (
        ["get_block_llama31_8b_bf16", "get_block_llama31_8b_f32"],
        ["s", "peak_gb", "peak_ratio", "bytes_ratio", "block_gb"],
        "Out of a checkpoint of Llama-3.1-8B's shape; `blocks.csv` has other models.",
    ),
    "Loading": (
        ["loading"],
        [
            "first_epoch_ms_per_case",
            "later_epoch_ms_per_case",
            "reading_each_time_ms_per_case",
            "reading_over_later_ratio",
            "data_over_step_share",
            "prefetch_wait_over_step_share",
            "prefetch_over_plain_ratio",
        ],
        "Phantom cases of Task04's size. The shares are of a step of vit, the shortest: what a "
        "batch's augmentation takes beside it, and what the step waits (wall time) when a thread "
        "works ahead. The last ratio: training with that thread against without.",
    ),
    "Metrics": (
        ["metrics"],
        [
            "cases_per_s",
            "surface_distance_cases_per_s",
            "speed_ratio",
            "nsd_largest_difference",
            "hd95_largest_difference_mm",
        ],
        "128^3, an organ's size, against the package surface-distance.",
    ),
    "Inference": (
        ["inference_vit", "inference_v1", "inference_best"],
        ["s_per_case", "whole_s_per_case"],
        "The network alone on Task04's grid, and with the way back to the file's grid.",
    ),
    "Overhead": (
        ["overhead"],
        ["import_s", "help_s", "import_loads_torch_or_monai"],
        "Fresh processes, best of five, processor time.",
    ),
    "Machine": (
        ["machine"],
        ["cores", "features", "gpu", "f32_gflop_per_s", "bf16_gflop_per_s", "torch"],
        "The rates are those of one matrix product of a block's size, on a CPU of one thread.",
    ),
}


def fresh(script, *arguments):
    """Run `script` with arguments in a process of its own; what it prints last, read as JSON."""
    environment = os.environ | {"PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, script, *map(str, arguments)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def fits(script, *arguments):
    """Whether `fresh` ends well, rather than out of memory."""
    try:
        fresh(script, *arguments)
    except subprocess.CalledProcessError:
        return False
    return True


def clock():
    """Seconds: of this process on a CPU, of the wall on a GPU, when it has done all it was told."""
    if ON_GPU:
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def in_turns(functions, repeats):
    """Run functions in turns, once for nothing first, so that all see the same machine.

    Args:
        functions: {name: function without arguments}.
        repeats: how many turns.

    Returns:
        {name: median seconds}.
    """
    times = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            started = clock()
            function()
            if turn:
                times[name].append(clock() - started)
    return {name: statistics.median(taken) for name, taken in times.items()}


def peak_gb():
    """The most memory that this process held on its device, in 10^9 bytes."""
    if ON_GPU:
        return torch.cuda.max_memory_allocated() / 1e9
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / 1e9


def matrix_rate(dtype):
    """FLOP/s of (tokens, 4096) times (4096, 4096) in a number format, best of three."""
    tokens, width = 4096 if ON_GPU else 512, 4096
    x = torch.randn(tokens, width, device=DEVICE).to(dtype)
    weight = torch.randn(width, width, device=DEVICE).to(dtype)
    times = []
    for _ in range(4):
        started = clock()
        torch.nn.functional.linear(x, weight)
        times.append(clock() - started)
    return 2 * tokens * width * width / min(times[1:])


def count_flops(model, *shape, backward=True, to_input=False):
    """FLOPs of the matrix products and convolutions of a forward and a backward pass.

    Nothing is computed. Attention counts as the products it is defined by, whatever a fused
    kernel computes anew.

    Args:
        model: a module on the meta device.
        shape: of its input.
        backward: count the way back to all that trains, too.
        to_input: and to the input.
    """
    with FakeTensorMode(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        held = {
            name: torch.empty(t.shape, dtype=t.dtype, requires_grad=t.requires_grad)
            for name, t in (*model.named_parameters(), *model.named_buffers())
        }
        out = torch.func.functional_call(model, held, torch.empty(shape, requires_grad=to_input))
        if backward:
            out.sum().backward()
    return counter.get_total_flops()


def machine():
    """Figures of the machine: its cores and features, never its name."""
    flags = Path("/proc/cpuinfo").read_text()
    known = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16")
    figures = {
        "machine_cores": os.cpu_count(),
        "machine_features": " ".join(f for f in known if re.search(rf"\b{f}\b", flags)),
        "machine_gpu": torch.cuda.get_device_name() if ON_GPU else "none",
        "machine_torch": torch.__version__,
    }
    for dtype, short in ((torch.float32, "f32"), (torch.bfloat16, "bf16")):
        figures[f"machine_{short}_gflop_per_s"] = matrix_rate(dtype) / 1e9
    return figures


_MISSED = "_not_measured"


def record(figures):
    """Merge figures into results.json, to four digits, write the page's tables and say them."""
    figures = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in figures.items()}
    known = read_json(RESULTS) if RESULTS.exists() else {}
    # What is measured now was not missed for good.
    missed = {key for key in known if key.endswith(_MISSED)}
    done = {key for key in missed if any(f.startswith(key.removesuffix(_MISSED)) for f in figures)}
    results = {key: value for key, value in known.items() if key not in done} | figures
    write_json(RESULTS, dict(sorted(results.items())))
    head, _, rest = PAGE.read_text().partition(BEGIN)
    with written(PAGE) as temporary:
        Path(temporary).write_text(f"{head}{BEGIN}\n{tables(results)}{END}{rest.partition(END)[2]}")
    print(json.dumps(figures, indent=1))


def tables(results):
    """The figures as Markdown, a table a benchmark; a reason where something was not measured."""
    text = ""
    for title, (rows, columns, about) in TABLES.items():
        found = [r for r in rows if any(f"{r}_{c}" in results for c in columns)]
        reasons = [
            f"`{r}`: not measured, {results[f'{r}_not_measured']}.\n"
            for r in rows
            if f"{r}_not_measured" in results
        ]
        if not found and not reasons:
            continue
        text += f"\n### {title}\n\n{about}\n\n"
        if len(rows) == 1 and found:
            lines = [
                [f"`{c}`", results[f"{rows[0]}_{c}"]]
                for c in columns
                if f"{rows[0]}_{c}" in results
            ]
            text += _table(["figure", "value"], lines)
        elif found:
            lines = [[f"`{r}`", *(results.get(f"{r}_{c}", "–") for c in columns)] for r in found]
            text += _table(["", *columns], lines)
        text += "\n" * bool(found and reasons) + "\n".join(reasons)
    return text + "\n"


def _table(header, lines):
    rows = [header, ["---"] * len(header), *lines]
    return "".join(f"| {' | '.join(map(str, row))} |\n" for row in rows)


if __name__ == "__main__":
    print(json.dumps(machine()))
