package report

import (
	"bytes"
	"math"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/oodmon/oodmon/model"
	"github.com/oodmon/oodmon/trainer"
)

func digits(name string) trainer.Source {
	return trainer.Files(filepath.Join("..", "demo", "data", name))
}

// The page of real detectors holds what it promises, and asks for nothing from
// elsewhere.
func TestWrite(t *testing.T) {
	opts := trainer.Options{Data: digits("train.arrow"), Calibration: digits("calibration.arrow"), Recipe: trainer.DefaultRecipe(), Alpha: .01, Delta: .05, TempDir: t.TempDir()}
	opts.Recipe.Epochs = 1
	all, err := trainer.Compare(t.Context(), opts, []trainer.Choice{{Detector: model.IsoMaxPlus, Score: model.MDS}, {Detector: model.KNN, Score: model.Distance}}, digits("test.arrow"), digits("ood.arrow"), nil)
	if err != nil {
		t.Fatal(err)
	}
	all[0].Details.Model.Classes[0] = `<script>alert("0")</script>` // a class name from outside
	var page bytes.Buffer
	if err := Write(&page, all, time.Unix(0, 0)); err != nil {
		t.Fatal(err)
	}
	text := page.String()
	for what, want := range map[string]int{`<svg role="img" aria-label="ROC curve"`: 2, `aria-label="Histograms`: 2, `aria-label="Reliability diagram"`: 1, `aria-label="Map of`: 2, `class="matrix"`: 2, "<details": 2, "Detectors side by side": 1} {
		if got := strings.Count(text, what); got != want {
			t.Errorf("%s comes %d times, want %d", what, got, want)
		}
	}
	for _, e := range all {
		if !strings.Contains(text, percent(&e.AUROC)) || !strings.Contains(text, percent(&e.TNRAtTPR95)) {
			t.Errorf("the figures of %s are not there", e.Detector)
		}
	}
	if found := regexp.MustCompile(`(?i)<script|<link|<img|src=|url\(|@import|href="http`).FindString(text); found != "" {
		t.Errorf("the page asks for something: %s", found)
	}
	if !strings.Contains(text, "&lt;script&gt;") {
		t.Error("the class name is not escaped")
	}
}

// 1 of 100: the interval of Clopper and Pearson, from their tables.
func TestClopperPearson(t *testing.T) {
	for _, test := range []struct {
		share     float64
		n         int
		low, high float64
	}{{.01, 100, .000253, .054459}, {0, 100, 0, .036217}, {1, 10, .691503, 1}} {
		if low, high := clopperPearson(test.share, test.n); math.Abs(low-test.low) > 1e-5 || math.Abs(high-test.high) > 1e-5 {
			t.Errorf("%g of %d: %g to %g, want %g to %g", test.share, test.n, low, high, test.low, test.high)
		}
	}
}
