package drift

// chunk is how many records are taken at once at most: what is computed of each
// stays in the nearest cache until all is.
const chunk = 256

// A hand holds the batch in hand, what was drawn for its records, and what an
// engine computes of a chunk of them.
type hand struct {
	*Batch
	now         float64
	all         []int32                // the rows that may bet
	bits        []uint64               // of each row that may bet
	projections [][projections]float32 // nil: not wanted

	// Of a chunk: its rows, their scores, the halves of their random bits, which
	// decide among equals, and
	rows  []int32
	score [chunk]float32
	tie   [chunk]uint32
	v     [chunk]float64 // in [0, 1)
	cell  [chunk]uint32  // of the urn
	gap   [chunk]uint32  // in the reference
	tail  [chunk]uint8   // 0, 1 where p ≤ 0.05, 2 where p ≤ 0.01
	of    [chunk]int32   // the feature of the class
	p     [1 + projections][chunk]float64
	// how many are out of distribution of those before each, and in all.
	ood                      [chunk + 1]int32
	recordsBefore, oodBefore int64
}

// open takes a batch in hand.
func (h *hand) open(b *Batch, key uint64, watermark int64, now float64) {
	h.Batch, h.now, h.all = b, now, h.all[:0]
	if cap(h.bits) < len(b.Offset) {
		h.bits = make([]uint64, len(b.Offset))
	}
	h.bits = h.bits[:len(b.Offset)]
	seed := seedOf(key, b.Partition)
	for i, offset := range b.Offset {
		// What has no finite score must not bet.
		if s := b.Score[i]; offset <= watermark || b.Class[i] < 0 || s-s != 0 {
			continue
		}
		h.all = append(h.all, int32(i))
		h.bits[i] = random(seed, offset, b.Row[i])
	}
}

// project projects the embeddings.
func (h *hand) project(by *projector) {
	if cap(h.projections) < len(h.Offset) {
		h.projections = make([][projections]float32, len(h.Offset))
	}
	h.projections = h.projections[:len(h.Offset)]
	for _, row := range h.all {
		by.project(&h.projections[row], h.embedding(row))
	}
}

// take begins a chunk, before which an engine has seen so many records.
func (h *hand) take(rows []int32, records, ood int64) {
	h.rows, h.recordsBefore, h.oodBefore = rows, records, ood
	for i, row := range rows {
		bits := h.bits[row]
		h.score[i], h.tie[i], h.v[i] = h.Score[row], uint32(bits>>32), float64(uint32(bits))*(1./(1<<32))
		h.ood[i+1] = h.ood[i] + int32(one(h.OOD[row]))
	}
}

// mark returns where record i of the chunk is.
func (h *hand) mark(i int) mark {
	row := h.rows[i]
	return mark{
		time: h.now, recordTime: h.Time[row], offset: h.Offset[row], partition: h.Partition,
		records: h.recordsBefore + int64(i), ood: h.oodBefore + int64(h.ood[i]),
	}
}
