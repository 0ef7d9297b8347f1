#!/usr/bin/env python3
"""An epoch of training an IsoMax+ head: oodmon against PyTorch, one thread.

    python3 -m venv venv && venv/bin/pip install torch && venv/bin/python bench/training.py

One seeded random data set of each size; batches in random order, SGD with Nesterov momentum
0.9, learning rate 0.1, weight decay 1e-4, entropic scale 10. Three ways:

  module   the head as its authors write it: torch.cdist without the matrix product, the
           probability and its logarithm one after the other
  matmul   the same head by a matrix product, and cross_entropy
  oodmon   BenchmarkEpoch of trainer/, from its spool on disk

Each runs in a process of its own, once to warm up and then --runs times; the best time
counts. Memory is the largest resident size of the process; oodmon's includes the
benchmark's own data only as far as the spool keeps it in memory. Prints JSON.
"""
import argparse, json, os, re, resource, subprocess, sys, tempfile, time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--rows", type=int, default=100_000)
parser.add_argument("--dim", type=int, default=512)
parser.add_argument("--classes", type=int, default=100)
parser.add_argument("--batch", type=int, default=1008)
parser.add_argument("--runs", type=int, default=3)
parser.add_argument("--only", choices=["module", "matmul"], help=argparse.SUPPRESS)
args = parser.parse_args()


def pytorch(form):
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(1)
    torch.manual_seed(1)
    x = F.normalize(torch.randn(args.rows, args.dim))
    y = torch.arange(args.rows) % args.classes
    prototypes = torch.nn.Parameter(torch.randn(args.classes, args.dim))
    scale = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([prototypes, scale], lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)

    def loss(x, y):
        if form == "module":
            distances = torch.cdist(F.normalize(x), F.normalize(prototypes), compute_mode="donot_use_mm_for_euclid_dist")
            probabilities = torch.softmax(-10 * scale.abs() * distances, 1)
            return -torch.log(probabilities[torch.arange(len(y)), y]).mean()
        cosines = F.normalize(x) @ F.normalize(prototypes).T
        return F.cross_entropy(-10 * scale.abs() * (2 - 2 * cosines).clamp_min(1e-12).sqrt(), y)

    best = float("inf")
    for _ in range(1 + args.runs):
        start = time.perf_counter()
        for rows in torch.randperm(args.rows).split(args.batch):
            optimizer.zero_grad()
            loss(x[rows], y[rows]).backward()
            optimizer.step()
        best = min(best, time.perf_counter() - start)
    return {"seconds": best, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10}


def oodmon():
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    with tempfile.TemporaryDirectory() as folder:
        binary = os.path.join(folder, "trainer.test")
        subprocess.run(["go", "test", "-c", "-o", binary, "./trainer"], cwd=root, check=True)
        flags = [f"-epoch.rows={args.rows}", f"-epoch.dim={args.dim}", f"-epoch.classes={args.classes}", f"-epoch.batch={args.batch}"]
        environment = dict(os.environ, GOMAXPROCS="1")
        # The measurement is of a child of its own, so that its memory is not the compiler's.
        code = ("import json, resource, subprocess, sys; out = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, text=True, check=True).stdout; "
                "print(json.dumps([out, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10]))")
        command = [binary, "-test.run=^$", "-test.bench=^BenchmarkEpoch$", f"-test.count={args.runs}", "-test.benchtime=2x", *flags]
        out, peak = json.loads(subprocess.run([sys.executable, "-c", code, *command], cwd=os.path.join(root, "trainer"), env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return {"seconds": min(float(t) for t in re.findall(r"([\d.]+) ns/op", out)) / 1e9, "peak_mib": peak}


if args.only:
    print(json.dumps(pytorch(args.only)))
    sys.exit()
result = {"rows": args.rows, "dim": args.dim, "classes": args.classes, "batch": args.batch, "oodmon": oodmon()}
for form in ("module", "matmul"):
    command = [sys.executable, os.path.abspath(__file__), "--only", form]
    for flag in ("rows", "dim", "classes", "batch", "runs"):
        command += [f"--{flag}", str(getattr(args, flag))]
    result[form] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    result[form]["times_oodmon"] = result[form]["seconds"] / result["oodmon"]["seconds"]
print(json.dumps(result, indent=2))
