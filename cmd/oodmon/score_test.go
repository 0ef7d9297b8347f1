package main

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A scoreLine is what `oodmon score` writes for a row.
type scoreLine struct {
	ID    string  `json:"id"`
	Score float64 `json:"score"`
	OOD   bool    `json:"ood"`
	Class string  `json:"class"`
	Topic string  `json:"topic"`
	Row   int     `json:"offset"`
}

func scoreLines(t *testing.T, jsonl string) []scoreLine {
	t.Helper()
	var lines []scoreLine
	for text := range strings.Lines(jsonl) {
		var line scoreLine
		if err := json.Unmarshal([]byte(text), &line); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		lines = append(lines, line)
	}
	return lines
}

// The figures of the head's own network, counted from the scores alone. An id
// begins with the digit that its image shows.
func TestScoresOfImportedDigits(t *testing.T) {
	model := importDigits(t)
	scores := func(file string) []scoreLine {
		return scoreLines(t, oodmon(t, 0, "score", "--model", model, digits(file)).stdout)
	}
	inside, outside := scores("test.arrow"), scores("ood.arrow")
	if len(inside) != 2020 || len(outside) != 1922 {
		t.Fatalf("%d and %d lines, want 2020 and 1922", len(inside), len(outside))
	}
	right, ordered := 0, 0.
	for i, in := range inside {
		if in.Row != i || in.Topic != digits("test.arrow") {
			t.Fatalf("line %d: %+v", i, in)
		}
		if strings.HasPrefix(in.ID, in.Class+"-") {
			right++
		}
		for _, out := range outside {
			if out.Score > in.Score {
				ordered++
			} else if out.Score == in.Score {
				ordered += .5
			}
		}
	}
	accuracy, auroc := float64(right)/float64(len(inside)), ordered/float64(len(inside))/float64(len(outside))
	if math.Abs(accuracy-.991) > .0005 || math.Abs(auroc-.984) > .0005 {
		t.Errorf("accuracy %.4f and AUROC %.4f, want 0.991 and 0.984", accuracy, auroc)
	}
}

// rowsFile writes rows of dimension 32 as JSON lines, each filled with a value.
func rowsFile(t *testing.T, path string, values ...string) string {
	t.Helper()
	var b strings.Builder
	for _, v := range values {
		b.WriteString(`{"embedding":[` + strings.Repeat(v+",", 31) + v + "]}\n")
	}
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Rows are numbered in their own file, and the naming of bad ones is bounded.
func TestScoreNamesBadRows(t *testing.T) {
	dir, model := t.TempDir(), importDigits(t)
	a := rowsFile(t, filepath.Join(dir, "a.jsonl"), "1", "2", "0")
	b := rowsFile(t, filepath.Join(dir, "b.jsonl"), append([]string{"1"}, strings.Split(strings.Repeat("0 ", 15), " ")[:15]...)...)
	o := oodmon(t, 0, "score", "--model", model, a, b)
	if lines := scoreLines(t, o.stdout); len(lines) != 3 || lines[1].Row != 1 || lines[2].Row != 0 || lines[2].Topic != b {
		t.Errorf("%+v", lines)
	}
	warnings := strings.Split(strings.TrimSpace(o.stderr), "\n")
	if len(warnings) != maxNamed+1 {
		t.Fatalf("%d lines, want %d:\n%s", len(warnings), maxNamed+1, o.stderr)
	}
	for i, want := range []string{a + ": row 2 has no direction", b + ": row 1 has no direction"} {
		if !strings.HasPrefix(warnings[i], "oodmon: "+want) {
			t.Errorf("%s\nwant %s", warnings[i], want)
		}
	}
	if last := warnings[maxNamed]; last != "oodmon: 16 of 19 rows have no score" {
		t.Errorf("%s", last)
	}
}

func TestScoreRefuses(t *testing.T) {
	dir, model := t.TempDir(), importDigits(t)
	other := filepath.Join(dir, "other.jsonl")
	if err := os.WriteFile(other, []byte(`{"embedding":[1,2]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(dir, "registry")
	if err := os.Mkdir(empty, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--model", model, "--format", "xml", other}, 2, "--format: format \"xml\" is not one of jsonl, csv, arrow"},
		{[]string{"--model", model, "--input-format", "xml", "-"}, 2, `--input-format: "xml" is not one of ["arrow" "parquet" "npy" "jsonl"]`},
		{[]string{"--model", empty, other}, 1, "registry " + empty + ": the registry has no current model"},
		{[]string{"--model", other, other}, 1, other + ": read model: the header claims"},
		{[]string{"--model", model, filepath.Join(dir, "none.npy")}, 1, "none.npy: no such file or directory"},
		{[]string{"--model", model, "-"}, 1, "standard input: holds no rows"},
		{[]string{"--model", model, other}, 1, other + ": score: the embeddings have dimension 2, model "},
	} {
		o := oodmonWith(t, "", append([]string{"score"}, test.args...)...)
		if o.code != test.code || strings.Count(o.stderr, test.want) != 1 {
			t.Errorf("%v: code %d, %s\nwant %d, %s", test.args, o.code, o.stderr, test.code, test.want)
		}
	}
}

// A failure leaves the old output; what is no file is written to.
func TestScoreOutput(t *testing.T) {
	dir, model := t.TempDir(), importDigits(t)
	rows, output := rowsFile(t, filepath.Join(dir, "rows.jsonl"), "1", "2"), filepath.Join(dir, "scores.jsonl")
	oodmon(t, 0, "score", "--model", model, "--output", output, rows)
	before, err := os.ReadFile(output)
	if err != nil || strings.Count(string(before), "\n") != 2 {
		t.Fatalf("%v: %s", err, before)
	}
	bad := filepath.Join(dir, "bad.jsonl")
	if err := os.WriteFile(bad, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	oodmon(t, 1, "score", "--model", model, "--output", output, rows, bad)
	if after, err := os.ReadFile(output); err != nil || string(after) != string(before) {
		t.Errorf("%v: %s", err, after)
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".oodmon-*")); err != nil || left != nil {
		t.Errorf("%v, %v", left, err)
	}
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	read := make(chan string)
	go func() {
		content, err := os.ReadFile(pipe)
		if err != nil {
			content = []byte(err.Error())
		}
		read <- string(content)
	}()
	oodmon(t, 0, "score", "--model", model, "--output", pipe, rows)
	if got := <-read; got != string(before) {
		t.Errorf("through a pipe: %s", got)
	}
	if info, err := os.Stat(pipe); err != nil || info.Mode().IsRegular() {
		t.Errorf("the pipe is gone: %v, %v", info, err)
	}
}

// With --fdr the rows of all files are decided together.
func TestScoreFDR(t *testing.T) {
	model := importDigits(t)
	count := func(args ...string) (inside, outside int, stderr string) {
		got := oodmon(t, 0, append([]string{"score", "--model", model, digits("test.arrow"), digits("ood.arrow")}, args...)...)
		for _, line := range scoreLines(t, got.stdout) {
			switch {
			case !line.OOD:
			case line.Topic == digits("test.arrow"):
				inside++
			default:
				outside++
			}
		}
		return inside, outside, got.stderr
	}
	_, byThreshold, _ := count()
	for _, method := range []string{"bh", "storey"} {
		inside, outside, stderr := count("--fdr", "0.1", "--fdr-method", method)
		if share := float64(inside) / float64(inside+outside); share > .13 || outside < byThreshold {
			t.Errorf("%s: of %d rows called OOD %d are not, a share of %.3f; the threshold finds %d", method, inside+outside, inside, share, byThreshold)
		}
		if want := "a lone outlier among these 3942 rows cannot be called at --fdr 0.1; 39419 would be needed"; !strings.Contains(stderr, want) {
			t.Errorf("standard error %q, want %q", stderr, want)
		}
	}
	inside, outside, stderr := count("--per-class")
	if inside > 50 || outside < 500 {
		t.Errorf("by class: %d of 2020 known and %d of 1922 unknown digits are called OOD", inside, outside)
	}
	if want := "oodmon: per class: 0 of 8 classes have a threshold of their own, which takes 299 calibration records each; the others share one\n"; stderr != want {
		t.Errorf("by class: %swant %s", stderr, want)
	}
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"--fdr", "0.1", "-"}, "--fdr reads its input twice, so standard input will not do"},
		{[]string{"--fdr-method", "storey", digits("test.arrow")}, "--fdr-method needs --fdr"},
		{[]string{"--fdr", "2", digits("test.arrow")}, "it must be a number between 0 and 1"},
		{[]string{"--fdr", "0.1", "--fdr-method", "by", digits("test.arrow")}, `--fdr-method: "by" is not one of ["bh" "storey"]`},
	} {
		if got := oodmon(t, 2, append([]string{"score", "--model", model}, test.args...)...); !strings.Contains(got.stderr, test.want) {
			t.Errorf("standard error %q, want %q", got.stderr, test.want)
		}
	}
}
