"""The line as a good engineer writes it in Python today: the rival of `oodmon run`.

confluent-kafka reads large batches, torch scores each by one matrix product (the
minimum distance of an IsoMax+ head), results go out as JSON by an asynchronous
producer with acks=all, prometheus_client keeps a histogram, and the offsets are
committed after the flush. It prints one line of JSON: rate and CPU time from the
first batch to the end, and the peak of its memory.

usage: python_line.py BROKER INPUT OUTPUT RECORDS DIM CLASSES read|score|full
"""

import json
import resource
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from confluent_kafka import Consumer, Producer
from prometheus_client import Counter, Histogram

BATCH = 5000


def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main():
    broker, source, sink, records, dim, classes, mode = sys.argv[1:]
    records, dim, classes = int(records), int(dim), int(classes)
    torch.set_num_threads(1)  # a second one is slower at these sizes
    consumer = Consumer(
        {
            "bootstrap.servers": broker,
            "group.id": f"python-line-{time.time_ns()}",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "fetch.message.max.bytes": 8 << 20,
            "fetch.wait.max.ms": 50,
            "queued.min.messages": 200_000,
            "queued.max.messages.kbytes": 400_000,
        }
    )
    consumer.subscribe([source])
    producer = Producer(
        {
            "bootstrap.servers": broker,
            "acks": "all",
            "linger.ms": 20,
            "batch.num.messages": 50_000,
            "queue.buffering.max.messages": 1_000_000,
            "queue.buffering.max.kbytes": 1 << 20,
        }
    )
    prototypes = F.normalize(torch.randn(classes, dim)).T.contiguous()
    scores = Histogram("score", "minimum distance score", buckets=[i / 20 for i in range(30)])
    counted = Counter("records", "records scored")

    done, began, cpu_began = 0, None, 0.0
    with torch.inference_mode():
        while done < records:
            messages = consumer.consume(BATCH, 1.0)
            if not messages:
                continue
            if began is None:
                began, cpu_began = time.perf_counter(), cpu()
            done += len(messages)
            if mode == "read":
                continue
            x = np.frombuffer(b"".join(m.value() for m in messages), np.float32).reshape(-1, dim)
            cosine, nearest = (F.normalize(torch.from_numpy(x.copy())) @ prototypes).max(1)
            distance, nearest = (2 - 2 * cosine).clamp_min(0).sqrt().tolist(), nearest.tolist()
            for message, score, of in zip(messages, distance, nearest):
                scores.observe(score)
                if mode == "full":
                    result = {
                        "id": message.key().decode(),
                        "score": score,
                        "class": of,
                        "ood": score > 1.2,
                        "partition": message.partition(),
                        "offset": message.offset(),
                    }
                    producer.produce(sink, json.dumps(result), message.key())
                    producer.poll(0)
            if mode == "full":
                producer.flush()
                consumer.commit(asynchronous=False)
            counted.inc(len(messages))
    elapsed, used = time.perf_counter() - began, cpu() - cpu_began
    print(
        json.dumps(
            {
                "records_per_second": done / elapsed,
                "cpu_seconds_per_million_records": used / done * 1e6,
                "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
            }
        )
    )


if __name__ == "__main__":
    main()
