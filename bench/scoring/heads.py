"""Heads with a projection, and heads that need all logits, beside numpy and PyTorch on one thread.

usage: heads.py [--count N] [transform|logits]   (in the environment that bench/scoring/run makes)

The Go side is BenchmarkTransform of scorer, p-values and decisions included, and
BenchmarkLogitStats of internal/kernel: maximum, log-sum-exp, mean and entropy of the logits.
numpy (OpenBLAS) and PyTorch compute the scores in the plain way, 4096 rows at a time. Figures are
thousands of vectors a second, medians of so many runs.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy is loaded

import numpy as np
import torch
import torch.nn.functional as F

from scoring import BLOCK, rate

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")


def go(package, benchmark, count):
    """{name: vectors a second} of a Go benchmark, but of the kernel in Go."""
    out = subprocess.run(
        ["go", "test", "-run", "^$", "-bench", f"^{benchmark}$/^[^g]", "-benchtime", "50ms", "-cpu", "1", "-count", str(count), package],
        cwd=ROOT, check=True, capture_output=True, text=True).stdout
    figures = {}
    for line in out.splitlines():
        if m := re.match(rf"{benchmark}/(\S+)\s.*?([\d.e+]+) (?:records|vectors)/s", line):
            figures.setdefault(m[1], []).append(float(m[2]))
    if not figures:
        sys.exit("go test printed no benchmark:\n" + out)
    return {name: statistics.median(v) for name, v in figures.items()}


def transform(random, d, c, kind):
    def values(*shape):
        return random.standard_normal(shape, dtype=np.float32)

    x, p, m, u, v = values(BLOCK, d), values(c, d), values(d, d), values(d, 32), values(32, d)
    unit = np.ascontiguousarray((p / np.linalg.norm(p, axis=1, keepdims=True)).T)

    def by_numpy(n):
        z = x[:n] / np.linalg.norm(x[:n], axis=1, keepdims=True)
        z = z @ m if kind == "matrix" else z + z @ u @ v if kind == "rank=32" else z
        inv = 1 / np.sqrt(np.einsum("ij,ij->i", z, z))
        np.sqrt(np.maximum(2 - 2 * (z @ unit).max(axis=1) * inv, 0))

    tx, tm, tu, tv, tunit = map(torch.from_numpy, (x, m, u, v, unit))

    def by_torch(n):
        z = F.normalize(tx[:n])
        z = z @ tm if kind == "matrix" else z + z @ tu @ tv if kind == "rank=32" else z
        (2 - 2 * (F.normalize(z) @ tunit).max(1)[0]).clamp_min(0).sqrt()

    return by_numpy, by_torch


def logits(random, d, c, kind):
    x = random.standard_normal((BLOCK, d), dtype=np.float32)
    w = random.standard_normal((c, d), dtype=np.float32)
    if kind == "2":  # unit distances
        w /= np.linalg.norm(w, axis=1, keepdims=True)
    w = np.ascontiguousarray(w.T)

    def by_numpy(n):
        rows = x[:n]
        if kind == "2":
            inv = 1 / np.sqrt(np.einsum("ij,ij->i", rows, rows))
            v = -np.sqrt(np.maximum(2 - 2 * inv[:, None] * (rows @ w), 0))
        else:
            v = rows @ w
        largest = v.max(axis=1)
        shifted = v - largest[:, None]
        e = np.exp(shifted)
        total = e.sum(axis=1)
        lse = np.log(total)
        return largest, largest + lse, v.mean(axis=1), lse - np.einsum("ij,ij->i", e, shifted) / total

    tx, tw = torch.from_numpy(x), torch.from_numpy(w)

    def by_torch(n):
        rows = tx[:n]
        v = -(2 - 2 * (F.normalize(rows) @ tw)).clamp_min(0).sqrt() if kind == "2" else rows @ tw
        log = F.log_softmax(v, 1)
        return v.max(1)[0], v.logsumexp(1), v.mean(1), -(log.exp() * log).sum(1)

    return by_numpy, by_torch


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="?", choices=["transform", "logits"])
    parser.add_argument("--count", type=int, default=10)
    args = parser.parse_args()
    torch.set_num_threads(1)
    random = np.random.default_rng(1)
    print("| | oodmon | numpy | PyTorch | × numpy | × PyTorch |\n|---|---|---|---|---|---|")
    for what, package, benchmark in (("transform", "./scorer", "BenchmarkTransform"), ("logits", "./internal/kernel", "BenchmarkLogitStats")):
        if args.what not in (None, what):
            continue
        for name, ours in go(package, benchmark, args.count).items():
            d, c = (int(re.search(rf"\b{k}=(\d+)", name)[1]) for k in "dc")
            if what == "transform":
                rivals = transform(random, d, c, name.rsplit("/", 1)[1])
            else:
                rivals = logits(random, d, c, re.search(r"kind=(\d)", name)[1])
            with torch.inference_mode():
                numpy, pytorch = (rate(BLOCK, f, args.count) for f in rivals)
            print(f"| {name.replace('kind=0', 'softmax').replace('kind=2', 'isomax+')} | {ours / 1e3:.0f} | {numpy / 1e3:.0f} | {pytorch / 1e3:.0f} | {ours / numpy:.1f} | {ours / pytorch:.1f} |", flush=True)


if __name__ == "__main__":
    main()
