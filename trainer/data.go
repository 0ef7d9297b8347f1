package trainer

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sort"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/oodmon/oodmon/featurizer"
	"github.com/oodmon/oodmon/model"
	"github.com/oodmon/oodmon/scorer"
)

// maxSkipped is the share of rows without a direction beyond which the data is
// refused: something upstream is broken.
const maxSkipped = 0.05

// Counts say what became of the rows of a source.
type Counts struct {
	// Records were used; Unlabelled had no label and were left out, as were
	// those without direction: not finite, or of a norm under 1e-12.
	Records     int `json:"records"`
	Unlabelled  int `json:"unlabelled"`
	NoDirection int `json:"no_direction"`
}

// A dataset is labelled embeddings of unit norm, split at random into parts.
type dataset struct {
	dim     int
	classes []string // sorted; a row's class is an index of it
	counts  Counts
	parts   []*spool
	// sums are of the first part's unit embeddings by class, [C, D], and
	// perClass how many they are.
	sums     []float64
	perClass []int
}

// close removes what was spooled.
func (d *dataset) close() error {
	var all []error
	for _, p := range d.parts {
		all = append(all, p.close())
	}
	return errors.Join(all...)
}

// readLabelled spools a source in parts of the given shares, which sum to 1.
// The split is at random by the seed.
func readLabelled(ctx context.Context, src Source, dir string, shares []float64, seed uint64) (d *dataset, err error) {
	d = &dataset{}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	random := rand.New(rand.NewPCG(seed, 1))
	index := make(map[string]int32)
	var first []string // classes in the order of their first row
	var unit []float32
	err = src(ctx, func(name string, rec arrow.Record) error {
		x, dim, err := featurizer.Embeddings(rec)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if d.dim == 0 {
			d.dim, unit = dim, make([]float32, dim)
			for range shares {
				part, err := newSpool(dir, dim)
				if err != nil {
					return err
				}
				d.parts = append(d.parts, part)
			}
		}
		if dim != d.dim {
			return fmt.Errorf("%s: embeddings have dimension %d, those before have %d", name, dim, d.dim)
		}
		labels, err := featurizer.Column[*array.String](rec, featurizer.ColLabel)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		for i := range int(rec.NumRows()) {
			if labels.IsNull(i) || labels.Value(i) == "" {
				d.counts.Unlabelled++
				continue
			}
			if !normalise(unit, x[i*dim:(i+1)*dim]) {
				d.counts.NoDirection++
				continue
			}
			class, ok := index[labels.Value(i)]
			if !ok {
				class = int32(len(first))
				label := string([]byte(labels.Value(i))) // the record's memory is used again
				index[label] = class
				first = append(first, label)
				d.sums = append(d.sums, make([]float64, dim)...)
				d.perClass = append(d.perClass, 0)
			}
			part := draw(random, shares)
			if part == 0 {
				d.perClass[class]++
				for j, v := range unit {
					d.sums[int(class)*dim+j] += float64(v)
				}
			}
			if err := d.parts[part].append(class, unit); err != nil {
				return err
			}
			d.counts.Records++
		}
		return nil
	})
	if err != nil {
		return d, err
	}
	if err := d.counts.check(); err != nil {
		return d, err
	}
	if len(first) < 2 {
		return d, fmt.Errorf("all %d records have the label %q: at least two classes are needed", d.counts.Records, first[0])
	}
	for _, p := range d.parts {
		if err := p.flush(); err != nil {
			return d, err
		}
	}
	d.sortClasses(first)
	return d, nil
}

func (c *Counts) check() error {
	if c.Records+c.NoDirection == 0 {
		if c.Unlabelled > 0 {
			return fmt.Errorf("none of %d records has a label", c.Unlabelled)
		}
		return errors.New("there are no records")
	}
	if share := float64(c.NoDirection) / float64(c.Records+c.NoDirection); share > maxSkipped {
		return fmt.Errorf("%d of %d labelled records have no direction (not finite, or a norm under 1e-12), a share of %.3f; at most %g is accepted: look at what makes the embeddings",
			c.NoDirection, c.Records+c.NoDirection, share, maxSkipped)
	}
	return nil
}

// draw returns a part with the probability of its share.
func draw(random *rand.Rand, shares []float64) int {
	if len(shares) == 1 {
		return 0
	}
	u := random.Float64()
	for i, share := range shares[:len(shares)-1] {
		if u < share {
			return i
		}
		u -= share
	}
	return len(shares) - 1
}

// sortClasses numbers the classes by their names, in the sums and in the
// spools, so that the order of the rows does not show in the model.
func (d *dataset) sortClasses(first []string) {
	c := len(first)
	order := make([]int, c)
	for i := range order {
		order[i] = i
	}
	sort.Slice(order, func(a, b int) bool { return first[order[a]] < first[order[b]] })
	d.classes = make([]string, c)
	to := make([]int32, c)
	sums, perClass := make([]float64, len(d.sums)), make([]int, c)
	for new, old := range order {
		d.classes[new], to[old], perClass[new] = first[old], int32(new), d.perClass[old]
		copy(sums[new*d.dim:], d.sums[old*d.dim:(old+1)*d.dim])
	}
	d.sums, d.perClass = sums, perClass
	for _, p := range d.parts {
		p.renumber = to
	}
}

// means returns the prototypes to start from: the mean directions of the
// classes in the first part.
func (d *dataset) means() ([]float32, error) {
	p := make([]float32, len(d.classes)*d.dim)
	all := make([]float64, d.dim)
	for c, n := range d.perClass {
		if n == 0 {
			return nil, fmt.Errorf("class %q has no record to fit: give it more records", d.classes[c])
		}
		for j := range d.dim {
			all[j] += d.sums[c*d.dim+j] / float64(n) / float64(len(d.classes))
			p[c*d.dim+j] = float32(d.sums[c*d.dim+j] / float64(n))
		}
		if norm(p[c*d.dim:(c+1)*d.dim]) < 1e-6 {
			return nil, fmt.Errorf("the embeddings of class %q point everywhere: their mean direction vanishes", d.classes[c])
		}
	}
	spread := 0.
	for i, v := range p {
		spread = math.Max(spread, math.Abs(float64(v)-all[i%d.dim]))
	}
	if spread < 1e-6 {
		return nil, errors.New("the embeddings of all classes point in the same direction: there is nothing to tell them apart by")
	}
	return p, nil
}

// normalise writes x divided by its norm, and reports whether it has a
// direction.
func normalise(unit, x []float32) bool {
	n := norm(x)
	if !(n >= 1e-12) || math.IsInf(n, 0) {
		return false
	}
	for i, v := range x {
		unit[i] = float32(float64(v) / n)
	}
	return true
}

// vectors give embeddings, [n, dim] row-major, with the label of each ("" where
// there is none). They are valid until fn returns.
type vectors func(ctx context.Context, fn func(name string, x []float32, dim int, label func(i int) string) error) error

// vectors returns the embeddings of a source.
func (s Source) vectors() vectors {
	return func(ctx context.Context, fn func(string, []float32, int, func(int) string) error) error {
		return s(ctx, func(name string, rec arrow.Record) error {
			x, dim, err := featurizer.Embeddings(rec)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			labels, err := featurizer.Column[*array.String](rec, featurizer.ColLabel)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return fn(name, x, dim, func(i int) string {
				if labels.IsNull(i) {
					return ""
				}
				return string([]byte(labels.Value(i))) // the record's memory is used again
			})
		})
	}
}

// vectors returns the embeddings of a part.
func (d *dataset) vectors(part int) vectors {
	return func(ctx context.Context, fn func(string, []float32, int, func(int) string) error) error {
		return d.parts[part].inOrder(func(x []float32, y []int32) error {
			return fn("spool", x, d.dim, func(i int) string { return d.classes[y[i]] })
		})
	}
}

// score collects the scores of embeddings by m.
func score(ctx context.Context, m *model.Model, src vectors) (s scoredRows, err error) {
	err = src(ctx, func(name string, x []float32, dim int, label func(i int) string) error {
		if dim != m.Dim() {
			return fmt.Errorf("%s: embeddings have dimension %d, the model expects %d", name, dim, m.Dim())
		}
		scores, classes, err := scorer.Distances(m, x)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		for i, class := range classes {
			if class < 0 {
				s.noDirection++
				continue
			}
			s.scores, s.classes, s.labels = append(s.scores, scores[i]), append(s.classes, class), append(s.labels, label(i))
		}
		return nil
	})
	if err != nil {
		return s, err
	}
	counts := Counts{Records: len(s.scores), NoDirection: s.noDirection}
	return s, counts.check()
}

// scoredRows are the answers of a model, with the truth.
type scoredRows struct {
	scores      []float32
	classes     []int32
	labels      []string
	noDirection int
}
