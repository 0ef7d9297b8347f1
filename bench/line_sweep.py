"""What the line costs as its work grows: by partitions, classes, dimension, segments.

Calls `oodmon bench line` for each point, prints a table, and draws it: both axes
logarithmic, CPU-seconds per million records. Only Python's standard library.

    python3 bench/line_sweep.py --oodmon ./oodmon --brokers 127.0.0.1:9092 --svg docs/line.svg
"""

import argparse
import json
import math
import shlex
import subprocess

# The points of each axis; the others stay at BASE.
SWEEPS = {
    "partitions": [1, 4, 16, 64, 256],
    "classes": [10, 100, 1_000, 10_000],
    "dim": [64, 256, 1_024, 4_096],
    "segments": [1, 10, 100, 1_000],
}
BASE = {"partitions": 4, "classes": 10, "dim": 128}
WIDTH, HEIGHT, MARGIN = 300, 220, 46


def measure(options, point):
    # As many records as make a run of some seconds.
    work = point["dim"] * (point["classes"] / 100 + 1)
    records = int(min(options.records, max(20_000, options.records * 128 / work)))
    command = [*shlex.split(options.prefix), options.oodmon, "bench", "line", "--json", "--runs", str(options.runs), "--records", str(records)]
    if options.brokers:
        command += ["--brokers", options.brokers]
    for flag, value in point.items():
        command += [f"--{flag}", str(value)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def panel(name, points, left, top, low, high):
    """One set of axes with a line; low and high are those of all panels."""
    xs, ys = [math.log10(x) for x, _ in points], [math.log10(y) for _, y in points]
    span = max(xs) - min(xs) or 1

    def place(x, y):
        return (
            left + MARGIN + (x - min(xs)) / span * (WIDTH - 2 * MARGIN),
            top + HEIGHT - MARGIN - (y - low) / (high - low) * (HEIGHT - 2 * MARGIN),
        )

    out = [f'<text x="{left + WIDTH / 2:.0f}" y="{top + 24}" text-anchor="middle" font-weight="bold">{name}</text>']
    for decade in range(math.ceil(low), math.floor(high) + 1):
        _, y = place(min(xs), decade)
        out.append(f'<path d="M{left + MARGIN} {y:.1f}H{left + WIDTH - MARGIN}" stroke="#ccc"/>')
        out.append(f'<text x="{left + MARGIN - 6}" y="{y + 4:.1f}" text-anchor="end">{10.0**decade:g}</text>')
    for (x, _), log in zip(points, xs):
        at, _ = place(log, low)
        out.append(f'<text x="{at:.1f}" y="{top + HEIGHT - MARGIN + 18}" text-anchor="middle">{x:,}</text>')
    path = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in zip(xs, ys))
    out.append(f'<polyline points="{path}" fill="none" stroke="#06c" stroke-width="2"/>')
    for x, y in zip(xs, ys):
        cx, cy = place(x, y)
        out.append(f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="3" fill="#06c"/>')
    return out


def draw(path, sweeps):
    costs = [math.log10(y) for points in sweeps.values() for _, y in points]
    low, high = math.floor(min(costs)), math.ceil(max(costs))
    high = max(high, low + 1)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * WIDTH}" height="{2 * HEIGHT + 24}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{2 * WIDTH}" height="{2 * HEIGHT + 24}" fill="white"/>',
        f'<text x="{WIDTH}" y="14" text-anchor="middle">CPU-seconds per million records</text>',
    ]
    for i, (name, points) in enumerate(sweeps.items()):
        lines += panel(name, points, i % 2 * WIDTH, 16 + i // 2 * HEIGHT, low, high)
    with open(path, "w") as out:
        out.write("\n".join([*lines, "</svg>", ""]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--oodmon", default="oodmon", help="the program")
    parser.add_argument("--brokers", default="", help="a Kafka (default: an embedded broker)")
    parser.add_argument("--records", type=int, default=400_000, help="records of a run, at most")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--prefix", default="", help="a command to run each with, such as taskset")
    parser.add_argument("--only", choices=SWEEPS, help="one axis")
    parser.add_argument("--svg", help="where to draw")
    options = parser.parse_args()

    drawn = {}
    print("| | | records/s | CPU-seconds per million | peak MiB |")
    print("|---|---|---|---|---|")
    for axis, values in SWEEPS.items():
        if options.only not in (None, axis):
            continue
        for value in values:
            got = measure(options, {**BASE, axis: value})
            cost, peak = got["cpu_seconds_per_million_records"], got["peak_memory_bytes"] / 2**20
            drawn.setdefault(axis, []).append((value, cost))
            print(f"| {axis} | {value:,} | {got['records_per_second']:,.0f} | {cost:.2f} | {peak:.0f} |", flush=True)
    if options.svg:
        draw(options.svg, drawn)


if __name__ == "__main__":
    main()
