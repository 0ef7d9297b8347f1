package atomicfile

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func content(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestWriteReplaces(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state")
	for _, text := range []string{"the first content", "the second"} {
		if err := Write(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := content(t, path); got != text {
			t.Errorf("%q, want %q", got, text)
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v (%v), want -rw-------", info.Mode(), err)
	}
	if all := names(t, dir); len(all) != 1 {
		t.Errorf("the folder holds %q", all)
	}
}

func TestFinishKeepsTheOldContentAfterAnError(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state")
	if err := Write(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Create(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("half of the n"); err != nil {
		t.Fatal(err)
	}
	if got := content(t, path); got != "old" {
		t.Errorf("%q is read before the end", got)
	}
	failure := errors.New("the disk is full")
	if err := f.Finish(failure); !errors.Is(err, failure) {
		t.Errorf("Finish returned %v", err)
	}
	if got := content(t, path); got != "old" {
		t.Errorf("%q, want the old content", got)
	}
	if all := names(t, dir); len(all) != 1 {
		t.Errorf("the folder holds %q", all)
	}
}

// What a killed process left is removed; another's file, and one that is being
// written, are not.
func TestCreateRemovesWhatWasLeftADayAgo(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state")
	old := time.Now().Add(-25 * time.Hour)
	for name, changed := range map[string]time.Time{
		".state.tmp-left": old, ".state.tmp-inwork": time.Now(), ".other.tmp-left": old, "state.tmp-mine": old,
	} {
		name = filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(name, nil, 0o600), os.Chtimes(name, changed, changed)); err != nil {
			t.Fatal(err)
		}
	}
	if err := Write(path, []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	want := []string{".other.tmp-left", ".state.tmp-inwork", "state", "state.tmp-mine"}
	if all := names(t, dir); !slices.Equal(all, want) {
		t.Errorf("the folder holds %q, want %q", all, want)
	}
}

func TestWriteIntoNoFolder(t *testing.T) {
	if err := Write(filepath.Join(t.TempDir(), "missing", "state"), nil, 0o600); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v, want %v", err, os.ErrNotExist)
	}
}
