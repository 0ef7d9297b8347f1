// Command driftstreams runs oodmon's two drift detectors over score streams in
// .npy files, for bench/drift_comparison.py. One record is one second.
//
//	driftstreams --dir FOLDER --mean-time 100000
//
// FOLDER holds calibration.npy, float32 [n], and any number of other .npy files,
// float32 [streams, length]; classes/ may hold the predicted classes of all of
// them, numbers in float32 too. For each of these it prints the places of all
// alarms by detector and stream. In null.npy, where false alarms are counted, an
// alarm is acknowledged at once and both detectors begin anew; in the others none
// is, so that the alarm of one does not cut short what the other gathers.
package main

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/oodmon/oodmon/drift"
	"github.com/prometheus/client_golang/prometheus"
)

func main() {
	dir := flag.String("dir", "", "folder of streams")
	meanTime := flag.Float64("mean-time", 1e5, "mean time to a false alarm, both detectors together, in records")
	flag.Parse()
	if err := run(*dir, *meanTime, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "driftstreams:", err)
		os.Exit(1)
	}
}

// alarms holds the places of the alarms of each stream.
type alarms map[string][][]int

func run(dir string, meanTime float64, out io.Writer) error {
	calibration, _, err := readNPY(filepath.Join(dir, "calibration.npy"))
	if err != nil {
		return err
	}
	of := func(name string, n int) ([]int32, error) {
		return readClasses(filepath.Join(dir, "classes", name+".npy"), n)
	}
	class, err := of("calibration", len(calibration))
	if err != nil {
		return err
	}
	base := baseline(calibration, class)
	paths, err := filepath.Glob(filepath.Join(dir, "*.npy"))
	if err != nil {
		return err
	}
	found := map[string]alarms{}
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), ".npy")
		if name == "calibration" {
			continue
		}
		scores, shape, err := readNPY(path)
		if err != nil {
			return err
		}
		if len(shape) != 2 {
			return fmt.Errorf("%s: shape %v, want [streams, length]", path, shape)
		}
		class, err := of(name, len(scores))
		if err != nil {
			return err
		}
		all := alarms{}
		for i := range shape[0] {
			from, to := i*shape[1], (i+1)*shape[1]
			got, err := watch(base, scores[from:to], class[from:to], meanTime, name == "null")
			if err != nil {
				return err
			}
			for _, detector := range drift.Detectors {
				all[detector] = append(all[detector], append([]int{}, got[detector]...))
			}
		}
		found[name] = all
	}
	return json.NewEncoder(out).Encode(found)
}

// baseline sorts the calibration by score.
func baseline(scores []float32, class []int32) drift.Baseline {
	order := make([]int, len(scores))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(scores[a], scores[b]) })
	base := drift.Baseline{Model: "m"}
	most := int32(0)
	for _, i := range order {
		base.Scores, base.Class = append(base.Scores, scores[i]), append(base.Class, class[i])
		most = max(most, class[i])
	}
	for c := range most + 1 {
		base.Classes = append(base.Classes, strconv.Itoa(int(c)))
	}
	return base
}

// watch returns the places of the alarms in one stream, by detector.
func watch(base drift.Baseline, scores []float32, class []int32, meanTime float64, acknowledge bool) (map[string][]int, error) {
	cfg := drift.DefaultConfig()
	cfg.MeanTimeToFalseAlarm = time.Duration(meanTime * float64(time.Second))
	second := int64(1_700_000_000)
	clock := func() time.Time { return time.Unix(second, 0) }
	w, err := drift.New(cfg, "scores", base, clock, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	b := drift.Batch{Model: "m", Offset: make([]int64, 1), Row: make([]int32, 1), OOD: make([]bool, 1), Time: make([]int64, 1)}
	found := map[string][]int{}
	for i := range scores {
		second++
		b.Offset[0], b.Time[0], b.Score = int64(i), second*1e6, scores[i:i+1]
		b.Class = class[i : i+1]
		raised := false
		for _, a := range w.Observe(&b) {
			if slices.Contains(drift.Detectors[:], a.Detector) {
				found[a.Detector] = append(found[a.Detector], i)
				raised = true
			}
		}
		if raised && acknowledge {
			w.Acknowledge()
		}
	}
	return found, nil
}

// readClasses returns n zeros where there is no such file.
func readClasses(path string, n int) ([]int32, error) {
	class := make([]int32, n)
	values, _, err := readNPY(path)
	if errors.Is(err, fs.ErrNotExist) {
		return class, nil
	}
	if err != nil {
		return nil, err
	}
	if len(values) != n {
		return nil, fmt.Errorf("%s: %d classes for %d scores", path, len(values), n)
	}
	for i, v := range values {
		class[i] = int32(v)
	}
	return class, nil
}

var npyHeader = regexp.MustCompile(`'descr': '<f4'.*'fortran_order': False.*'shape': \(([0-9, ]+)\)`)

// readNPY reads a little-endian float32 array of NumPy's format 1.0.
func readNPY(path string) ([]float32, []int, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	if len(raw) < 10 || string(raw[:8]) != "\x93NUMPY\x01\x00" {
		return nil, nil, fmt.Errorf("%s: not an .npy file of version 1.0", path)
	}
	start := 10 + int(binary.LittleEndian.Uint16(raw[8:]))
	if start > len(raw) {
		return nil, nil, fmt.Errorf("%s: cut off in its header", path)
	}
	match := npyHeader.FindSubmatch(raw[10:start])
	if match == nil {
		return nil, nil, fmt.Errorf("%s: want float32 in C order, the header says %s", path, raw[10:start])
	}
	n, shape := 1, []int{}
	for _, field := range strings.FieldsFunc(string(match[1]), func(r rune) bool { return r == ',' || r == ' ' }) {
		d, err := strconv.Atoi(field)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: shape: %w", path, err)
		}
		n *= d
		shape = append(shape, d)
	}
	if len(raw)-start != 4*n {
		return nil, nil, fmt.Errorf("%s: %d bytes of data, want %d", path, len(raw)-start, 4*n)
	}
	values := make([]float32, n)
	for i := range values {
		values[i] = math.Float32frombits(binary.LittleEndian.Uint32(raw[start+4*i:]))
	}
	return values, shape, nil
}
