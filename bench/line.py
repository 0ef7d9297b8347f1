"""Compares the line of oodmon with one written in Python, and with reading alone.

All read the very same topic of the same broker, in turn, RUNS times; each figure
is the median. Needs confluent-kafka, numpy, prometheus_client and torch, and a
Kafka (scripts/kafka starts one):

    python3 -m venv venv && venv/bin/pip install confluent-kafka numpy prometheus_client torch
    go build -o oodmon ./cmd/oodmon
    scripts/kafka start /tmp/kafka 9092
    venv/bin/python bench/line.py --oodmon ./oodmon --brokers 127.0.0.1:9092
"""

import argparse
import json
import pathlib
import shlex
import statistics
import subprocess
import sys
import time

import numpy as np
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

PARTITIONS = 4
HERE = pathlib.Path(__file__).parent


def fill(broker, topic, records, dim):
    """Produces normal deviates, little-endian float32, one message a record."""
    producer = Producer(
        {
            "bootstrap.servers": broker,
            "batch.size": 1_000_000,
            "linger.ms": 20,
            "queue.buffering.max.messages": 200_000,
        }
    )
    windows = 4099
    pool = np.random.default_rng(1).standard_normal(windows + dim, dtype=np.float32)
    for i in range(records):
        at = i % windows
        value = pool[at : at + dim].tobytes()
        while True:
            try:
                producer.produce(topic, value, key=str(i), partition=i % PARTITIONS)
                break
            except BufferError:
                producer.poll(0.1)
        if i % 1000 == 0:
            producer.poll(0)
    if producer.flush(60):
        sys.exit(f"the topic {topic} could not be filled")


def output(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--oodmon", default="oodmon", help="the program")
    parser.add_argument("--brokers", default="127.0.0.1:9092")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--prefix", default="", help="a command to run each measured program with, such as taskset")
    options = parser.parse_args()
    prefix = shlex.split(options.prefix)

    broker, dim, classes, records = options.brokers, options.dim, options.classes, options.records
    admin = AdminClient({"bootstrap.servers": broker})
    name = f"line-{time.time_ns()}"
    topics = [f"{name}-in"] + [f"{name}-out-{run}" for run in range(options.runs)]
    for future in admin.create_topics([NewTopic(t, PARTITIONS, 1) for t in topics]).values():
        future.result()
    try:
        fill(broker, topics[0], records, dim)

        def python(mode):
            def run(i):
                return output(
                    [*prefix, sys.executable, HERE / "python_line.py", broker, topics[0], topics[1 + i]]
                    + [str(records), str(dim), str(classes), mode]
                )

            return run

        def oodmon(*more):
            def run(_):
                got = output(
                    [*prefix, options.oodmon, "bench", "line", "--json", "--runs", "1", "--brokers", broker]
                    + ["--topic", topics[0], "--records", str(records), "--dim", str(dim)]
                    + ["--classes", str(classes), "--partitions", str(PARTITIONS), *more]
                )
                if "kafka_go_fetch_alone" in got:
                    rows["kafka-go Client.Fetch, reading only"].append(got["kafka_go_fetch_alone"])
                return got

            return run

        rivals = {
            "Python, reading only": python("read"),
            "Python, the whole line": python("full"),
            "oodmon, JSON scores of all": oodmon("--read"),
            "oodmon, Arrow scores of all": oodmon("--format", "arrow"),
            "oodmon, JSON scores of OOD records": oodmon("--when", "ood"),
        }
        rows = {rival: [] for rival in [*rivals, "kafka-go Client.Fetch, reading only"]}
        for run in range(options.runs):
            for rival, measure in rivals.items():
                rows[rival].append(measure(run))
                print(f"run {run + 1}: {rival}", file=sys.stderr)
    finally:
        for future in admin.delete_topics(topics).values():
            future.result()

    def median(rival, figure):
        values = [got[figure] for got in rows[rival] if figure in got]
        return statistics.median(values) if values else float("nan")

    print(f"{records} records of {4 * dim} bytes, {classes} classes, {PARTITIONS} partitions; medians of {options.runs}\n")
    print("| | records/s | × Python | × reading | CPU-seconds per million | of Python's | peak MiB | of Python's |")
    print("|---|---|---|---|---|---|---|---|")
    rate, cpu, memory = "records_per_second", "cpu_seconds_per_million_records", "peak_memory_bytes"
    reading = median("kafka-go Client.Fetch, reading only", rate)
    line = "Python, the whole line"
    for rival in rows:
        print(
            f"| {rival} | {median(rival, rate):,.0f} | {median(rival, rate) / median(line, rate):.2f}"
            f" | {median(rival, rate) / reading:.2f}"
            f" | {median(rival, cpu):.2f} | 1/{median(line, cpu) / median(rival, cpu):.1f}"
            f" | {median(rival, memory) / 2**20:.0f} | 1/{median(line, memory) / median(rival, memory):.1f} |"
        )


if __name__ == "__main__":
    main()
