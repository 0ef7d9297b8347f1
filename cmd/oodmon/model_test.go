package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/oodmon/oodmon/model"
)

// A damaged file is named, and does not hide the others.
func TestModelListNamesDamage(t *testing.T) {
	registry := filepath.Join(t.TempDir(), "registry")
	var versions []string
	for _, alpha := range []string{"0.01", "0.02"} {
		o := oodmon(t, 0, "model", "import", "--head", digits("head.safetensors"), "--calibration", digits("calibration.arrow"), "--registry", registry, "--alpha", alpha)
		versions = append(versions, strings.TrimSpace(o.stdout))
	}
	if err := os.WriteFile(filepath.Join(registry, "models", versions[0]+".safetensors"), []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	o := oodmon(t, 1, "model", "list", "--registry", registry, "--json")
	var all []struct {
		Version string `json:"version"`
	}
	if err := json.Unmarshal([]byte(o.stdout), &all); err != nil || len(all) != 1 || all[0].Version != versions[1] {
		t.Errorf("%v: %s", err, o.stdout)
	}
	if want := "oodmon: registry " + registry + ": load model " + versions[0] + ": the file has 4 bytes: too short for a safetensors file\n"; o.stderr != want {
		t.Errorf("%swant %s", o.stderr, want)
	}
	if o := oodmon(t, 1, "model", "list", "--registry", registry); !strings.Contains(o.stdout, versions[1]) || strings.Contains(o.stdout, versions[0]) {
		t.Errorf("%s", o.stdout)
	}
}

// Who holds the registry is told, and it stays as it is.
func TestModelCommandsRespectTheLock(t *testing.T) {
	location := filepath.Join(t.TempDir(), "registry")
	registry, err := model.OpenRegistry(location)
	if err != nil {
		t.Fatal(err)
	}
	release, err := registry.Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	path := importDigits(t)
	if o := oodmon(t, 1, "model", "promote", "--registry", location, path); !strings.Contains(o.stderr, "registry "+location+": the registry is locked by process ") {
		t.Errorf("%s", o.stderr)
	}
	if versions, err := registry.List(t.Context()); err != nil || versions != nil {
		t.Errorf("%v, %v", versions, err)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	version := strings.TrimPrefix(strings.TrimSpace(oodmon(t, 0, "model", "promote", "--registry", location, path).stdout), "in service: ")
	if current, err := registry.Current(t.Context()); err != nil || current != version {
		t.Errorf("in service %q, %v; want %q", current, err, version)
	}
	// A registry serves where a model file does.
	if o := oodmon(t, 0, "score", "--model", location, digits("test.arrow")); !strings.Contains(o.stdout, `"model":"`+version+`"`) {
		t.Errorf("%.200s", o.stdout)
	}
}

func TestModelWrongUsage(t *testing.T) {
	head := []string{"model", "import", "--head", digits("head.safetensors"), "--calibration", digits("calibration.arrow")}
	for _, test := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"model", "lst"}, 2, `unknown command "lst" for "oodmon model"; did you mean list?; see 'oodmon model --help'`},
		{[]string{"model", "promote", "--registry", "x"}, 2, "accepts 1 arg(s), received 0; see 'oodmon model promote --help'"},
		{head, 2, "exactly one of --output and --registry is required"},
		{append(head, "--output", "x", "--promote"), 2, "--promote needs --registry"},
		{append(head, "--registry", "nowhere", "--force"), 2, "--force needs --promote"},
		{append(head, "--output", "x", "--alpha", "0"), 2, `invalid argument "0" for "--alpha" flag: it must be a number between 0 and 1; see 'oodmon model import --help'`},
		{append(head, "--output", "x", "--delta", "NaN"), 2, `invalid argument "NaN" for "--delta" flag: it must be a number between 0 and 1`},
		{[]string{"model", "list", "--registry", "nowhere"}, 1, "oodmon: --registry: stat nowhere: no such file or directory"},
		{[]string{"model", "rollback", "--registry", "nowhere"}, 1, "oodmon: --registry: stat nowhere: no such file or directory"},
		{[]string{"model", "promote", "--registry", "nowhere", "nowhere.safetensors"}, 1, "oodmon: stat nowhere.safetensors: no such file or directory"},
		{append(head, "--output", "x", "--alpha", "1e-300"), 1, "calibrate: too few calibration records: 1212 for a false-positive rate of 1e-300 with confidence 0.95; at least 2147483647 are needed: give more of them (--calibration), or allow a higher rate (--alpha)"},
	} {
		if o := oodmon(t, test.code, test.args...); !strings.Contains(o.stderr, test.want) {
			t.Errorf("%v: %s\nwant %s", test.args, o.stderr, test.want)
		}
	}
	if _, err := os.Stat("nowhere"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a mistyped registry was made: %v", err)
	}
}

// A model of another dimension goes into service by force only: a monitor would
// refuse it, or, restarted, every record. A rollback takes it back.
func TestModelsOfAnotherDimension(t *testing.T) {
	dir := t.TempDir()
	registry, data, other := filepath.Join(dir, "registry"), filepath.Join(dir, "data.jsonl"), filepath.Join(dir, "other.safetensors")
	var lines strings.Builder
	for i := range 4000 {
		fmt.Fprintf(&lines, "{\"embedding\":[%d,%g],\"label\":%d}\n", 2*(i%2)-1, float64(i%97)/97, i%2)
	}
	if err := os.WriteFile(data, []byte(lines.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	oodmon(t, 0, "train", "--detector", "class-means", "--data", data, "--output", other)
	oodmon(t, 0, "model", "promote", "--registry", registry, importDigits(t))
	models, err := model.OpenRegistry(registry)
	if err != nil {
		t.Fatal(err)
	}
	current := func() string {
		t.Helper()
		version, err := models.Current(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return version
	}
	first := current()
	want := "oodmon: the model is for embeddings of dimension 2, and " + first + ", which is in service, for dimension 32: a running monitor would not take it in, " +
		"and once restarted reject every embedding of dimension 32; --force puts it into service all the same\n"
	if o := oodmon(t, 1, "model", "promote", "--registry", registry, other); o.stderr != want || o.stdout != "" {
		t.Errorf("%swant %s", o.stderr, want)
	}
	if versions, err := models.List(t.Context()); err != nil || len(versions) != 1 || current() != first {
		t.Errorf("%v, %v", versions, err)
	}
	forced := oodmon(t, 0, "model", "promote", "--registry", registry, "--force", other).stdout
	second := current()
	if forced != "in service: "+second+"\n" || second == first {
		t.Errorf("%q, in service %s", forced, second)
	}
	// The other way, by a version and by an import.
	if o := oodmon(t, 1, "model", "promote", "--registry", registry, first); !strings.Contains(o.stderr, "the model is for embeddings of dimension 32, and "+second) {
		t.Errorf("%s", o.stderr)
	}
	if o := oodmon(t, 1, "model", "import", "--registry", registry, "--head", digits("head.safetensors"), "--calibration", digits("calibration.arrow"), "--promote"); !strings.Contains(o.stderr, "--force puts it into service all the same") {
		t.Errorf("%s", o.stderr)
	}
	if current() != second {
		t.Errorf("in service %s, want %s", current(), second)
	}
	oodmon(t, 0, "model", "rollback", "--registry", registry)
	if current() != first {
		t.Errorf("in service %s, want %s", current(), first)
	}
	// One that is damaged keeps nothing out.
	if err := os.WriteFile(filepath.Join(registry, "models", first+".safetensors"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	oodmon(t, 0, "model", "promote", "--registry", registry, second)
}

// The labels of the calibration records and the names of the classes have to agree.
func TestImportNamesClasses(t *testing.T) {
	dir := t.TempDir()
	data := filepath.Join(dir, "calibration.jsonl")
	var lines strings.Builder
	for i := range 400 {
		fmt.Fprintf(&lines, "{\"embedding\":[%d%s],\"label\":\"zero\"}\n", i+1, strings.Repeat(",1", 31))
	}
	if err := os.WriteFile(data, []byte(lines.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"model", "import", "--head", digits("head.safetensors"), "--calibration", data, "--output", filepath.Join(dir, "model.safetensors")}
	if o := oodmon(t, 0, args...); !strings.HasSuffix(o.stderr, "no calibration record has a label that the model knows; where they have labels, name the classes as these do, by --classes\n") {
		t.Errorf("%s", o.stderr)
	}
	if o := oodmon(t, 0, append(args, "--classes", "zero,1,2,3,4,5,6,7")...); !strings.Contains(o.stderr, "fitted to 400 labelled calibration records") {
		t.Errorf("%s", o.stderr)
	}
}

// A linear layer before the head comes along.
func TestImportTransform(t *testing.T) {
	const dim, k, classes = 32, 4, 2
	var body []byte
	for i := range dim*k + classes*k + 1 {
		body = binary.LittleEndian.AppendUint32(body, math.Float32bits(float32(math.Sin(float64(i+1)))))
	}
	header := fmt.Sprintf(`{"transform.matrix":{"dtype":"F32","shape":[%d,%d],"data_offsets":[0,512]},"prototypes":{"dtype":"F32","shape":[%d,%d],"data_offsets":[512,544]},"distance_scale":{"dtype":"F32","shape":[1],"data_offsets":[544,548]}}`, dim, k, classes, k)
	file := append(binary.LittleEndian.AppendUint64(nil, uint64(len(header))), header...)
	dir := t.TempDir()
	head, path := filepath.Join(dir, "head.safetensors"), filepath.Join(dir, "model.safetensors")
	if err := os.WriteFile(head, append(file, body...), 0o600); err != nil {
		t.Fatal(err)
	}
	o := oodmon(t, 0, "model", "import", "--head", head, "--calibration", digits("calibration.arrow"), "--output", path)
	if want := "oodmon: temperature 1: not fitted, since the transform before the head changes the dimension\n"; o.stderr != want {
		t.Errorf("%swant %s", o.stderr, want)
	}
	var info struct {
		Dim       int      `json:"dim"`
		Transform string   `json:"transform"`
		Classes   []string `json:"classes"`
	}
	if err := json.Unmarshal([]byte(oodmon(t, 0, "model", "show", path).stdout), &info); err != nil {
		t.Fatal(err)
	}
	if info.Dim != dim || info.Transform != "matrix 32×4" || strings.Join(info.Classes, " ") != "0 1" {
		t.Errorf("%+v", info)
	}
	if lines := scoreLines(t, oodmon(t, 0, "score", "--model", path, digits("test.arrow")).stdout); len(lines) != 2020 {
		t.Errorf("%d scores, want 2020", len(lines))
	}
}
