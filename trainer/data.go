package trainer

import (
	"context"
	"errors"
	"fmt"
	"math"
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

// The parts that labelled data is split into, at random. A part whose share is 0
// is empty.
const (
	partFit = iota
	partCalibration
	partHeldOut
	partValidation
	numParts
)

// A dataset is labelled embeddings, split into parts.
type dataset struct {
	dim     int
	classes []string // sorted; a row's class is an index of it
	counts  Counts
	parts   [numParts]*spool
	// sums are of the embeddings to fit by class, [C, D], and perClass how many
	// they are. The embeddings have unit norm, unless they are raw.
	sums     []float64
	perClass []int
}

// close removes what was spooled.
func (d *dataset) close() error {
	var all []error
	for _, p := range d.parts {
		if p != nil {
			all = append(all, p.close())
		}
	}
	return errors.Join(all...)
}

// readLabelled spools a source in parts of the given shares, which sum to 1.
// raw keeps the norms of the embeddings for the fit.
//
// The split is at random by the seed and the embedding itself: the same record is
// in the same part whatever data it comes with, so that a later run with the
// same seed and shares holds out what an earlier one did not fit, and copies of a
// record are never on both sides. But the first record of each class is one to
// fit, so that a class with a single record is known to the head.
func readLabelled(ctx context.Context, src Source, dir string, shares [numParts]float64, seed uint64, raw bool) (d *dataset, err error) {
	d = &dataset{}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
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
			for i := range d.parts {
				if d.parts[i], err = newSpool(dir, dim, raw); err != nil {
					return err
				}
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
			norm, ok := normalise(unit, x[i*dim:(i+1)*dim])
			if !ok {
				d.counts.NoDirection++
				continue
			}
			part := draw(hash(seed, unit), shares[:])
			class, ok := index[labels.Value(i)]
			if !ok {
				class = int32(len(first))
				label := string([]byte(labels.Value(i))) // the record's memory is used again
				index[label] = class
				first = append(first, label)
				d.sums = append(d.sums, make([]float64, dim)...)
				d.perClass = append(d.perClass, 0)
				part = partFit
			}
			if part == partFit {
				d.count(class, norm, unit, raw)
			}
			if err := d.parts[part].append(class, norm, unit); err != nil {
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

// count adds a record to fit to the sums.
func (d *dataset) count(class int32, norm float32, unit []float32, raw bool) {
	d.perClass[class]++
	times := 1.
	if raw {
		times = float64(norm)
	}
	for j, v := range unit {
		d.sums[int(class)*d.dim+j] += times * float64(v)
	}
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

// draw returns a part with the probability of its share, by u between 0 and 1.
func draw(u float64, shares []float64) int {
	for i, share := range shares {
		if u < share {
			return i
		}
		u -= share
	}
	return partFit // what rounding leaves
}

// hash spreads vectors evenly over the numbers from 0 to 1, by the finaliser of
// MurmurHash3.
func hash(seed uint64, x []float32) float64 {
	h := seed
	for _, v := range x {
		h = mix(h ^ uint64(math.Float32bits(v)))
	}
	return float64(h>>11) / (1 << 53)
}

func mix(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
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

// means returns the mean embeddings of the classes, [C, D], over what is to fit.
func (d *dataset) means() ([]float32, error) {
	p := make([]float32, len(d.classes)*d.dim)
	all := make([]float64, d.dim)
	for c, n := range d.perClass {
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

// mean returns the mean of all embeddings to fit, [D].
func (d *dataset) mean() []float32 {
	mean := make([]float32, d.dim)
	for j := range mean {
		sum, n := 0., 0
		for c, records := range d.perClass {
			sum, n = sum+d.sums[c*d.dim+j], n+records
		}
		mean[j] = float32(sum / float64(n))
	}
	return mean
}

// classWeights weigh the classes so that each counts as much as any other.
func (d *dataset) classWeights() []float32 {
	total := 0
	for _, n := range d.perClass {
		total += n
	}
	weights := make([]float32, len(d.perClass))
	for c, n := range d.perClass {
		weights[c] = float32(float64(total) / float64(len(d.perClass)) / float64(n))
	}
	return weights
}

// normalise writes x divided by its norm, which it returns, and reports whether
// it has a direction.
func normalise(unit, x []float32) (float32, bool) {
	n := norm(x)
	if !(n >= 1e-12) || n > math.MaxFloat32 {
		return 0, false
	}
	for i, v := range x {
		unit[i] = float32(float64(v) / n)
	}
	return float32(n), true
}

// norm sums in float64, which neither overflows nor underflows on the squares.
func norm(x []float32) float64 {
	var a, b, c, d float64
	i := 0
	for ; i+4 <= len(x); i += 4 {
		v := x[i : i+4 : i+4]
		a += float64(v[0]) * float64(v[0])
		b += float64(v[1]) * float64(v[1])
		c += float64(v[2]) * float64(v[2])
		d += float64(v[3]) * float64(v[3])
	}
	for ; i < len(x); i++ {
		a += float64(x[i]) * float64(x[i])
	}
	return math.Sqrt(a + b + c + d)
}

// vectors give embeddings, [n, dim] row-major, with the label of each ("" where
// there is none). They are valid until fn returns.
type vectors func(ctx context.Context, fn func(name string, x []float32, dim int, label func(i int) string) error) error

// vectors returns the embeddings of a source.
func (s Source) vectors() vectors {
	return func(ctx context.Context, fn func(string, []float32, int, func(int) string) error) error {
		known := make(map[string]string)
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
				label, ok := known[labels.Value(i)]
				if !ok {
					label = string([]byte(labels.Value(i))) // the record's memory is used again
					known[label] = label
				}
				return label
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
