"""Nearest prototypes by OpenBLAS and by PyTorch, beside `oodmon bench kernel` in the same run.

usage: scoring.py OODMON [--megabytes N] [--runs N] [--threads N,...] [--shape D,C]...

OpenBLAS: numpy's, normalise + sgemm + max in blocks of 4096 rows. PyTorch: the IsoMax+ module as
its authors define it, normalise both + torch.cdist without matrix products + max; and the form
that a good engineer would write, normalise + matmul + max. Each figure is the median of the runs.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

# A pinned kernel or cache size would make a weaker rival: it goes before OpenBLAS is loaded.
for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
    os.environ.pop(name, None)

import numpy as np
import threadpoolctl
import torch
import torch.nn.functional as F

BLOCK = 4096
SHAPES = [(64, 10), (128, 10), (512, 10), (512, 100), (768, 100), (512, 1000), (2048, 1000)]


def rate(rows, run, runs, limit=0.1):
    """Vectors a second of run(n) for n rows at most; slow ways get fewer rows."""
    probe = min(rows, 256)
    run(probe)
    start = time.perf_counter()
    run(probe)
    per_row = (time.perf_counter() - start) / probe
    n = min(rows, max(probe, int(limit / per_row)))
    repeats = max(1, int(0.02 / (per_row * n)))
    rates = []
    for _ in range(runs):
        start = time.perf_counter()
        for _ in range(repeats):
            run(n)
        rates.append(n * repeats / (time.perf_counter() - start))
    return statistics.median(rates)


def blocks(n):
    return ((i, min(i + BLOCK, n)) for i in range(0, n, BLOCK))


def openblas(x, p, runs):
    unit = np.ascontiguousarray((p / np.linalg.norm(p, axis=1, keepdims=True)).T)
    out = np.empty((BLOCK, p.shape[0]), np.float32)

    def run(n):
        for i, j in blocks(n):
            rows = x[i:j]
            # The norm divides the maximum, not the row: that costs D less a row.
            inv = 1 / np.sqrt(np.einsum("ij,ij->i", rows, rows))
            dots = np.matmul(rows, unit, out=out[: j - i])
            np.sqrt(np.maximum(2 - 2 * dots.max(axis=1) * inv, 0))

    return rate(len(x), run, runs)


def module(x, p, runs):
    x, p = torch.from_numpy(x), torch.from_numpy(p)

    def run(n):
        for i, j in blocks(n):
            d = torch.cdist(F.normalize(x[i:j]), F.normalize(p), compute_mode="donot_use_mm_for_euclid_dist")
            (-d).max(1)

    return rate(len(x), run, runs)


def matmul(x, p, runs):
    x, unit = torch.from_numpy(x), F.normalize(torch.from_numpy(p)).T.contiguous()

    def run(n):
        for i, j in blocks(n):
            (2 - 2 * (F.normalize(x[i:j]) @ unit).max(1)[0]).clamp_min(0).sqrt()

    return rate(len(x), run, runs)


def main():
    args = argparse.ArgumentParser()
    args.add_argument("oodmon")
    args.add_argument("--megabytes", type=int, default=128)
    args.add_argument("--runs", type=int, default=10)
    args.add_argument("--threads", default="1,2")
    args.add_argument("--shape", action="append")
    args = args.parse_args()
    shapes = [tuple(map(int, s.split(","))) for s in args.shape] if args.shape else SHAPES

    for pool in threadpoolctl.threadpool_info():
        print(f"{pool['internal_api']} {pool['version']}, kernel {pool.get('architecture', '-')}, in {os.path.basename(pool['filepath'])}")
    print(f"numpy {np.__version__}, torch {torch.__version__}\n")
    header = ["threads", "D", "C", "oodmon", "GFLOP/s", "Mvec/s", "of FMA peak", "of bandwidth",
              "OpenBLAS", "ratio", "PyTorch module", "ratio", "PyTorch matmul", "ratio"]
    print(" | ".join(header))
    rng = np.random.default_rng(1)
    for threads in map(int, args.threads.split(",")):
        torch.set_num_threads(threads)
        with threadpoolctl.threadpool_limits(threads), torch.inference_mode():
            for d, c in shapes:
                x = rng.standard_normal(((args.megabytes << 20) // (4 * d), d), np.float32)
                p = rng.standard_normal((c, d), np.float32)
                rivals = [f(x, p, args.runs) for f in (openblas, module, matmul)]
                del x
                ours = json.loads(subprocess.run(
                    [args.oodmon, "bench", "kernel", "--json", "--rivals=false", f"--shape={d},{c}",
                     f"--threads={threads}", f"--megabytes={args.megabytes}", f"--runs={args.runs}"],
                    check=True, stdout=subprocess.PIPE).stdout)
                for r in ours:
                    if r["impl"] == "go":
                        continue
                    cells = [threads, d, c, r["impl"], f"{r['gflops']:.1f}", f"{r['vectors_per_second'] / 1e6:.3f}",
                             f"{r['share_of_fma_peak']:.2f}", f"{r['share_of_read_bandwidth']:.2f}"]
                    for v in rivals:
                        cells += [f"{2 * d * c * v / 1e9:.1f}", f"{r['vectors_per_second'] / v:.1f}x"]
                    print(" | ".join(map(str, cells)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
