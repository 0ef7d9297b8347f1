package faults

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var (
	programFlag = flag.String("program", "", "the oodmon to test; empty: built from this repository")
	seedFlag    = flag.Uint64("seed", 0, "seed of the faults; 0: another one each time")
	runsFlag    = flag.Int("runs", 1, "how often TestFaults injects every fault, with the seed and those after it")
	reportFlag  = flag.String("report", "", "file whose table between the markers <!-- faults --> and <!-- /faults --> is replaced")
	logsFlag    = flag.String("logs", "", "folder for the whole logs of monitors and brokers where a fault fails")
	soakFlag    = flag.Duration("soak", 45*time.Second, "how long TestSoak injects faults")
)

// keep copies a log to the folder of -logs.
func keep(t testing.TB, path, name string) {
	t.Helper()
	if *logsFlag == "" {
		return
	}
	text, err := os.ReadFile(path)
	if err == nil {
		err = os.MkdirAll(*logsFlag, 0o755)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(*logsFlag, name), text, 0o644)
	}
	if err != nil {
		t.Error(err)
	}
}

// seed returns the seed of a run, and prints it.
func seed(t testing.TB) uint64 {
	t.Helper()
	s := *seedFlag
	if s == 0 {
		s = uint64(time.Now().UnixNano()) % 1_000_000
	}
	t.Logf("to repeat: go test ./internal/faults -run '^%s$' -seed %d", strings.Split(t.Name(), "/")[0], s)
	return s
}

// A report is the table of what was injected, in all runs, and what became of the
// records.
type report struct {
	order   []string // of the faults
	mu      sync.Mutex
	results map[string][]result // by the first columns of their row
	rows    map[string]string   // the rest of each row
}

// A result is what one run of a fault came to.
type result struct {
	seed   uint64
	failed bool
	times  int
	account
	recovery time.Duration
}

const reportHead = `| fault | brokers | delivery | runs | failed | injected | records in | scored | dead letters | lost | twice | recovered in (the longest) | seeds |
|---|---|---|---|---|---|---|---|---|---|---|---|---|
`

// add takes in a result, and tells the row anew: sums, and the median of the recovery.
func (r *report) add(fault string, brokers int, delivery string, one result) {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := fmt.Sprintf("| %s | %d | %s |", fault, brokers, delivery)
	all := append(r.results[key], one)
	r.results[key] = all
	var sum result
	var recovery []time.Duration
	first, last := all[0].seed, all[0].seed
	failed := 0
	for _, x := range all {
		if x.failed {
			failed++
		}
		sum.times += x.times
		sum.in += x.in
		sum.scored += x.scored
		sum.letters += x.letters
		sum.lost += x.lost
		sum.twice += x.twice
		recovery = append(recovery, x.recovery)
		first, last = min(first, x.seed), max(last, x.seed)
	}
	slices.Sort(recovery)
	seeds := fmt.Sprint(first)
	if last > first {
		seeds += fmt.Sprint(" to ", last)
	}
	r.rows[key] = fmt.Sprintf(" %d | %d | %d | %d | %d | %d | %d | %d | %.1f s (%.1f s) | %s |\n", len(all), failed, sum.times, sum.in, sum.scored, sum.letters, sum.lost, sum.twice,
		recovery[len(recovery)/2].Seconds(), recovery[len(recovery)-1].Seconds(), seeds)
}

// table returns the rows of the faults that there are, in their order.
func (r *report) table() string {
	text := reportHead
	for _, fault := range r.order {
		for _, key := range slices.Sorted(maps.Keys(r.rows)) {
			if strings.HasPrefix(key, "| "+fault+" |") {
				text += key + r.rows[key]
			}
		}
	}
	return text
}

// publish prints the table, and puts its rows in the place of those of the same
// faults in the file of -report.
func (r *report) publish(t *testing.T) {
	t.Helper()
	fmt.Print(r.table())
	if *reportFlag == "" || len(r.rows) == 0 {
		return
	}
	text, err := os.ReadFile(*reportFlag)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), "<!-- faults -->\n")
	old, after, ok2 := strings.Cut(rest, "<!-- /faults -->")
	if !ok || !ok2 {
		t.Fatalf("%s has no markers <!-- faults --> and <!-- /faults -->", *reportFlag)
	}
	all := report{order: r.order, rows: make(map[string]string)}
	for line := range strings.Lines(strings.TrimPrefix(old, reportHead)) {
		columns := strings.SplitAfterN(line, "|", 5)
		if len(columns) == 5 && 2*strings.Count(line, "|") == strings.Count(reportHead, "|") {
			all.rows[strings.Join(columns[:4], "")] = columns[4]
		}
	}
	maps.Copy(all.rows, r.rows)
	if err := os.WriteFile(*reportFlag, []byte(before+"<!-- faults -->\n"+all.table()+"<!-- /faults -->"+after), 0o644); err != nil {
		t.Fatal(err)
	}
}
