#!/usr/bin/env python3
"""The table of detectors in docs/benchmarks.md: oodmon against PyTorch and scikit-learn, on the same files.

    python3 -m pip install numpy pyarrow safetensors scikit-learn torch
    go build -o oodmon ./cmd/oodmon
    python3 bench/detection.py --oodmon ./oodmon --data TRAIN --calibration VAL --id TEST --ood OOD
    python3 bench/detection.py --oodmon ./oodmon --data TRAIN --calibration VAL --id TEST --left-out 0.25 --seeds 5

Files are Arrow IPC files with the columns embedding and label. With --left-out, instead of --ood, that share of
the classes is left out of training and calibration, and their test records are the OOD ones: near-OOD, once for
each seed (Python's random.Random(seed) shuffles the sorted classes, the first are left out).

In %, in-distribution positive: accuracy | AUROC | AUPR-in | AUPR-out | TNR@TPR95. Prints Markdown; exits 1 where
oodmon and the other implementation of the same method differ by more than 0.3 points of AUROC.
"""
import argparse
import json
import os
import random
import subprocess
import sys
import tempfile

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc

HEADS = {"isomax+": "mds mps es mmls mmles energy", "isomax": "mds mps es mmls mmles energy",
         "dismax": "mds mps es mmls mmles energy", "softmax": "max-logit mps es mmls mmles energy"}
BASELINES = {"class-means": "mds", "knn": "distance", "mahalanobis": "distance", "relative-mahalanobis": "distance", "fdbd": "distance"}
COLUMNS = ["accuracy", "auroc", "aupr_in", "aupr_out", "tnr_at_tpr95"]


def table(path):
    with ipc.open_file(path) as f:
        return f.read_all()


def load(t):
    c = t["embedding"].combine_chunks()
    return c.flatten().to_numpy(zero_copy_only=False).reshape(len(t), -1).astype(np.float32), np.array(t["label"].to_pylist(), dtype=object)


def metrics(inside, outside, accuracy):
    """Scores of which a larger one is more out of distribution; scikit-learn's metrics."""
    from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
    y, s = np.r_[np.ones(len(inside)), np.zeros(len(outside))], -np.r_[inside, outside].astype(float)
    fpr, tpr, _ = roc_curve(y, s, drop_intermediate=False)
    return {"accuracy": accuracy, "auroc": roc_auc_score(y, s), "aupr_in": average_precision_score(y, s),
            "aupr_out": average_precision_score(1 - y, -s), "tnr_at_tpr95": 1 - fpr[np.argmax(tpr >= 0.95)]}


def rivals(train, test, ood):
    """The baselines by NumPy and scikit-learn: (detector, score) -> metrics."""
    from sklearn.covariance import LedoitWolf
    unit = lambda x: (x / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True))
    (x, labels), (a, truth), b = train, test, ood[0]
    classes = sorted(set(labels))
    y = np.searchsorted(classes, labels.astype(str))
    names = np.array(classes)
    x, a, b = unit(x), unit(a), unit(b)
    means = np.stack([x[y == c].mean(0) for c in range(len(classes))])
    out = {}
    nearest = lambda q: np.sqrt(np.maximum(2 - 2 * (q @ unit(means).T), 0))
    out["class-means", "mds"] = metrics(nearest(a).min(1), nearest(b).min(1), (names[nearest(a).argmin(1)] == truth).mean())
    kth = lambda q: np.concatenate([np.sqrt(np.maximum(2 - 2 * np.sort(part @ x.T, axis=1)[:, -5], 0)) for part in np.array_split(q, 20)])
    first = np.concatenate([(part @ x.T).argmax(1) for part in np.array_split(a, 20)])
    out["knn", "distance"] = metrics(kth(a), kth(b), (names[y[first]] == truth).mean())
    within = LedoitWolf(assume_centered=True).fit(x - means[y]).precision_
    mean = x.mean(0)
    overall = LedoitWolf(assume_centered=True).fit(x - mean).precision_

    def squared(q, centres, precision):
        w = np.linalg.cholesky(precision)
        q, centres = q @ w, centres @ w
        return (q * q).sum(1)[:, None] - 2 * q @ centres.T + (centres * centres).sum(1)[None]

    da, db = squared(a, means, within), squared(b, means, within)
    accuracy = (names[da.argmin(1)] == truth).mean()
    out["mahalanobis", "distance"] = metrics(da.min(1), db.min(1), accuracy)
    out["relative-mahalanobis", "distance"] = metrics(da.min(1) - squared(a, mean[None], overall)[:, 0], db.min(1) - squared(b, mean[None], overall)[:, 0], accuracy)
    between = np.linalg.norm(means[:, None] - means[None], axis=2) + np.eye(len(means))

    def boundaries(q):
        logits = q @ means.T - (means * means).sum(1) / 2
        best = logits.argmax(1)
        distances = (logits.max(1, keepdims=True) - logits) / between[best]
        return -distances.sum(1) / (len(means) - 1) / np.linalg.norm(q - mean, axis=1), best

    (sa, ca), (sb, _) = boundaries(a), boundaries(b)
    out["fdbd", "distance"] = metrics(sa, sb, (names[ca] == truth).mean())
    return out


def heads(oodmon, files, folder):
    """The scores of oodmon's own heads by PyTorch: the models that `oodmon train` writes, loaded and scored there."""
    import torch
    import torch.nn.functional as F
    from safetensors import safe_open
    torch.set_num_threads(1)
    (a, truth), (b, _) = load(table(files["id"])), load(table(files["ood"]))
    out = {}
    for head in HEADS:
        path = os.path.join(folder, head + ".safetensors")
        subprocess.run([oodmon, "train", "--detector", head, "--data", files["data"], "--calibration", files["calibration"], "--output", path, "--json"], check=True, stdout=subprocess.DEVNULL)
        with safe_open(path, "pt") as f:
            meta, t = f.metadata(), {k: f.get_tensor(k).double() for k in f.keys() if not k.startswith("calibration.")}

        def logits(x):
            x = torch.tensor(x).double()
            if "transform.matrix" in t:
                x = x @ t["transform.matrix"]
            elif "transform.u" in t:
                x = x + x @ t["transform.u"] @ t["transform.v"]
            if head == "softmax":
                v = x @ t["weights"].T + t["bias"]
            elif head == "isomax":
                v = -torch.cdist(x, t["prototypes"])
            else:
                d = t["distance_scale"].abs() * torch.cdist(F.normalize(x), F.normalize(t["prototypes"]))
                if head == "dismax":
                    d = d / 2**0.5
                    d = d + d.mean(1, keepdim=True)
                v = -d
            return v / float(meta["temperature"])

        with torch.inference_mode():
            la, lb = logits(a), logits(b)
            accuracy = (np.array(json.loads(meta["classes"]), dtype=object)[la.argmax(1).numpy()] == truth).mean()
            for score in HEADS[head].split():
                value = lambda v: {
                    "mds": lambda: -v.amax(1), "max-logit": lambda: -v.amax(1), "mps": lambda: -v.softmax(1).amax(1), "energy": lambda: -v.logsumexp(1),
                    "es": lambda: torch.distributions.Categorical(logits=v).entropy(), "mmls": lambda: -(v.amax(1) + v.mean(1)),
                    "mmles": lambda: -(v.amax(1) + v.mean(1) - torch.distributions.Categorical(logits=v).entropy()),
                }[score]().numpy()
                out[head, score] = metrics(value(la), value(lb), accuracy)
    return out


def ours(oodmon, files):
    names = [f"{d}:{s}" for d, scores in {**HEADS, **BASELINES}.items() for s in scores.split()]
    text = subprocess.run([oodmon, "eval", "--json", "--detectors", ",".join(names), "--data", files["data"], "--calibration", files["calibration"],
                           "--id", files["id"], "--ood", files["ood"]], check=True, stdout=subprocess.PIPE).stdout
    return {(e["detector"], e["score"]): e for e in json.loads(text)}


def row(name, m, extra=""):
    return f"| {name} | " + " | ".join(f"{100 * m[k]:.2f}" for k in COLUMNS) + f" |{extra}"


def write(path, t):
    with pa.OSFile(path, "wb") as sink, ipc.new_file(sink, t.schema) as w:
        w.write_table(t)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--oodmon", default="oodmon")
    for name in ("data", "calibration", "id"):
        p.add_argument("--" + name, required=True)
    p.add_argument("--ood")
    p.add_argument("--left-out", type=float)
    p.add_argument("--seeds", type=int, default=5)
    args = p.parse_args()
    if (args.ood is None) == (args.left_out is None):
        p.error("exactly one of --ood and --left-out is needed")
    with tempfile.TemporaryDirectory() as folder:
        if args.ood:
            return compare(args, {"data": args.data, "calibration": args.calibration, "id": args.id, "ood": args.ood}, folder)
        return near(args, folder)


def compare(args, files, folder):
    mine = ours(args.oodmon, files)
    theirs = {**rivals(load(table(files["data"])), load(table(files["id"])), load(table(files["ood"]))), **heads(args.oodmon, files, folder)}
    print("| detector, score | accuracy | AUROC | AUPR-in | AUPR-out | TNR@TPR95 | AUROC elsewhere |\n|---|---|---|---|---|---|---|")
    apart = 0
    for key, m in mine.items():
        other = theirs.get(key)
        if other:
            apart += abs(other["auroc"] - m["auroc"]) > 0.003
        print(row(", ".join(key), m, f" {100 * other['auroc']:.2f} |" if other else " – |"), flush=True)
    return 1 if apart else 0


def near(args, folder):
    tables = {k: table(getattr(args, k)) for k in ("data", "calibration", "id")}
    classes = sorted(set(tables["data"]["label"].to_pylist()))
    names = ["isomax+:mds", "dismax:mmles", "dismax:mds", "softmax:mps", "softmax:es", "softmax:energy"] + [f"{d}:{s}" for d, s in BASELINES.items()]
    print("| seed | " + " | ".join(n.replace(":", ", ") for n in names) + " |\n|---" * 1 + "|---" * len(names) + "|")
    won = True
    for seed in range(args.seeds):
        order = list(classes)
        random.Random(seed).shuffle(order)
        out = set(order[: int(args.left_out * len(classes))])
        files = {}
        for k, t in tables.items():
            keep = pa.array([label not in out for label in t["label"].to_pylist()])
            files[k] = os.path.join(folder, k + ".arrow")
            write(files[k], t.filter(keep))
            if k == "id":
                files["ood"] = os.path.join(folder, "ood.arrow")
                write(files["ood"], t.filter(pa.compute.invert(keep)))
        text = subprocess.run([args.oodmon, "eval", "--json", "--detectors", ",".join(names), "--data", files["data"], "--calibration", files["calibration"],
                               "--id", files["id"], "--ood", files["ood"]], check=True, stdout=subprocess.PIPE).stdout
        found = json.loads(text)
        won = won and all(found[0]["auroc"] > e["auroc"] for e in found[-len(BASELINES):])
        print(f"| {seed} | " + " | ".join(f"{100 * e['auroc']:.2f} / {100 * e['tnr_at_tpr95']:.2f}" for e in found) + " |", flush=True)
    print(f"\nAUROC / TNR@TPR95. isomax+ is {'' if won else 'not '}above every baseline without training in each seed.")
    return 0


if __name__ == "__main__":
    import pyarrow.compute  # noqa: F401
    sys.exit(main())
