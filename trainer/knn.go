package trainer

import (
	"context"
	"fmt"
	"math/rand/v2"

	"github.com/oodmon/oodmon/model"
)

// fitKNN keeps the directions of the records, of more than the recipe's bank of
// them a random sample in which each is as likely (Vitter, "Random Sampling with
// a Reservoir", algorithm R).
func fitKNN(ctx context.Context, data *dataset, opts Options, report *Report, m *model.Model) error {
	r, d := opts.Recipe, data.dim
	rows := min(r.Bank, data.parts[partFit].rows)
	if rows < r.Neighbours {
		return fmt.Errorf("neighbours: %d of a bank of %d embeddings: more data is needed, or fewer neighbours", r.Neighbours, rows)
	}
	random := rand.New(rand.NewPCG(r.Seed, 4))
	bank, class, seen := make([]float32, rows*d), make([]int32, rows), 0
	err := data.parts[partFit].chunks(false, func(x []float32, y []int32) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		for i := range y {
			at := seen
			if seen++; at >= rows {
				if at = random.IntN(seen); at >= rows {
					continue
				}
			}
			copy(bank[at*d:], x[i*d:(i+1)*d])
			class[at] = y[i]
		}
		return nil
	})
	m.Bank, m.BankClass, m.Neighbours = matrix(bank, d), class, r.Neighbours
	report.Bank = rows
	return err
}
