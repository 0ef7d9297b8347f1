package scorer

import (
	"github.com/oodmon/oodmon/internal/kernel"
	"github.com/oodmon/oodmon/model"
)

// A bank measures the distance to the k-th nearest of the embeddings that it
// holds, exactly: each is looked at. The class is that of the nearest.
type bank struct {
	embeddings *kernel.Bank
	k          int
	class      []int32 // [M]
}

func newBank(m *model.Model) (*bank, error) {
	embeddings, err := kernel.NewBank(m.Bank.Data().([]float32), len(m.BankClass), m.Dim())
	if err != nil {
		return nil, err
	}
	return &bank{embeddings, m.Neighbours, m.BankClass}, nil
}

func (b *bank) score(w *Workspace, x, score []float32, class []int32) {
	b.embeddings.KthNearest(&w.kernel, b.k, x, score, class)
	for i, nearest := range class {
		if nearest >= 0 {
			class[i] = b.class[nearest]
		}
	}
}
