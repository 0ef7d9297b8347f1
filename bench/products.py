#!/usr/bin/env python3
"""The matrix products and the softmax of training, beside OpenBLAS, on one thread.

    python3 -m venv venv && venv/bin/pip install numpy==2.4.6
    venv/bin/python bench/products.py

numpy multiplies by the OpenBLAS that its wheel brings. The Go side is
BenchmarkMultiply and BenchmarkSoftmaxLoss of internal/kernel, with gonum's Sgemm
in the same run. Figures are medians of as many runs as --count says, in GFLOP/s
and in ns for each value of a softmax.
"""
import argparse
import os
import re
import statistics
import subprocess
import sys
import time

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy is loaded
import numpy as np  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def go(count):
    """{(implementation, what): figures} of the Go benchmarks."""
    out = subprocess.run(
        ["go", "test", "-run", "^$", "-bench", "^Benchmark(Multiply|SoftmaxLoss)$", "-benchtime", "50ms",
         "-cpu", "1", "-count", str(count), "./internal/kernel"],
        cwd=ROOT, check=True, capture_output=True, text=True).stdout
    figures = {}
    for line in out.splitlines():
        m = re.match(r"Benchmark(?:Multiply|SoftmaxLoss)/([^/\s]+)/(\S+)\s.*?([\d.]+) (?:GFLOP/s|ns/value)", line)
        if m:
            figures.setdefault((m[1], m[2]), []).append(float(m[3]))
    if not figures:
        sys.exit("go test printed no benchmark:\n" + out)
    return figures


def mean(f, seconds=0.05):
    """Seconds of a call, the mean over as long as the Go benchmarks run."""
    f()
    calls, start = 0, time.perf_counter()
    while time.perf_counter() < start + seconds:
        f()
        calls += 1
    return (time.perf_counter() - start) / calls


def openblas(what, random):
    """GFLOP/s of a product named as the Go benchmark names it."""
    name, shape = what.rsplit("/", 1)
    m, n, k = map(int, shape.split("×"))
    a = random.standard_normal((k, m) if "gradient" in name else (m, k), dtype=np.float32)
    b = random.standard_normal((n, k) if name == "forward" else (k, n), dtype=np.float32)
    a, b = a.T if "gradient" in name else a, b.T if name == "forward" else b
    c = np.empty((m, n), np.float32)
    return 2e-9 * m * n * k / mean(lambda: np.matmul(a, b, out=c))


def softmax(what, random):
    """ns for each value of a softmax and its gradient by numpy."""
    c = int(what.split("=")[1])
    rows = 100_000 // c
    v = random.standard_normal((rows, c), dtype=np.float32)
    y = np.arange(rows) % c
    each = np.arange(rows)

    def step():
        e = np.exp(v - v.max(axis=1, keepdims=True))
        e /= e.sum(axis=1, keepdims=True)
        np.log(e[each, y]).sum()
        e[each, y] -= 1

    return 1e9 * mean(step) / (rows * c)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10, help="runs of each benchmark (default 10)")
    count = parser.parse_args().count
    figures = go(count)
    random = np.random.default_rng(1)
    implementations = list(dict.fromkeys(i for i, _ in figures))
    print(f"numpy {np.__version__}, one thread, medians of {count}")
    print("| product (m×n×k), softmax (classes) | " + " | ".join(implementations) + " | numpy | fastest to numpy |")
    print("|---" * (len(implementations) + 3) + "|")
    for what in dict.fromkeys(w for _, w in figures):
        ours = [statistics.median(figures[i, what]) if (i, what) in figures else None for i in implementations]
        rival, higher = (softmax, False) if what.startswith("c=") else (openblas, True)
        theirs = statistics.median(rival(what, random) for _ in range(count))
        ratio = ours[0] / theirs if higher else theirs / ours[0]
        cells = ["–" if v is None else f"{v:.3g}" for v in ours + [theirs]]
        print(f"| {what} | " + " | ".join(cells) + f" | {ratio:.2f} |")


if __name__ == "__main__":
    main()
