package model

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gorgonia.org/tensor"
)

// small returns a model whose content, and so its version, depends on seed.
func small(seed float32) *Model {
	scores, class := make([]float32, 400), make([]int32, 400)
	for i := range scores {
		scores[i], class[i] = float32(i)/400, int32(i%2)
	}
	return &Model{
		Detector: IsoMaxPlus, Score: MDS, EntropicScale: 10, Temperature: 1, Alpha: .01, Delta: .05,
		Classes: []string{"cat", "dog"}, Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Prototypes:    tensor.New(tensor.WithShape(2, 3), tensor.WithBacking([]float32{1, 2, 3, seed, 5, 6})),
		DistanceScale: 1.5, Calibration: NewCalibration(scores, class),
	}
}

func newRegistry(t *testing.T) (*Registry, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "registry")
	r, err := OpenRegistry(dir)
	if err != nil {
		t.Fatal(err)
	}
	return r, dir
}

func publish(t *testing.T, r *Registry, seed float32) string {
	t.Helper()
	version, err := r.Publish(t.Context(), small(seed), Event{})
	if err != nil {
		t.Fatal(err)
	}
	return version
}

func wantCurrent(t *testing.T, r *Registry, want string) {
	t.Helper()
	if got, err := r.Current(t.Context()); err != nil || got != want {
		t.Fatalf("current is %q, %v; want %q", got, err, want)
	}
}

func TestRegistry(t *testing.T) {
	r, dir := newRegistry(t)
	if _, err := r.Current(t.Context()); !errors.Is(err, ErrNoCurrent) || !strings.Contains(err.Error(), dir) {
		t.Fatalf("an empty registry: %v", err)
	}
	if _, err := r.Rollback(t.Context()); !errors.Is(err, ErrNoCurrent) {
		t.Fatalf("rollback of an empty registry: %v", err)
	}
	a, b, c := publish(t, r, 1), publish(t, r, 2), publish(t, r, 3)
	wantCurrent(t, r, c)
	for _, want := range []string{b, a} { // one further back each time
		if got, err := r.Rollback(t.Context()); err != nil || got != want {
			t.Fatalf("rollback to %q, %v; want %q", got, err, want)
		}
		wantCurrent(t, r, want)
	}
	if _, err := r.Rollback(t.Context()); !errors.Is(err, ErrNoPrevious) || !strings.HasSuffix(err.Error(), ": roll back: the history names no model that was in service before "+a) {
		t.Fatalf("rollback before the first: %v", err)
	}
	if err := r.Promote(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	wantCurrent(t, r, c)
	publish(t, r, 3) // the same once more is no other model to roll back to
	if got, err := r.Rollback(t.Context()); err != nil || got != a {
		t.Fatalf("rollback to %q, %v; want %q", got, err, a)
	}
	if err := r.Promote(t.Context(), "0123456789ab"); !errors.Is(err, ErrNotFound) {
		t.Fatalf("promotion of a version that is not there: %v", err)
	}
	versions, err := r.List(t.Context())
	if err != nil || len(versions) != 3 {
		t.Fatalf("list: %v, %v", versions, err)
	}
	events, torn, err := r.History(t.Context())
	if err != nil || torn != nil {
		t.Fatal(torn, err)
	}
	var kinds []string
	for _, e := range events {
		kinds = append(kinds, string(e.Kind))
	}
	if got := strings.Join(kinds, ","); got != "published,published,published,rolled back,rolled back,promoted,published,rolled back" {
		t.Errorf("history: %s", got)
	}
	if events[1].Previous != a || events[1].Version != b {
		t.Errorf("history does not say what replaced what: %+v", events[1])
	}
}

// Each step of a publication that dies must leave the old model in service.
func TestRegistryInterruptedPublication(t *testing.T) {
	r, dir := newRegistry(t)
	old := publish(t, r, 1)
	if _, err := r.Add(t.Context(), small(2)); err != nil { // died before the history
		t.Fatal(err)
	}
	wantCurrent(t, r, old)
	history := filepath.Join(dir, historyName)
	text, err := os.ReadFile(history)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(history, append(text, `{"time":"2026-01-02T03:04`...), 0o644); err != nil { // torn by another tool
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, ".tmp-123"), []byte("half"), 0o644); err != nil {
		t.Fatal(err)
	}
	wantCurrent(t, r, old)
	next := publish(t, r, 3)
	wantCurrent(t, r, next)
	events, torn, err := r.History(t.Context())
	if err != nil || !slices.Equal(torn, []int{2}) || len(events) != 2 {
		t.Fatalf("%d events, torn lines %v, %v; want 2 and line 2", len(events), torn, err)
	}
	if got, err := r.Rollback(t.Context()); err != nil || got != old {
		t.Fatalf("rollback to %q, %v; want %q", got, err, old)
	}
}

// A publication that died after the history and before CURRENT was never in
// service: a rollback must not bring it there.
func TestRollbackSkipsWhatWasNeverInService(t *testing.T) {
	r, dir := newRegistry(t)
	current := filepath.Join(dir, currentName)
	dies := func(seed float32) {
		t.Helper()
		before, err := os.ReadFile(current)
		if err != nil {
			t.Fatal(err)
		}
		publish(t, r, seed)
		if err := os.WriteFile(current, before, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	wantRollback := func(want string) {
		t.Helper()
		if got, err := r.Rollback(t.Context()); err != nil || got != want {
			t.Fatalf("rollback to %q, %v; want %q", got, err, want)
		}
		wantCurrent(t, r, want)
	}
	a, b := publish(t, r, 1), publish(t, r, 2)
	dies(3)
	wantCurrent(t, r, b)
	wantRollback(a)
	d := publish(t, r, 4)
	dies(5)
	publish(t, r, 6)
	wantRollback(d)
	wantRollback(a)
}

// A rollback that died after the history is done again by the next.
func TestRollbackThatDied(t *testing.T) {
	r, dir := newRegistry(t)
	a, b := publish(t, r, 1), publish(t, r, 2)
	if _, err := r.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, currentName), []byte(b), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := r.Rollback(t.Context()); err != nil || got != a {
		t.Fatalf("rollback to %q, %v; want %q", got, err, a)
	}
}

func TestRegistryRefusesDamage(t *testing.T) {
	r, dir := newRegistry(t)
	version := publish(t, r, 1)
	path := filepath.Join(dir, modelsName, version+extension)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	flipped := append([]byte(nil), whole...)
	flipped[len(flipped)-1] ^= 1
	other, err := small(9).Encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		file []byte
		want string
	}{
		"empty":     {nil, "the file has 0 bytes: too short for a safetensors file"},
		"truncated": {whole[:len(whole)-5], "data_offsets"},
		"bit flip":  {flipped, "the file is damaged"},
		"other":     {other, "it was changed or renamed"},
	} {
		if err := os.WriteFile(path, test.file, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Load(t.Context(), version); err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), version) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, currentName), []byte("../../etc/passwd"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Current(t.Context()); err == nil || !strings.Contains(err.Error(), "is not a version") {
		t.Errorf("CURRENT with a path: %v", err)
	}
}

func TestRegistryLock(t *testing.T) {
	r, _ := newRegistry(t)
	release, err := r.Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Lock(t.Context()); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), "by process ") {
		t.Fatalf("second lock: %v", err)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	again, err := r.Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := again(); err != nil {
		t.Fatal(err)
	}
}

func TestOpenRegistryRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for location, want := range map[string]string{
		"":                 "open registry: the location is empty",
		"s3://bucket/path": "open registry s3://bucket/path: only folders are supported",
		file:               "open registry " + file + ": not a folder",
	} {
		if _, err := OpenRegistry(location); err == nil || err.Error() != want {
			t.Errorf("%q: %v, want %s", location, err, want)
		}
	}
}
