"""Checks what a run of `oodmon demo --json` says and serves.

check-demo.py metrics URL FILE   wait until the demo has scored records and seen
                                 OOD, write /metrics to FILE, and compare its
                                 names with docs/metrics.md
check-demo.py summary FILE       assert the counts and figures of the summary
"""

import json
import re
import sys
import time
import urllib.error
import urllib.request


def fetch(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.read().decode()
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return ""


def value(text, name):
    found = re.search(rf"^{name}(?:{{[^}}]*}})? ([0-9.e+-]+)$", text, re.M)
    return float(found.group(1)) if found else 0.0


def metrics(url, file):
    deadline = time.monotonic() + 300  # the demo may have to be compiled first
    while True:
        text = fetch(url + "/metrics")
        if value(text, "oodmon_records_total") > 500 and value(text, "oodmon_ood_records_total") > 10:
            break
        if time.monotonic() > deadline:
            sys.exit(f"no records at {url}/metrics after 300 s; the last answer:\n{text}")
        time.sleep(0.5)
    for path in ("/-/healthy", "/-/ready", "/api/v1/status", "/"):
        if not fetch(url + path):
            sys.exit(f"{url}{path} does not answer with 200")
    with open(file, "w", encoding="utf-8") as out:
        # promtool before 3.0 takes a histogram without buckets, as a native one is in text, for an error.
        out.write("".join(line + "\n" for line in text.splitlines() if "oodmon_score" not in line))
    with open("docs/metrics.md", encoding="utf-8") as page:
        documented = set(re.findall(r"^\| `(oodmon_\w+)` \|", page.read(), re.M))
    exported = set(re.findall(r"^# TYPE (oodmon_\w+) ", text, re.M))
    wrong = [f"exported, and not in docs/metrics.md: {name}" for name in sorted(exported - documented)]
    # The demo's stream has no segments; monitor's tests export those.
    missing = {name for name in documented - exported if not name.startswith("oodmon_segment_")}
    wrong += [f"in docs/metrics.md, and not exported: {name}" for name in sorted(missing)]
    if wrong:
        sys.exit("\n".join(wrong))
    print(f"{len(exported)} metrics, all documented")


def summary(file):
    with open(file, encoding="utf-8") as text:
        s = json.load(text)
    checks = {
        "records were sent": s["produced"] > 1000,
        "produced = scored + dead-lettered": s["produced"] == s["scored"] + s["dead_lettered"],
        "scored = in distribution + OOD": s["scored"] == s["in_distribution"] + s["ood"],
        "every broken record, and no other, was dead-lettered": s["dead_lettered"] == s["broken_sent"] > 0,
        "no record twice": s["duplicates"] == 0,
        "the demo says so as well": s["counts_add_up"] is True,
        "AUROC": s["auroc"] > 0.95,
        "detection rate at least ten times the chosen false-positive rate": s["detection_rate"] >= 10 * s["target_false_positive_rate"],
        "false-positive rate at most twice the chosen one": s["false_positive_rate"] <= 2 * s["target_false_positive_rate"],
        "noticed, and not before the first unknown digit": s["noticed"] is True and s["noticed_before_ood"] is False,
        "OodmonDrift fired within 15 s of the first unknown digit, and not before it":
            s["drift_delay_seconds"] is not None and 0 <= s["drift_delay_seconds"] < 15,
        "a model was fitted": len(s["model_version"]) == 12,
    }
    for check, held in checks.items():
        print("ok  " if held else "FAIL", check)
    if not all(checks.values()):
        sys.exit(1)


if __name__ == "__main__":
    {"metrics": metrics, "summary": summary}[sys.argv[1]](*sys.argv[2:])
