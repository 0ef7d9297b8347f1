package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestIncidents(t *testing.T) {
	dir := t.TempDir()
	const text = `{"id":"20260102T030405.000000Z-shift","detector":"shift","onset":{"time":"2026-01-02T03:00:00Z","ood_rate_before":0.01,"ood_rate_after":0.2},"features":[{"feature":"t1"}]}`
	if err := os.WriteFile(filepath.Join(dir, "20260102T030405.000000Z-shift.incident.json"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := oodmon(t, 0, "incidents", "list", "--dir", dir).stdout; !strings.Contains(got, "20260102T030405.000000Z-shift  2026-01-02T03:00:00Z           t1           1.00 %      20.00 %") {
		t.Errorf("list:\n%s", got)
	}
	if got := oodmon(t, 0, "incidents", "show", "--dir", dir, "20260102T030405.000000Z-shift").stdout; !strings.Contains(got, `"ood_rate_after": 0.2`) {
		t.Errorf("show:\n%s", got)
	}
	if got := oodmon(t, 1, "incidents", "show", "--dir", dir, "x").stderr; !strings.Contains(got, "no incident x in "+dir) {
		t.Errorf("show x: %s", got)
	}
	if got := oodmon(t, 1, "incidents", "list", "--dir", filepath.Join(dir, "nowhere")).stderr; !strings.Contains(got, "oodmon: --dir: stat "+dir) {
		t.Errorf("no folder: %s", got)
	}
	if got := oodmon(t, 2, "incidents", "list").stderr; !strings.Contains(got, `required flag(s) "dir" not set`) {
		t.Errorf("without a folder: %s", got)
	}
}
