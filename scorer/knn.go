package scorer

import (
	"math"
	"slices"

	"github.com/oodmon/oodmon/internal/kernel"
	"github.com/oodmon/oodmon/model"
)

// A bank measures the distance to the k-th nearest of the embeddings that it
// holds, all of unit norm, exactly: each is looked at.
type bank struct {
	dim, rows, k, classes int
	unit                  []float32 // [M, D]
	class                 []int32   // [M]
}

// bankRows is how many rows share one pass over the bank.
const bankRows = 8

func newBank(m *model.Model) (*bank, error) {
	d, n := m.Dim(), len(m.BankClass)
	b := &bank{dim: d, rows: n, k: m.Neighbours, classes: m.NumClasses(), unit: make([]float32, n*d), class: m.BankClass}
	raw := m.Bank.Data().([]float32)
	for i := range n {
		toUnit(b.unit[i*d:(i+1)*d], raw[i*d:(i+1)*d])
	}
	return b, nil
}

// A neighbour is an embedding of the bank, and its squared distance.
type neighbour struct {
	at     int32
	square float64
}

func (b *bank) score(w *Workspace, x, score []float32, class []int32) {
	d := b.dim
	// Two float32 cosines differ from the true ones by a few u·√D each: what is
	// that close to the k-th largest may be it.
	tie := float32(8 * 0x1p-24 * math.Sqrt(float64(d)))
	w.cosines, w.top, w.votes = resize(w.cosines, bankRows*b.rows), resize(w.top, b.k), resize(w.votes, b.classes)
	w.unit = resize(w.unit, bankRows*d)
	for first := 0; first < len(score); first += bankRows {
		rows := min(bankRows, len(score)-first)
		for i := range rows {
			toUnit(w.unit[i*d:(i+1)*d], x[(first+i)*d:(first+i+1)*d])
		}
		for j := 0; j < b.rows; j += blockColumns {
			kernel.Gemm(false, true, rows, min(blockColumns, b.rows-j), d, 1, w.unit, d, b.unit[j*d:], d, 0, w.cosines[j:], b.rows)
		}
		for i := range rows {
			unit, cosines := w.unit[i*d:(i+1)*d], w.cosines[i*b.rows:(i+1)*b.rows]
			if unit[0] != unit[0] {
				score[first+i], class[first+i] = float32(math.NaN()), -1
				continue
			}
			least := kthLargest(cosines, w.top) - tie
			w.near = w.near[:0]
			for at, cosine := range cosines {
				if cosine >= least {
					w.near = append(w.near, neighbour{int32(at), squaredDistance(unit, b.unit[at*d:(at+1)*d])})
				}
			}
			slices.SortFunc(w.near, func(a, b neighbour) int {
				if a.square != b.square {
					if a.square < b.square {
						return -1
					}
					return 1
				}
				return int(a.at - b.at)
			})
			score[first+i] = float32(math.Sqrt(w.near[b.k-1].square))
			class[first+i] = b.vote(w.near[:b.k], w.votes)
		}
	}
}

// vote returns the class of most of the neighbours; of equals, the one that
// has the nearest.
func (b *bank) vote(near []neighbour, votes []int32) int32 {
	clear(votes)
	for _, n := range near {
		votes[b.class[n.at]]++
	}
	winner := b.class[near[0].at]
	for _, n := range near {
		if c := b.class[n.at]; votes[c] > votes[winner] {
			winner = c
		}
	}
	return winner
}

// kthLargest returns the k-th largest of values, where k is len(top), which it
// fills with the k largest, descending.
func kthLargest(values, top []float32) float32 {
	k := len(top)
	for i := range top {
		top[i] = float32(math.Inf(-1))
	}
	for _, v := range values {
		if !(v > top[k-1]) {
			continue
		}
		i := k - 1
		for ; i > 0 && top[i-1] < v; i-- {
			top[i] = top[i-1]
		}
		top[i] = v
	}
	return top[k-1]
}

func squaredDistance(a, b []float32) float64 {
	var s float64
	for j, v := range a {
		diff := float64(v) - float64(b[j])
		s += diff * diff
	}
	return s
}
