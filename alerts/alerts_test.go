package alerts_test

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/oodmon/oodmon/alerts"
	"go.yaml.in/yaml/v3"
)

type rule struct {
	Alert       string            `yaml:"alert"`
	Expr        string            `yaml:"expr"`
	Labels      map[string]string `yaml:"labels"`
	Annotations map[string]string `yaml:"annotations"`
}

func rules(t *testing.T) []rule {
	t.Helper()
	var file struct {
		Groups []struct {
			Name  string `yaml:"name"`
			Rules []rule `yaml:"rules"`
		} `yaml:"groups"`
	}
	if err := yaml.Unmarshal(alerts.Rules, &file); err != nil {
		t.Fatal(err)
	}
	var all []rule
	for _, g := range file.Groups {
		all = append(all, g.Rules...)
	}
	if len(all) == 0 {
		t.Fatal("rules.yml holds no rule")
	}
	return all
}

func TestEveryAlertTellsWhatToDo(t *testing.T) {
	const runbooks = "https://github.com/oodmon/oodmon/blob/main/docs/runbooks/"
	for _, r := range rules(t) {
		if !slices.Contains([]string{"page", "ticket", "info"}, r.Labels["severity"]) {
			t.Errorf("%s: severity %q is not page, ticket or info", r.Alert, r.Labels["severity"])
		}
		for _, key := range []string{"summary", "description"} {
			if r.Annotations[key] == "" {
				t.Errorf("%s: no %s", r.Alert, key)
			}
		}
		page, ok := strings.CutPrefix(r.Annotations["runbook_url"], runbooks)
		if !ok || page != r.Alert+".md" {
			t.Errorf("%s: runbook_url %q, want %s%s.md", r.Alert, r.Annotations["runbook_url"], runbooks, r.Alert)
			continue
		}
		text, err := os.ReadFile(filepath.Join("..", "docs", "runbooks", page))
		if err != nil {
			t.Errorf("%s: %v", r.Alert, err)
			continue
		}
		for _, section := range []string{"Meaning", "Impact", "Diagnosis", "What to do", "False positives"} {
			if !strings.Contains(string(text), "\n## "+section+"\n") {
				t.Errorf("%s: its runbook has no section %q", r.Alert, section)
			}
		}
	}
}

func TestEveryRunbookHasAnAlert(t *testing.T) {
	all := rules(t)
	pages, err := filepath.Glob("../docs/runbooks/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range pages {
		name := strings.TrimSuffix(filepath.Base(page), ".md")
		if !slices.ContainsFunc(all, func(r rule) bool { return r.Alert == name }) {
			t.Errorf("%s: no alert %s", page, name)
		}
	}
}

// metric matches the names of oodmon's metrics in PromQL.
var metric = regexp.MustCompile(`\boodmon_[a-z_]+`)

func TestRulesUseDocumentedMetrics(t *testing.T) {
	documented, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rules(t) {
		// Descriptions name metrics too, and ask for some.
		text := strings.Join([]string{r.Expr, r.Annotations["summary"], r.Annotations["description"]}, "\n")
		names := metric.FindAllString(text, -1)
		if r.Alert != "OodmonDown" && len(names) == 0 {
			t.Errorf("%s: its expression uses no metric of oodmon: %s", r.Alert, r.Expr)
		}
		for _, name := range names {
			if !strings.Contains(string(documented), "| `"+name+"` |") {
				t.Errorf("%s: uses %s, which docs/metrics.md does not know", r.Alert, name)
			}
		}
	}
}

// Both windows of an alert on the OOD rate have one bound, and the burn rates
// are those that the runbook tells.
func TestBurnRates(t *testing.T) {
	windows := regexp.MustCompile(`> (?:([0-9.]+) \* )?([0-9.]+)`)
	got := map[string]float64{}
	for _, r := range rules(t) {
		if r.Alert != "OodmonOODRate" {
			continue
		}
		bounds := windows.FindAllStringSubmatch(r.Expr, -1)
		if len(bounds) != 2 || bounds[0][0] != bounds[1][0] {
			t.Fatalf("window %s: want the same bound on both windows, got %q", r.Labels["window"], bounds)
		}
		factor := 1.
		if bounds[0][1] != "" {
			factor, _ = strconv.ParseFloat(bounds[0][1], 64)
		}
		got[r.Labels["window"]] = factor
	}
	want := map[string]float64{"1h": 14.4, "6h": 6, "3d": 1}
	if !maps.Equal(got, want) {
		t.Errorf("burn rates %v, want %v", got, want)
	}
}
