package dashboards_test

import (
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"
)

type target struct {
	RefID string `json:"refId"`
	Expr  string `json:"expr"`
}

type panel struct {
	ID          int    `json:"id"`
	Type        string `json:"type"`
	Title       string `json:"title"`
	Description string `json:"description"`
	GridPos     struct{ X, Y, W, H int }
	FieldConfig struct {
		Defaults struct {
			Unit string `json:"unit"`
		} `json:"defaults"`
	} `json:"fieldConfig"`
	Targets []target `json:"targets"`
}

type dashboard struct {
	UID         string  `json:"uid"`
	Panels      []panel `json:"panels"`
	Annotations struct {
		List []target `json:"list"`
	} `json:"annotations"`
	Templating struct {
		List []struct {
			Name       string `json:"name"`
			Definition string `json:"definition"`
		} `json:"list"`
	} `json:"templating"`
}

func grafana(t *testing.T) *dashboard {
	t.Helper()
	text, err := os.ReadFile("oodmon.json")
	if err != nil {
		t.Fatal(err)
	}
	var d dashboard
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	if len(d.Panels) == 0 {
		t.Fatal("oodmon.json holds no panel")
	}
	return &d
}

func TestPanelsAreDistinctAndExplained(t *testing.T) {
	ids := map[int]string{}
	titles := map[string]bool{}
	occupied := map[[2]int]string{}
	for _, p := range grafana(t).Panels {
		if other, taken := ids[p.ID]; taken || p.ID == 0 {
			t.Errorf("%s: id %d is that of %q", p.Title, p.ID, other)
		}
		ids[p.ID] = p.Title
		if titles[p.Title] || p.Title == "" {
			t.Errorf("panel %d: title %q is empty or taken", p.ID, p.Title)
		}
		titles[p.Title] = true
		g := p.GridPos
		if g.X < 0 || g.X+g.W > 24 || g.W < 1 || g.H < 1 {
			t.Errorf("%s: lies outside the grid of 24 columns: %+v", p.Title, g)
		}
		for x := g.X; x < g.X+g.W; x++ {
			for y := g.Y; y < g.Y+g.H; y++ {
				if other, taken := occupied[[2]int{x, y}]; taken {
					t.Fatalf("%s lies over %s", p.Title, other)
				}
				occupied[[2]int{x, y}] = p.Title
			}
		}
		if p.Type == "row" {
			continue
		}
		if p.Description == "" || p.FieldConfig.Defaults.Unit == "" || len(p.Targets) == 0 {
			t.Errorf("%s: want a description, a unit and a query", p.Title)
		}
		refs := map[string]bool{}
		for _, q := range p.Targets {
			if refs[q.RefID] || q.Expr == "" {
				t.Errorf("%s: query %q is empty or its refId is taken", p.Title, q.RefID)
			}
			refs[q.RefID] = true
		}
	}
}

// metric matches the names of oodmon's metrics in PromQL.
var metric = regexp.MustCompile(`\boodmon_[a-z_]+`)

func TestQueriesUseDocumentedMetrics(t *testing.T) {
	text, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := string(text)
	types := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `(oodmon_[a-z_]+)` \\| ([a-z ]+) \\|").FindAllStringSubmatch(documented, -1) {
		types[row[1]] = row[2]
	}
	known := func(name string) bool {
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			if base, ok := strings.CutSuffix(name, suffix); ok && types[base] == "histogram" {
				return true
			}
		}
		return types[name] != "" && types[name] != "histogram"
	}
	d := grafana(t)
	queries := d.Annotations.List
	for _, p := range d.Panels {
		queries = append(queries, p.Targets...)
	}
	for _, v := range d.Templating.List {
		queries = append(queries, target{Expr: v.Definition})
	}
	used := map[string]bool{}
	for _, q := range queries {
		for _, name := range metric.FindAllString(q.Expr, -1) {
			used[name] = true
			if !known(name) {
				t.Errorf("%s: uses %s, which docs/metrics.md does not know", q.Expr, name)
			}
		}
	}
	for _, name := range []string{"oodmon_ood_records_total", "oodmon_score", "oodmon_pvalue_bucket", "oodmon_consumer_lag_records", "oodmon_dead_letters_total",
		"oodmon_drift_evidence_seconds", "oodmon_drift_threshold_seconds", "oodmon_drift_feature_evidence_seconds", "oodmon_segment_drift_evidence_seconds", "oodmon_retrain_recommended"} {
		if !used[name] {
			t.Errorf("no panel shows %s", name)
		}
	}
}

func TestQueriesFollowTheModelVariable(t *testing.T) {
	for _, p := range grafana(t).Panels {
		for _, q := range p.Targets {
			for _, at := range metric.FindAllStringIndex(q.Expr, -1) {
				if rest := q.Expr[at[1]:]; !strings.HasPrefix(rest, `{model=~"$model"`) {
					t.Errorf("%s: %s is not limited to the chosen models", p.Title, q.Expr[at[0]:at[1]])
				}
			}
		}
	}
}
