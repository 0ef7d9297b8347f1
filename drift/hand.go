package drift

// chunk is how many records are taken at once at most: what is computed of each
// stays in the nearest cache until all is, and the blocks that close in it bet
// together. The products of so many e stay within the range of a float64.
const chunk = 128

// A hand holds the batch in hand, what was drawn for its records, and what an
// engine computes of a chunk of them.
type hand struct {
	*Batch
	now         float64
	seed        uint64                 // of the partition
	all         []int32                // the rows that may bet
	projections [][projections]float32 // nil: not wanted

	// Of a chunk: its rows, their scores and classes, the halves of their random
	// bits, which decide among equals, and
	rows  []int32
	score [chunk]float32
	class [chunk]int32
	tie   [chunk]uint32
	v     [chunk]float64 // in [0, 1)
	cell  [chunk]uint8   // of the urn
	gap   [chunk]uint32  // in the reference
	tail  [chunk]uint8   // 0, 1 where p ≤ 0.05, 2 where p ≤ 0.01
	p     [1 + projections][chunk]float64

	fetched uint32 // means nothing

	recordsBefore, oodBefore, ood int64 // the last: of those in the chunk
	first                         mark
}

// open takes a batch in hand.
func (h *hand) open(b *Batch, key uint64, watermark int64, now float64) {
	h.Batch, h.now, h.seed = b, now, seedOf(key, b.Partition)
	n := len(b.Offset)
	if cap(h.all) < n {
		h.all = make([]int32, n)
	}
	scores, classes, all, may := b.Score[:n], b.Class[:n], h.all[:n], 0
	for i, offset := range b.Offset {
		all[may] = int32(i)
		// What has no finite score must not bet.
		if s := scores[i]; offset > watermark && classes[i] >= 0 && s-s == 0 {
			may++
		}
	}
	h.all = all[:may]
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
	h.ood = h.outliers(rows)
	n := len(h.Offset)
	offsets, at, scores, classes := h.Offset, h.Row[:n], h.Score[:n], h.Class[:n]
	score, class, tie, v := h.score[:len(rows)], h.class[:len(rows)], h.tie[:len(rows)], h.v[:len(rows)]
	for i, row := range rows {
		bits := random(h.seed, offsets[row], at[row])
		score[i], class[i], tie[i], v[i] = scores[row], classes[row], uint32(bits>>32), float64(uint32(bits))*(1./(1<<32))
	}
	h.first = h.mark(0)
}

// outliers returns how many of the rows are out of distribution.
func (h *hand) outliers(rows []int32) (ood int64) {
	for _, row := range rows {
		ood += int64(one(h.OOD[row]))
	}
	return ood
}

// mark returns where record i of the chunk is.
func (h *hand) mark(i int) mark {
	row, ood := h.rows[i], int64(0)
	if i > 0 { // mostly it is the first, or one of the last few
		ood = h.ood - h.outliers(h.rows[i:])
	}
	return mark{
		time: h.now, recordTime: h.Time[row], offset: h.Offset[row], partition: h.Partition,
		records: h.recordsBefore + int64(i), ood: h.oodBefore + ood,
	}
}
