package model

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"
)

// The errors of a registry that a caller acts on.
var (
	ErrNoCurrent  = errors.New("the registry has no current model")
	ErrNotFound   = errors.New("no such model in the registry")
	ErrNoPrevious = errors.New("the history names no model that was in service before")
	ErrLocked     = errors.New("the registry is locked")
)

const (
	currentName = "CURRENT"
	historyName = "history.jsonl"
	lockName    = "LOCK"
	modelsName  = "models"
	extension   = ".safetensors"
)

// A Registry keeps model files and says which one is in service:
//
//	models/<version>.safetensors   never changed once written
//	history.jsonl                  what happened, one JSON object a line
//	CURRENT                        the version in service
//
// CURRENT is written last, and all at once: a process that dies on the way
// leaves the old model in service.
type Registry struct {
	location string
	store    store
}

// OpenRegistry opens the registry in a folder. The folder need not exist: it
// is made by the first write.
func OpenRegistry(location string) (*Registry, error) {
	if location == "" {
		return nil, errors.New("open registry: the location is empty")
	}
	if strings.Contains(location, "://") {
		return nil, fmt.Errorf("open registry %s: only folders are supported", location)
	}
	if info, err := os.Stat(location); err == nil && !info.IsDir() {
		return nil, fmt.Errorf("open registry %s: not a folder", location)
	}
	return &Registry{location, folder(location)}, nil
}

func (r *Registry) wrap(doing string, err error) error {
	return fmt.Errorf("registry %s: %s: %w", r.location, doing, err)
}

// Current returns the version in service, or ErrNoCurrent.
func (r *Registry) Current(ctx context.Context) (string, error) {
	text, err := r.store.get(ctx, currentName)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("registry %s: %w", r.location, ErrNoCurrent)
	}
	if err != nil {
		return "", r.wrap("read "+currentName, err)
	}
	version := strings.TrimSpace(string(text))
	if !isVersion(version) {
		return "", r.wrap("read "+currentName, fmt.Errorf("%q is not a version: %d hex digits were expected", version, versionDigits))
	}
	return version, nil
}

func isVersion(s string) bool {
	return len(s) == versionDigits && strings.Trim(s, "0123456789abcdef") == ""
}

// Load reads a version. A file whose content is not what its name says is an
// error.
func (r *Registry) Load(ctx context.Context, version string) (*Model, error) {
	doing := "load model " + version
	if !isVersion(version) {
		return nil, r.wrap(doing, fmt.Errorf("%q is not a version: %d hex digits were expected", version, versionDigits))
	}
	file, err := r.store.get(ctx, modelsName+"/"+version+extension)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, r.wrap(doing, ErrNotFound)
	}
	if err != nil {
		return nil, r.wrap(doing, err)
	}
	m, err := decode(file)
	if err != nil {
		return nil, r.wrap(doing, err)
	}
	if m.Version != version {
		return nil, r.wrap(doing, fmt.Errorf("the file's content is version %s: it was changed or renamed", m.Version))
	}
	return m, nil
}

// List returns the versions whose files are in the registry.
func (r *Registry) List(ctx context.Context) ([]string, error) {
	names, err := r.store.list(ctx, modelsName)
	if err != nil {
		return nil, r.wrap("list models", err)
	}
	var versions []string
	for _, name := range names {
		if version, ok := strings.CutSuffix(name, extension); ok && isVersion(version) {
			versions = append(versions, version)
		}
	}
	return versions, nil
}

// An EventKind is what happened to a registry.
type EventKind string

const (
	// EventPublished: a model was written and put into service.
	EventPublished EventKind = "published"
	// EventImported: a model was written, but not put into service.
	EventImported EventKind = "imported"
	// EventUnchanged: retraining made the model again that is in service, and
	// published nothing.
	EventUnchanged EventKind = "unchanged"
	// EventRefused: retraining ended, and the gate refused the candidate.
	EventRefused EventKind = "refused"
	// EventFailed: retraining failed.
	EventFailed EventKind = "failed"
	// EventPromoted and EventRolledBack: another version was put into service.
	EventPromoted   EventKind = "promoted"
	EventRolledBack EventKind = "rolled back"
)

// RunResults are the kinds in which a retraining ends.
var RunResults = []EventKind{EventPublished, EventUnchanged, EventRefused, EventFailed}

// An Event is a line of the history.
type Event struct {
	Time    time.Time `json:"time"`
	Kind    EventKind `json:"kind"`
	Version string    `json:"version,omitempty"`
	// Previous is the version that was in service before.
	Previous string `json:"previous,omitempty"`
	// Retraining tells the outcome of `oodmon retrain` from a publication by hand.
	Retraining bool `json:"retraining,omitempty"`
	// Detail is what a person wants to know: why it was refused or failed.
	Detail string `json:"detail,omitempty"`
}

// History returns the events, oldest first. Lines that cannot be read are left
// out; torn holds their numbers, from 1.
func (r *Registry) History(ctx context.Context) (events []Event, torn []int, err error) {
	text, err := r.store.get(ctx, historyName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, r.wrap("read "+historyName, err)
	}
	events, torn = decodeHistory(text)
	return events, torn, nil
}

func decodeHistory(text []byte) (events []Event, torn []int) {
	number := 0
	for line := range bytes.Lines(text) {
		number++
		if len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		var e Event
		if json.Unmarshal(line, &e) != nil || e.Kind == "" || (e.Version != "" && !isVersion(e.Version)) {
			torn = append(torn, number)
			continue
		}
		events = append(events, e)
	}
	return events, torn
}

// Record appends an event to the history.
func (r *Registry) Record(ctx context.Context, e Event) error {
	if e.Time.IsZero() {
		e.Time = time.Now().UTC().Truncate(time.Second)
	}
	line, err := json.Marshal(e)
	if err != nil {
		return r.wrap("record "+string(e.Kind), err)
	}
	text, err := r.store.get(ctx, historyName)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return r.wrap("record "+string(e.Kind), err)
	}
	if n := len(text); n > 0 && text[n-1] != '\n' {
		text = append(text, '\n') // a torn line stays on its own
	}
	if err := r.store.put(ctx, historyName, append(append(text, line...), '\n')); err != nil {
		return r.wrap("record "+string(e.Kind), err)
	}
	return nil
}

// Add writes a model's file without putting it into service, and returns its
// version. Adding it again writes the same bytes.
func (r *Registry) Add(ctx context.Context, m *Model) (string, error) {
	file, err := m.Encode()
	if err != nil {
		return "", r.wrap("add model", err)
	}
	if err := r.store.put(ctx, modelsName+"/"+m.Version+extension, file); err != nil {
		return "", r.wrap("add model "+m.Version, err)
	}
	return m.Version, nil
}

// Publish adds a model and puts it into service. The event's kind, version
// and previous version are filled in.
func (r *Registry) Publish(ctx context.Context, m *Model, e Event) (string, error) {
	version, err := r.Add(ctx, m)
	if err != nil {
		return "", err
	}
	e.Kind = EventPublished
	return version, r.putInService(ctx, version, e)
}

// Promote puts a version that the registry holds into service.
func (r *Registry) Promote(ctx context.Context, version string) error {
	if _, err := r.Load(ctx, version); err != nil {
		return err
	}
	return r.putInService(ctx, version, Event{Kind: EventPromoted})
}

// Rollback puts the version into service that was there before the current
// one, and returns it. Rolling back twice goes two versions back.
func (r *Registry) Rollback(ctx context.Context) (string, error) {
	current, err := r.Current(ctx)
	if err != nil {
		return "", err
	}
	events, _, err := r.History(ctx)
	if err != nil {
		return "", err
	}
	previous := previousVersion(events, current)
	if previous == "" {
		return "", r.wrap("roll back", fmt.Errorf("%w %s", ErrNoPrevious, current))
	}
	if _, err := r.Load(ctx, previous); err != nil {
		return "", err
	}
	return previous, r.putInService(ctx, previous, Event{Kind: EventRolledBack})
}

// previousVersion replays the history as a stack: what was put into service
// goes on top, and a rollback takes the top away. What each event, and at last
// CURRENT, says was in service corrects what died between the two.
func previousVersion(events []Event, current string) string {
	var stack []string
	for _, e := range events {
		switch e.Kind {
		case EventPublished, EventPromoted:
			if stack = cutTo(stack, e.Previous); e.Version != e.Previous {
				stack = append(stack, e.Version)
			}
		case EventRolledBack:
			stack = cutTo(stack, e.Previous)
			stack = cutTo(stack[:max(0, len(stack)-1)], e.Version)
		}
	}
	stack = cutTo(stack, current)
	if len(stack) < 2 {
		return ""
	}
	return stack[len(stack)-2]
}

// cutTo returns the stack with version on top: cut where it holds it.
func cutTo(stack []string, version string) []string {
	if version == "" {
		return nil
	}
	for i := len(stack) - 1; i >= 0; i-- {
		if stack[i] == version {
			return stack[:i+1]
		}
	}
	return append(stack, version)
}

func (r *Registry) putInService(ctx context.Context, version string, e Event) error {
	previous, err := r.Current(ctx)
	if err != nil && !errors.Is(err, ErrNoCurrent) {
		return err
	}
	e.Version, e.Previous = version, previous
	if err := r.Record(ctx, e); err != nil {
		return err
	}
	if err := r.store.put(ctx, currentName, []byte(version+"\n")); err != nil {
		return r.wrap("put "+version+" into service", err)
	}
	return nil
}

// Lock keeps other writers out: retraining, imports, promotions. It returns
// ErrLocked, with who holds it, rather than wait.
func (r *Registry) Lock(ctx context.Context) (release func() error, err error) {
	if release, err = r.store.lock(ctx); err != nil {
		return nil, fmt.Errorf("registry %s: %w", r.location, err)
	}
	return release, nil
}
