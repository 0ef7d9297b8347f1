"""Drift detectors side by side on the same score streams: oodmon's shift and
change, river's ADWIN, KSWIN and Page-Hinkley, Alibi Detect's online CVM, FET, MMD and
LSDD.

    python drift_comparison.py streams DIR [--clinc FOLDER]     write the streams as .npy
    python drift_comparison.py oodmon DIR                       go run bench/driftstreams
    python drift_comparison.py river DIR                        in an environment with river
    python drift_comparison.py alibi DIR                        in one with alibi-detect
    python drift_comparison.py table DIR                        the tables, in Markdown

river and alibi-detect ask for different versions of NumPy, so each has an
environment of its own:

    python3 -m venv river && river/bin/pip install river pyarrow
    python3 -m venv alibi && alibi/bin/pip install 'alibi-detect[torch]' pyarrow

A stream is iid in-distribution scores, with a change after CHANGE records. Every
detector gets the scores one by one and is reset when it fires. A false alarm is
one in a null stream; the delay is the first alarm after the change, in records,
and the median is over streams, those without an alarm counted as infinite. The
slow ones see fewer streams, and those from BEFORE records before the change on.

Two settings each: its default, and the one of a grid that has the shortest
delay among those with at most one false alarm in 100,000 records of the null
streams ("matched"). oodmon is told that rate and is not tuned.

Alibi Detect simulates its thresholds, and needs several times as many bootstraps as the
records between two false alarms, so 100,000 of those are out of its reach. It is matched
at COARSE records, at which oodmon is run a second time.

The real streams (--clinc: the folder of the CLINC150 embeddings) are scores of
an IsoMax+ head that `oodmon train` fits: calibration and stream are two halves
of validation and test records, from which records are drawn. They need `oodmon`
on the PATH. oodmon also sees the predicted classes, which the others cannot use.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

CHANGE = 12_000  # by then oodmon has its live reference, which it makes where the calibration is small
AFTER = 15_000
MEAN_TIME = 100_000  # records to a false alarm
COARSE = 2_000  # the same, where detectors that simulate their thresholds take part
BEFORE = 2_000  # records before the change that the slow ones see: twice the largest of their windows
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def streams(args):
    os.makedirs(args.dir, exist_ok=True)
    simulated(os.path.join(args.dir, "simulated"))
    if args.clinc:
        clinc(os.path.join(args.dir, "clinc150"), args.clinc)


def save(folder, **arrays):
    """Writes float32 arrays, which bench/driftstreams reads."""
    os.makedirs(folder, exist_ok=True)
    for name, array in arrays.items():
        np.save(os.path.join(folder, name + ".npy"), np.ascontiguousarray(array, dtype=np.float32))


def simulated(folder):
    """In distribution N(0,1), out of it N(3,1)."""
    r = np.random.default_rng(1)
    n, shape = 20, (20, CHANGE + AFTER)

    def mixed(share):
        x = r.normal(size=shape)
        ood = r.random(shape) < share
        ood[:, :CHANGE] = False
        x[ood] += 3
        return x

    moved, narrow = r.normal(size=shape), r.normal(size=shape)
    moved[:, CHANGE:] += 0.25
    narrow[:, CHANGE:] *= 0.7
    save(folder, calibration=r.normal(size=10_000), null=r.normal(size=(n, 100_000)),
         ood5=mixed(0.05), ood20=mixed(0.2), moved=moved, narrow=narrow)


def clinc(folder, data):
    """Scores of a head on CLINC150, resampled."""
    import pyarrow as pa

    def read(path):
        with pa.memory_map(path) as source:
            try:
                return pa.ipc.open_file(source).read_all()
            except pa.ArrowInvalid:
                source.seek(0)
                return pa.ipc.open_stream(source).read_all()

    with tempfile.TemporaryDirectory() as tmp:
        head = os.path.join(tmp, "head.safetensors")
        file = lambda name: os.path.join(data, name + ".arrow")
        subprocess.run(["oodmon", "train", "--data", file("train"), "--calibration", file("val"), "--output", head], check=True)

        def score(path):
            out = subprocess.run(["oodmon", "score", "--model", head, path], check=True, capture_output=True, text=True).stdout
            records = [json.loads(line) for line in out.splitlines()]
            return np.array([x["score"] for x in records]), np.array([x["class"] for x in records])

        # A small additive shift of the embedding: one fixed direction, 0.3 of the mean norm.
        def shifted(name):
            table = read(file(name))
            dim = table.schema.field("embedding").type.list_size
            x = table["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, dim)
            direction = np.random.default_rng(2).normal(size=dim)
            step = 0.3 * np.linalg.norm(x, axis=1).mean() * direction / np.linalg.norm(direction)
            column = pa.FixedSizeListArray.from_arrays(pa.array((x + step).astype(np.float32).ravel()), dim)
            table = table.set_column(table.schema.get_field_index("embedding"), "embedding", column)
            path = os.path.join(tmp, name + "-shifted.arrow")
            with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
            return path

        val, val_class = score(file("val"))
        test, test_class = score(file("test"))
        oos, oos_class = score(file("oos_test"))
        moved, moved_class = map(np.concatenate, zip(score(shifted("val")), score(shifted("test"))))
    # All records as rows of one table: score and class.
    names = {name: i for i, name in enumerate(np.unique(np.concatenate([val_class, test_class, oos_class, moved_class])))}
    number = lambda labels: np.array([names[x] for x in labels])
    scores = np.concatenate([val, test, moved, oos])
    classes = number(np.concatenate([val_class, test_class, moved_class, oos_class]))
    known = len(val) + len(test)
    r = np.random.default_rng(3)
    order = r.permutation(known)
    calibration, rest = order[: known // 2], order[known // 2:]
    outside = np.arange(2 * known, len(scores))
    shape = (20, CHANGE + AFTER)

    def mixed(share):
        rows = r.choice(rest, shape)
        ood = r.random(shape) < share
        ood[:, :CHANGE] = False
        rows[ood] = r.choice(outside, ood.sum())
        return rows

    # Another mix: half of the classes, drawn once, get 90 % of the records.
    often = np.isin(classes[rest], r.permutation(np.unique(classes))[: len(names) // 2])
    weight = np.where(often, 0.9 / often.sum(), 0.1 / (~often).sum())
    mix, embedding = r.choice(rest, shape), r.choice(rest, shape)
    mix[:, CHANGE:] = r.choice(rest, (shape[0], AFTER), p=weight)
    embedding[:, CHANGE:] += known  # the same record, moved
    rows = dict(calibration=calibration, null=r.choice(rest, (10, 100_000)), ood5=mixed(0.05), ood20=mixed(0.2), class_mix=mix, embedding=embedding)
    save(folder, **{name: scores[x] for name, x in rows.items()})
    save(os.path.join(folder, "classes"), **{name: classes[x] for name, x in rows.items()})


# --- detectors: each a function of (scores, change) that returns the places of its
# alarms up to the first from change on.


def river_detectors():
    from river import drift

    def run(make):
        def places(x, change):
            found, detector = [], make()
            for i, v in enumerate(x.tolist()):
                detector.update(v)
                if detector.drift_detected:
                    found.append(i)
                    if i >= change:
                        break
                    if not isinstance(detector, drift.KSWIN):  # it keeps its recent window by itself
                        detector = make()
            return found
        return places

    adwin = [{"delta": d} for d in (0.2, 0.05, 0.01, 0.005, 0.002, 1e-3, 1e-4, 1e-5, 1e-6, 1e-8)]
    kswin = [{"alpha": a} for a in (1e-4, 1e-5)] + [{"alpha": a, "window_size": 1000, "stat_size": 300} for a in (1e-4, 1e-6)]
    page = [{"threshold": t, "delta": d} for t in (100, 200, 500, 1000) for d in (0.005, 0.1)]
    return {
        "river ADWIN": (run, drift.ADWIN, {}, adwin, {}),
        "river KSWIN": (run, drift.KSWIN, {}, kswin, {"seed": 1}),
        "river Page-Hinkley": (run, drift.PageHinkley, {}, page, {}),
    }


def evaluate(places, data, records, streams=None):
    """False alarms in the null streams, cut to so many records in all, and delays."""
    null = data["null"].ravel()[:records].reshape(-1, min(records, data["null"].shape[1]))
    alarms = sum(len(places(x, len(x))) for x in null)
    result = {"records": int(null.size), "false_alarms": alarms, "delays": {}}
    skipped = CHANGE - BEFORE if streams else 0
    for name, x in data.items():
        if name not in ("null", "calibration"):
            result["delays"][name] = [delay(places(one[skipped:], CHANGE - skipped), CHANGE - skipped) for one in x[:streams]]
    return result


def delay(places, change=CHANGE):
    after = [p - change + 1 for p in places if p >= change]
    return after[0] if after else None


def sets(folder):
    for name in ("simulated", "clinc150"):
        path = os.path.join(folder, name)
        if os.path.isdir(path):
            yield name, {f[:-4]: np.load(os.path.join(path, f)) for f in sorted(os.listdir(path)) if f.endswith(".npy")}


def write(folder, tool, results):
    """Called after each detector: what is done is kept, also of earlier runs."""
    path = os.path.join(folder, tool + ".json")
    if os.path.exists(path):
        with open(path, encoding="utf-8") as text:
            for set_name, found in json.load(text)["sets"].items():
                results["sets"][set_name] = found | results["sets"].get(set_name, {})
    with open(os.path.join(folder, tool + ".json"), "w", encoding="utf-8") as out:
        json.dump(results, out, indent=1)


def score_of(result):
    """The sum of the logarithms of the median delays: what matched settings are chosen by."""
    return sum(math.log(median(d)) for d in result["delays"].values())


def median(delays):
    m = statistics.median(math.inf if d is None else d for d in delays)
    return min(m, 10 * AFTER)


def river(args):
    import river

    results = {"version": f"river {river.__version__}", "sets": {}}
    for set_name, data in sets(args.dir):
        results["sets"][set_name] = {}
        for name, (run, kind, default, grid, fixed) in river_detectors().items():
            if args.only and args.only not in name:
                continue
            # KSWIN takes some 100 µs a record: one null stream, and five of each change.
            size = (100_000, 5) if name == "river KSWIN" else (data["null"].size, None)
            chosen = {"default": evaluate(run(lambda: kind(**default, **fixed)), data, *size)}
            for setting in grid:
                places = run(lambda: kind(**setting, **fixed))
                result = evaluate(places, data, *size) | {"setting": setting}
                print(set_name, name, setting, result["false_alarms"], {k: median(d) for k, d in result["delays"].items()}, file=sys.stderr)
                if result["false_alarms"] * MEAN_TIME <= result["records"]:
                    if "matched" not in chosen or score_of(result) < score_of(chosen["matched"]):
                        chosen["matched"] = result
            results["sets"][set_name][name] = chosen
            write(args.dir, "river", results)


def alibi(args):
    import alibi_detect
    from alibi_detect.cd import CVMDriftOnline, FETDriftOnline, LSDDDriftOnline, MMDDriftOnline

    results = {"version": f"alibi-detect {alibi_detect.__version__}", "sets": {}}
    for set_name, data in sets(args.dir):
        reference = data["calibration"]
        limit = np.quantile(reference, 0.95)
        column = reference[:1000, None]
        # The window sizes are those of its documentation's examples.
        kinds = {
            "CVM": (CVMDriftOnline, reference[:1000], dict(window_sizes=[20, 80]), lambda v: v),
            "FET": (FETDriftOnline, (reference > limit).astype(int), dict(window_sizes=[50, 200], t_max=400), lambda v: int(v > limit)),
            "MMD": (MMDDriftOnline, column, dict(window_size=20, backend="pytorch"), lambda v: v),
            "LSDD": (LSDDDriftOnline, column, dict(window_size=20, backend="pytorch"), lambda v: v),
        }
        results["sets"][set_name] = {}
        for short, (kind, ref, options, feature) in kinds.items():
            name = f"Alibi Detect {short} online"
            if args.only and args.only not in name:
                continue
            chosen = results["sets"][set_name][name] = {}
            # Expected run time has no default; 150 is that of its documentation's examples.
            # MMD and LSDD hold a matrix for each bootstrap: 40,000 of those take tens of gigabytes.
            bootstraps = COARSE * (4 if short in ("MMD", "LSDD") else 20)
            for label, ert, boot in (("default", 150, {}), ("matched", COARSE, {"n_bootstraps": bootstraps})):
                start = time.monotonic()
                detector = kind(ref, ert=ert, verbose=False, **options, **boot)
                print(set_name, name, label, "configured in", round(time.monotonic() - start), "s", file=sys.stderr)

                def places(x, change):
                    detector.reset_state()
                    found = []
                    for i, v in enumerate(x):
                        if detector.predict(np.array([feature(v)]), return_test_stat=False)["data"]["is_drift"]:
                            found.append(i)
                            if i >= change:
                                break
                            detector.reset_state()
                    return found

                chosen[label] = evaluate(places, data, args.alibi_records, 5) | {"setting": {"ert": ert}}
                print(set_name, name, label, chosen[label]["false_alarms"], {k: median(d) for k, d in chosen[label]["delays"].items()}, round(time.monotonic() - start), "s", file=sys.stderr)
                write(args.dir, "alibi", results)


def oodmon(args):
    results = {"version": "oodmon of this commit", "sets": {}}
    for set_name, data in sets(args.dir):
        of = {}
        for label, mean_time in (("matched", MEAN_TIME), ("coarse", COARSE)):
            out = subprocess.run(["go", "run", "./bench/driftstreams", "--dir", os.path.abspath(os.path.join(args.dir, set_name)), "--mean-time", str(mean_time)],
                                 check=True, stdout=subprocess.PIPE, cwd=ROOT).stdout
            found = json.loads(out)

            def result(alarms):
                return {"records": int(data["null"].size), "false_alarms": sum(map(len, alarms(found["null"]))), "setting": {"mean time": mean_time},
                        "delays": {name: [delay(p) for p in alarms(stream)] for name, stream in found.items() if name != "null"}}

            for detector in ("shift", "change"):
                of.setdefault("oodmon " + detector, {})[label] = result(lambda alarms: alarms[detector])
            of.setdefault("oodmon, the first of both", {})[label] = result(lambda alarms: [sorted(a + b) for a, b in zip(alarms["shift"], alarms["change"])])
        results["sets"][set_name] = of
    write(args.dir, "oodmon", results)


TITLES = {"ood5": "5 % OOD", "ood20": "20 % OOD", "moved": "+0.25 sd", "narrow": "sd × 0.7", "class_mix": "class mix", "embedding": "embedding moved"}


def table(args):
    tools = []
    for tool in ("oodmon", "river", "alibi"):
        path = os.path.join(args.dir, tool + ".json")
        if os.path.exists(path):
            with open(path, encoding="utf-8") as text:
                tools.append(json.load(text))
    print("Versions: " + ", ".join(t["version"] for t in tools) + ".")
    for set_name, data in sets(args.dir):
        changes = [name for name in TITLES if name in data]
        print(f"\n{set_name}: false alarms per 100,000 records, and median delay in records after the change\n")
        print("| detector | setting | false alarms | " + " | ".join(TITLES[c] for c in changes) + " |")
        print("|---|---|---|" + "---|" * len(changes))
        for tool in tools:
            for name, chosen in tool["sets"].get(set_name, {}).items():
                for label in ("default", "matched", "coarse"):
                    if label not in chosen and (label != "matched" or not name.startswith("river")):
                        continue
                    if label not in chosen:
                        print(f"| {name} | matched | none of the grid | " + " | ".join("–" for _ in changes) + " |")
                        continue
                    r = chosen[label]
                    setting = ", ".join(f"{k} {v:,g}" if v >= 1000 else f"{k} {v:g}" for k, v in r.get("setting", {}).items())
                    setting = setting if name.startswith("oodmon") else f"{label}{': ' + setting if setting else ''}"
                    rate = r["false_alarms"] * 1e5 / r["records"]
                    cells = []
                    for c in changes:
                        m = statistics.median(math.inf if d is None else d for d in r["delays"][c])
                        cells.append("not found" if math.isinf(m) else f"{m:,.0f}")
                    print(f"| {name} | {setting} | {rate:.1f} | " + " | ".join(cells) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = {f.__name__: f for f in (streams, oodmon, river, alibi, table)}
    parser.add_argument("command", choices=commands)
    parser.add_argument("dir", help="folder of the streams and results")
    parser.add_argument("--clinc", help="folder of the CLINC150 embeddings; without it, only simulated streams")
    parser.add_argument("--only", help="only the detectors of river or Alibi Detect with this in their name")
    parser.add_argument("--alibi-records", type=int, default=20_000, help="null records for Alibi Detect, which takes some 100 µs for each")
    args = parser.parse_args()
    commands[args.command](args)


if __name__ == "__main__":
    main()
