"""What the benchmarks share: fresh processes, timing in turns, the machine's own rate, the record.

A benchmark is a script that puts figures into `results.json`, one flat object with the unit at the
end of each key, and has the tables of `README.md` written anew from it. A machine with a GPU has
keys of its own, which begin with `gpu_`, so that it overwrites nothing of a machine without.
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
from mvl.machine import cores
from mvl.models.sizes import ARCHITECTURES
from mvl.study.suites import SUITES

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results.json", HERE / "README.md"
BEGIN, END = "<!-- tables: begin, written by the benchmarks -->", "<!-- tables: end -->"
ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
#: A block of Llama-3.1-8B's size with random weights, as a `LanguageConfig.source`.
SIZES = ARCHITECTURES["Llama-3.1-8B"]
LLAMA = "random:" + json.dumps(SIZES)
#: Tokens and width of the matrix product that says what a machine can do: those of a block, on a
#: GPU of four cases of 128^3. A GPU gets several at a time, since to start one takes it long.
PRODUCT, PRODUCTS = ((16384, 4096), 20) if ON_GPU else ((512, 4096), 1)

#: Key -> (what it is, "at most" or "at least", how much, why it is missed where it is).
TARGETS = {
    "jobs_throughput_ratio": (
        "two trainings at once, throughput over one",
        "at least",
        1.9,
        "each process starts and prepares its cases",
    ),
    "gpu_jobs_throughput_ratio": ("GPU, 16 trainings at once, the same", "at least", 8, ""),
    "gpu_eager_v3_128_matrix_rate_share": (
        "GPU, v3 at 128^3, share of the bfloat16 matrix rate",
        "at least",
        0.45,
        "",
    ),
    "v3_128_matrix_rate_share": (
        "v3 at 128^3, share of the matrix rate",
        "at least",
        0.9,
        "the block is in bfloat16, the rest of the step in float32",
    ),
    "v3_128_peak_gb": (
        "v3 at 128^3, memory in GB",
        "at most",
        3,
        "adapters on the block take float32 copies of its activations; `v1_128` has none",
    ),
    "v3_128_released_code_time_ratio": ("released code's step over v3's", "at least", 3.5, ""),
    "v3_128_released_code_memory_ratio": (
        "released code's memory over v3's",
        "at least",
        6,
        "as v3's memory",
    ),
    "cpu_block_bf16_over_f32_ratio": (
        "block in bfloat16, step over float32's, where a processor has units for it",
        "at most",
        0.5,
        "",
    ),
    "loading_all_cores_wait_share": (
        "vit on Task04, wait for data over step, every core at the step",
        "at most",
        0.05,
        "augmentation is long for so short a step; a thread hides the wait, but takes its time "
        "from the same cores",
    ),
    "task04_v1_epoch_over_vit_ratio": (
        "v1 on Task04, epoch over vit's",
        "at most",
        1.4,
        "hybrid attention attends twice, and heads of 16 channels are slow in matrix products",
    ),
    "commands_smoke_s": ("run_all.sh --profile smoke, seconds", "at most", 150, ""),
    "commands_quick_s": ("run_all.sh, seconds", "at most", 600, ""),
    "overhead_import_s": ("import mvl, seconds", "at most", 0.3, ""),
    "overhead_help_s": ("mvl --help, seconds", "at most", 0.4, ""),
}

#: Title -> (prefixes of keys, a row each; endings of keys, a column each; what stands above it).
TABLES = {
    "Training step": (
        [
            f"{model}_{edge}"
            for edge in (64, 128)
            for model in ("vit", "v1", "v3", "released", "best", "bare_block", "released_code")
        ],
        [
            "step_s",
            "peak_gb",
            "model_tflop",
            "matrix_rate_share",
            "data_over_step_share",
            "released_code_time_ratio",
            "released_code_memory_ratio",
        ],
        "Wall time on every core; two cases at 64^3, one at 128^3 (the edge in voxels ends the "
        "name); patches of 8, a block of Llama-3.1-8B's size in the number format that the last "
        "table calls the faster. `released` is the released model in this replication's parts, "
        "`bare_block` the frozen block alone on as many tokens, `released_code` the released "
        "code's own structure. Shares: of the rate of a matrix product, and what preparing a later "
        "epoch's batch takes, both timed between the steps. Ratios: what `released_code` takes "
        "over what the row takes, in turns.",
    ),
    "Training step on Task04": (
        [f"task04_{name}" for name in ("v3", *SUITES["peers"])],
        ["step_s", "step_over_vit_ratio", "epoch_s", "epoch_over_vit_ratio"],
        "Grid 40 x 56 x 40, four cases a step, the embedded block; taking turns. A step by itself, "
        "and an epoch of `mvl.experiment.training` with its data and its validation (wall time, "
        "every core; phantom cases, four for training to one for validation).",
    ),
    "CPU": (
        ["cpu"],
        [
            "features",
            "subnormals_kept_over_flushed_ratio",
            "conv_head_default_over_channels_last_ratio",
            "block_bf16_over_f32_ratio",
            "block_f32_matrix_rate_share",
            "block_bf16_matrix_rate_share",
        ],
        "Each its own comparison, above 1 where the second is faster: the convolutional "
        "head on subnormal numbers; its layout; one block of Llama-3.1-8B's size on 32 tokens, "
        "forward and backward, and its shares of the matrix rate in its own number format.",
    ),
    "GPU": (
        ["gpu_eager_v3_128", "gpu_compiled_v3_128"],
        [
            "cases",
            "step_s",
            "peak_gb",
            "model_tflop",
            "matrix_rate_share",
            "host_waits",
            "largest_batch_cases",
        ],
        "v3 in bfloat16 at 128^3, in the largest batch of up to four cases that fits; whether a "
        "step makes the processor wait for the GPU (0: it does not); the largest batch, by "
        "doubling.",
    ),
    "Getting a block": (
        ["get_block_llama31_8b_bf16", "get_block_llama31_8b_f32"],
        ["s", "peak_gb", "peak_ratio", "bytes_ratio", "block_gb"],
        "Out of a checkpoint of Llama-3.1-8B's shape, wall time; `blocks.csv` has other models.",
    ),
    "Loading": (
        ["loading"],
        [
            "first_epoch_ms_per_case",
            "later_epoch_ms_per_case",
            "reading_each_time_ms_per_case",
            "reading_over_later_ratio",
            "wait_share",
            "batch_thread_wait_share",
            "batch_thread_over_plain_ratio",
            "all_cores_wait_share",
            "all_cores_batch_thread_wait_share",
            "all_cores_batch_thread_over_plain_ratio",
        ],
        "Phantom cases of Task04's size. Shares: what a step of vit, the shortest there is, waits "
        "for its batch, over the step (wall time), without and with a thread that makes the next "
        "batch ahead. Ratios: training with that thread over training without. First with a step "
        "of one thread, then with one that has every core.",
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
    "Several trainings at once": (
        ["jobs"],
        ["at_once", "one_by_one_s", "s", "throughput_ratio"],
        "`mvl suite run --jobs N`: wall time of N trainings of vit on phantom cases of Task04's "
        "size, one after the other and at once, with the start of all processes.",
    ),
    "Peers": (
        ["peers"],
        ["monai_blocks_over_ours_ratio", "nnunet_s_per_case"]
        + [f"nnunet_over_{name}_ratio" for name in ("vit", "v1", "v3", "best")],
        "Time of MONAI's transformer blocks over ours, all of vit's, forward and backward. Then "
        "nnU-Net's time for one training case of Task04's size, with its data and augmentation, "
        "and that over ours, with data and validation, on every core.",
    ),
    "Overhead": (
        ["overhead"],
        ["import_s", "help_s", "import_loads_torch_or_monai"],
        "Fresh processes, best of five, wall time.",
    ),
    "Commands": (
        ["commands_smoke", "commands_quick"],
        ["s", "again_s"],
        "`run_all.sh` with that profile in a fresh clone, in an environment that has what it "
        "needs; and a second time, with nothing changed.",
    ),
    "Machine": (
        ["machine"],
        [
            "cores",
            "features",
            "gpu",
            "f32_gflop_per_s",
            "bf16_gflop_per_s",
            "faster_format",
            "torch",
        ],
        "The rates are those of one matrix product of a block's size, on a CPU of one thread.",
    ),
}


def fresh(script, *arguments, threads=1):
    """Run `script` with arguments in a process of its own; what it prints last, read as JSON."""
    environment = os.environ | {"PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, script, *map(str, arguments)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def clock():
    """Seconds: of the processor where one thread works, else of the wall.

    Processor time is what the work costs, whoever else uses the machine; but it would add up
    several threads, and a GPU's is not in it. A GPU has first to do all that it was told.
    """
    if ON_GPU:
        torch.cuda.synchronize()
    if ON_GPU or torch.get_num_threads() > 1:
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
    """FLOP/s of a large matrix product in a number format, best of three."""
    tokens, width = PRODUCT
    x = torch.randn(tokens, width, device=DEVICE).to(dtype)
    weight = torch.randn(width, width, device=DEVICE).to(dtype)
    times = []
    for _ in range(4):
        started = clock()
        for _ in range(PRODUCTS):
            torch.nn.functional.linear(x, weight)
        times.append(clock() - started)
    return PRODUCTS * 2 * tokens * width * width / min(times[1:])


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
    rates = {}
    figures = {
        "machine_cores": cores(),
        "machine_features": " ".join(f for f in known if re.search(rf"\b{f}\b", flags)),
        "machine_gpu": torch.cuda.get_device_name() if ON_GPU else "none",
        "machine_torch": torch.__version__,
    }
    for dtype, short in (("float32", "f32"), ("bfloat16", "bf16")):
        rates[dtype] = matrix_rate(getattr(torch, dtype))
        figures[f"machine_{short}_gflop_per_s"] = rates[dtype] / 1e9
    # By measuring: a processor may have bfloat16 by name and no units for it.
    return figures | {"machine_faster_format": max(rates, key=rates.get)}


_MISSED = "_not_measured"


def record(figures):
    """Merge figures into results.json, to four digits, write the page's tables and say them."""
    figures = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in figures.items()}
    if ON_GPU:
        figures = {f"gpu_{k.removeprefix('gpu_')}": v for k, v in figures.items()}
    known = read_json(RESULTS) if RESULTS.exists() else {}
    # What is measured now was not missed for good.
    missed = {key for key in known if key.endswith(_MISSED)}
    done = {
        key for key in missed if any(f.startswith(key.removesuffix(_MISSED) + "_") for f in figures)
    }
    results = {key: value for key, value in known.items() if key not in done} | figures
    write_json(RESULTS, dict(sorted(results.items())))
    head, _, rest = PAGE.read_text().partition(BEGIN)
    with written(PAGE) as temporary:
        Path(temporary).write_text(f"{head}{BEGIN}\n{tables(results)}{END}{rest.partition(END)[2]}")
    print(json.dumps(figures, indent=1))


def tables(results):
    """The figures as Markdown, a table a benchmark; a reason where something was not measured."""
    text = f"\n### Targets\n\n{_table(['', 'target', 'measured', ''], _verdicts(results))}"
    for title, (names, columns, about) in TABLES.items():
        rows = list(dict.fromkeys([*names, *(f"gpu_{n.removeprefix('gpu_')}" for n in names)]))
        found = [r for r in rows if any(f"{r}_{c}" in results for c in columns)]
        reasons = [
            f"`{r}`: not measured, {results[f'{r}{_MISSED}']}.\n"
            for r in rows
            if f"{r}{_MISSED}" in results
        ]
        if not found and not reasons:
            continue
        text += f"\n### {title}\n\n{about}\n\n"
        if len(names) == 1 and found:
            lines = [
                [f"`{c}`", *(results.get(f"{r}_{c}", "–") for r in found)]
                for c in columns
                if any(f"{r}_{c}" in results for r in found)
            ]
            machines = ["with a GPU" if r.startswith("gpu_") else "value" for r in found]
            text += _table(["figure", *machines], lines)
        elif found:
            lines = [[f"`{r}`", *(results.get(f"{r}_{c}", "–") for c in columns)] for r in found]
            text += _table(["", *columns], lines)
        text += "\n" * bool(found and reasons) + "\n".join(reasons)
    return text + "\n"


def _verdicts(results):
    """Lines of the table of targets: what it is, the limit, the figure, whether it is reached."""
    for key, (what, side, limit, why) in TARGETS.items():
        value, verdict = results.get(key), ""
        if value is not None:
            over = value - limit if side == "at most" else limit - value
            verdict = "reached" if over <= 0 else f"missed by {over:.3g}: {why}".rstrip(": ")
        yield [what, f"{side} {limit}", "not measured" if value is None else value, verdict]


def _table(header, lines):
    rows = [header, ["---"] * len(header), *lines]
    return "".join(f"| {' | '.join(map(str, row))} |\n" for row in rows)


if __name__ == "__main__":
    print(json.dumps(machine()))
