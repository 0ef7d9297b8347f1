//go:build acceptance

package drift

import (
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/oodmon/oodmon/featurizer"
	"github.com/oodmon/oodmon/model"
	"github.com/oodmon/oodmon/scorer"
	"gorgonia.org/tensor"
)

// Real embeddings: CLINC150 intents, in-distribution and out of scope, by the
// distance to the class means. They are not part of the repository.

// embeddings are rows of one file.
type embeddings struct {
	x     []float32
	label []string
}

func readEmbeddings(t *testing.T, name string) (e embeddings) {
	t.Helper()
	path := filepath.Join("..", "..", "shared", "data", "clinc150", name+".arrow")
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		t.Skipf("needs the CLINC150 embeddings: %s is not there", path)
	}
	r, err := featurizer.OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for {
		rec, err := r.Next()
		if errors.Is(err, io.EOF) {
			return e
		}
		if err != nil {
			t.Fatal(err)
		}
		x, _, err := featurizer.Embeddings(rec)
		if err != nil {
			t.Fatal(err)
		}
		e.x = append(e.x, x...)
		label, err := featurizer.Column[*array.String](rec, featurizer.ColLabel)
		if err != nil {
			t.Fatal(err)
		}
		for i := range label.Len() {
			e.label = append(e.label, string(append([]byte(nil), label.Value(i)...)))
		}
		rec.Release()
	}
}

const clincDim = 384

// scored are the answers of the head of class means.
type scored struct {
	score []float32
	class []int32
}

type clinc struct {
	head    *model.Model
	in, out scored // validation and test together; out of scope
	inside  embeddings
	val     int // so many of them are of validation, the first
}

func loadCLINC(t *testing.T) *clinc {
	train := readEmbeddings(t, "train")
	var names []string
	index := make(map[string]int)
	var sums []float32
	for i, label := range train.label {
		c, ok := index[label]
		if !ok {
			c = len(names)
			index[label], names = c, append(names, label)
			sums = append(sums, make([]float32, clincDim)...)
		}
		row := train.x[i*clincDim:][:clincDim]
		norm := 0.
		for _, v := range row {
			norm += float64(v) * float64(v)
		}
		for j, v := range row {
			sums[c*clincDim+j] += v / float32(math.Sqrt(norm))
		}
	}
	d := &clinc{head: &model.Model{
		Detector: model.IsoMaxPlus, Score: model.MDS, EntropicScale: 1, Temperature: 1, Classes: names, DistanceScale: 1,
		Prototypes: tensor.New(tensor.WithShape(len(names), clincDim), tensor.WithBacking(sums)),
	}}
	for _, name := range []string{"val", "test"} {
		e := readEmbeddings(t, name)
		if name == "val" {
			d.val = len(e.label)
		}
		d.inside.x, d.inside.label = append(d.inside.x, e.x...), append(d.inside.label, e.label...)
	}
	d.in, d.out = d.score(t, d.inside.x), d.score(t, readEmbeddings(t, "oos_test").x)
	return d
}

func (d *clinc) score(t *testing.T, x []float32) (s scored) {
	t.Helper()
	var err error
	if s.score, s.class, err = scorer.Distances(d.head, x); err != nil {
		t.Fatal(err)
	}
	return s
}

// hypergeometricBelow returns the probability that fewer than k of so many records,
// drawn from n, are among marked ones.
func hypergeometricBelow(k, drawn, marked, n int) (sum float64) {
	choose := func(n, k int) float64 {
		a, _ := math.Lgamma(float64(n + 1))
		b, _ := math.Lgamma(float64(k + 1))
		c, _ := math.Lgamma(float64(n - k + 1))
		return a - b - c
	}
	for i := range k {
		sum += math.Exp(choose(marked, i) + choose(n-marked, drawn-i) - choose(n, drawn))
	}
	return sum
}

func TestAcceptanceCLINC(t *testing.T) {
	d := loadCLINC(t)
	r := rand.New(rand.NewPCG(150, 150))
	n := len(d.in.score)

	const splits, calibrated, alpha = 200, 3000, .01
	// rate returns the share of all others above the threshold of these, and its rank.
	rate := func(of []int, others []int) (float64, int) {
		var scores []float32
		for _, i := range of {
			scores = append(scores, d.in.score[i])
		}
		threshold, k, err := model.NewCalibration(scores, make([]int32, len(scores))).Threshold(alpha, delta)
		if err != nil {
			t.Fatal(err)
		}
		flagged := 0
		for _, i := range others {
			if d.in.score[i] > threshold {
				flagged++
			}
		}
		return float64(flagged) / float64(len(others)), k
	}
	exceeded, sum, k := 0, 0., 0
	for range splits {
		order := r.Perm(n)
		var share float64
		share, k = rate(order[:calibrated], order[calibrated:])
		sum += share
		if share > alpha {
			exceeded++
		}
	}
	// Delta is for the true rate. That of the test records is above alpha where fewer
	// than k of the k+allowed highest records of all are of the calibration: with a
	// probability that depends on the sizes alone. Each split is drawn anew.
	allowed := int(alpha * float64(n-calibrated))
	expected := hypergeometricBelow(k, k+allowed, calibrated, n)
	most := expected + 2.326*math.Sqrt(expected*(1-expected)/splits)
	t.Logf("false-positive rate at alpha=%g over %d splits into %d calibration and %d test records: mean %.4f, above alpha in %.3f of them; %.3f are expected, at most %.3f", alpha, splits, calibrated, n-calibrated, sum/splits, float64(exceeded)/splits, expected, most)
	if sum/splits > alpha || float64(exceeded)/splits > most {
		t.Fail()
	}

	// As CLINC150 has them: its validation part, and then its test part.
	parts := make([]int, n)
	for i := range parts {
		parts[i] = i
	}
	share, _ := rate(parts[:d.val], parts[d.val:])
	mostShare := alpha + 2.326*math.Sqrt(alpha*(1-alpha)/float64(n-d.val))
	t.Logf("false-positive rate at alpha=%g, calibrated on the validation part (%d), on the test part (%d): %.4f; at most %.4f", alpha, d.val, n-d.val, share, mostShare)
	if share > mostShare {
		t.Fail()
	}

	// One part is the reference; from the other records are drawn. The parts are drawn
	// anew for each stream, or all streams would share the luck of one.
	moved := make([]float32, len(d.inside.x))
	direction, norm := make([]float64, clincDim), 0.
	for j := range direction {
		direction[j] = r.NormFloat64()
		norm += direction[j] * direction[j]
	}
	const push = .35 // of an embedding's norm
	for i := range n {
		row, length := d.inside.x[i*clincDim:][:clincDim], 0.
		for _, v := range row {
			length += float64(v) * float64(v)
		}
		for j, v := range row {
			moved[i*clincDim+j] = v + float32(push*math.Sqrt(length/norm)*direction[j])
		}
	}
	shifted := d.score(t, moved)
	type draw func(rest []int) (scored, int)
	pick := func(rest []int) (scored, int) { return d.in, rest[r.IntN(len(rest))] }
	outOfScope := func(share float64) draw {
		return func(rest []int) (scored, int) {
			if r.Float64() < share {
				return d.out, r.IntN(len(d.out.score))
			}
			return pick(rest)
		}
	}
	const a = 1e5
	stream := func(detector string, before, after int, change draw) (early bool, delay int, alarms int64) {
		order := r.Perm(n)
		reference, rest := order[:5000], order[5000:]
		scores, class := make([]float32, 0, 5000), make([]int64, len(d.head.Classes))
		for _, i := range reference {
			scores = append(scores, d.in.score[i])
			class[d.in.class[i]]++
		}
		block, tol := DefaultBlock, defaultTolerance
		sim := simulateClasses(scores, class, setting{detector, a, tol, block}, r.Uint64())
		observe := func(from draw) bool {
			s, i := from(rest)
			return sim.observeClass(r, float64(s.score[i]), s.class[i], 1)
		}
		for range before {
			early = observe(pick) || early
		}
		for delay = 1; delay < after && !observe(change); delay++ {
		}
		return early, delay, sim.b.alarms
	}
	for _, detector := range Detectors {
		alarms := int64(0)
		const streams, length = 100, 20000
		for range streams {
			_, _, n := stream(detector, length, 0, pick)
			alarms += n
		}
		spans := float64(streams*length) / a
		t.Logf("%s: %d false alarms in %d null streams of %d records, %g spans of A seconds", detector, alarms, streams, length, spans)
		if float64(alarms) > spans {
			t.Fail()
		}
	}
	for _, c := range []struct {
		name string
		draw draw
		most [2]int // shift, change
	}{
		{"5 % out of scope", outOfScope(.05), [2]int{1400, 1200}},
		{"20 % out of scope", outOfScope(.2), [2]int{250, 250}},
		{"one intent of the 150 is 10 % of the records", func(rest []int) (scored, int) {
			for surge := r.IntN(10) == 0; ; {
				if s, i := pick(rest); !surge || d.inside.label[i] == d.head.Classes[17] {
					return s, i
				}
			}
		}, [2]int{2000, math.MaxInt}}, // change sees the scores only
		{"embeddings moved by 0.35 of their norm", func(rest []int) (scored, int) {
			return shifted, rest[r.IntN(len(rest))]
		}, [2]int{2000, 2000}},
	} {
		for k, detector := range Detectors {
			const streams, longest = 60, 20000
			var delays []int
			early := 0
			for len(delays) < streams {
				e, delay, _ := stream(detector, 1000, longest, c.draw)
				if e {
					early++
					continue
				}
				delays = append(delays, delay)
			}
			slices.Sort(delays)
			missed := 0
			for _, delay := range delays {
				if delay == longest {
					missed++
				}
			}
			t.Logf("%s, %s: median delay %d records, 90 %% within %d; %d of %d missed within %d, %d false alarms before", c.name, detector, delays[streams/2], delays[streams*9/10], missed, streams, longest, early)
			if delays[streams/2] > c.most[k] {
				t.Fail()
			}
		}
	}
}
